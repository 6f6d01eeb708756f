// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Config describes a vbd.
type Config struct {
	ID xenbus.DeviceID
	// Path is the backend directory, absolute, without a slash at the end:
	// /local/domain/<own>/backend/vbd/<domid>/<devid>.
	Path string
	// ErrorPath is the node for the text of an error:
	// /local/domain/<own>/error/backend/vbd/<domid>/<devid>/error.
	ErrorPath string

	Store  device.Store
	Engine blkengine.Engine
	Log    *zap.Logger // with the vbd's fields, and rate-limited

	Options

	Guest  *budget.Guest   // budgets of the domain, shared by its vbds; nil: the vbd has its own
	Memory *blkplane.Guest // memory of the domain's requests in flight, shared by its vbds; nil: as Guest

	// Taken reports whether another back end has the device by now. Then the vbd ends
	// and changes nothing more. nil: there is no other back end.
	Taken func() bool
}

// Vbd is one vbd. Its fields belong to the goroutine in Run.
type Vbd struct {
	cfg  Config
	log  *zap.Logger
	mail *device.Mailbox

	// The vbd's state. own is Unknown until the node was first read. lastNode is the
	// value of the node when it was last read or written.
	own, lastNode xenbus.State
	detachAt      time.Time // end of the frontend's grace; zero: the vbd is not detached
	block         block     // keeps it from connecting; errors.go

	// Contents of xenstore; observe.go.
	nodes      nodes
	guest      guestView
	unread     unread // parts that have changed since they were read
	work       *device.Work
	frontWatch device.Watch

	disk diskState // disk.go
	link blkengine.Link
	conn connState // connection.go

	weight int // weight.go

	predecessor record // of a predecessor, or of the connection that has ended; record.go
	record      device.Record
	errorNode   device.ErrorNode
	alarm       device.Alarm
	revision    *device.Revision[gist]
}

// New makes a vbd. It does nothing before Run.
func New(cfg Config) *Vbd {
	cfg.Options = cfg.Options.withDefaults()
	if cfg.Guest == nil {
		cfg.Guest = budget.NewHost(budget.Turns).Guest()
	}
	v := &Vbd{
		cfg: cfg, log: cfg.Log, mail: device.NewMailbox(),
		work:      device.NewWork(cfg.Store, cfg.Guest),
		record:    device.NewRecord(recordPath(cfg.RunDir, cfg.ID)),
		errorNode: device.NewErrorNode(cfg.ErrorPath, cfg.Log),
		alarm:     device.NewAlarm(),
		revision:  device.NewRevision[gist](),
		disk:      newDiskState(),
		conn:      newConnState(),
		weight:    1,
	}
	v.link = cfg.Engine.Open(blkengine.LinkConfig{
		Domid: cfg.ID.Domid, Name: cfg.ID.String(), Log: cfg.Log, Turn: v.work.Turn(), Memory: cfg.Memory,
	})
	v.Poke()
	return v
}

// ID returns the class, the domain and the number of the vbd.
func (v *Vbd) ID() xenbus.DeviceID { return v.cfg.ID }

// unread is a set of parts of xenstore that may have changed since they were last read. An
// observation reads these parts, and always the state in the backend directory.
type unread uint32

const (
	unreadNodes  unread = 1 << iota // the backend directory, except for its state
	unreadFront                     // the frontend's state and, if its state needs them, its keys
	unreadDomain                    // the existence of the frontend's domain
	unreadAll    = unreadNodes | unreadFront | unreadDomain
)

// Poke makes the vbd read all of its part of xenstore again. It never blocks. Pokes that
// come while one is pending are merged with it.
func (v *Vbd) Poke() { v.mail.Wake(uint32(unreadAll)) }

// Changed tells the vbd that the node at key below the backend directory has changed; an
// empty key is the directory itself. It never blocks. It ignores nodes that only this
// package writes.
func (v *Vbd) Changed(key string) {
	key, _, _ = strings.Cut(key, "/")
	switch {
	case key == "":
		v.Poke()
	case key == "state":
		v.mail.Wake(0)
	case isPublished(key):
	default:
		v.mail.Wake(uint32(unreadNodes))
	}
}

// SetStore gives the vbd another connection to xenstore, after the old one was lost.
// Requests have been served meanwhile.
func (v *Vbd) SetStore(ctx context.Context, s device.Store) {
	v.mail.Call(ctx, func() {
		v.work.SetStore(s)
		v.frontWatch = device.Watch{} // lost with the connection
		v.Poke()
	})
}

// Reset makes the vbd try again to open its disk, and to connect after it has given up, with
// the frontend's present rings. It ends a quarantine. It returns false if the vbd has ended.
func (v *Vbd) Reset(ctx context.Context) bool {
	return v.mail.Call(ctx, func() {
		v.block = block{}
		v.disk.retryNow()
		v.resize()
		v.Poke()
	})
}

// Resize makes the vbd read the size of its disk again, and tell the guest if it has
// changed. It returns false if the vbd has ended.
func (v *Vbd) Resize(ctx context.Context) bool {
	return v.mail.Call(ctx, func() {
		v.resize()
		v.mail.Wake(0)
	})
}

// Done returns a channel that is closed when Run has returned.
func (v *Vbd) Done() <-chan struct{} { return v.mail.Done }

// Run runs the vbd. It returns when the backend directory is gone, when another back end
// has the device, or when ctx ends. In the last case it waits for xenstored no longer, and the rings, the
// journals and the state in xenstore stay as they are, for a successor to adopt.
func (v *Vbd) Run(ctx context.Context) {
	defer close(v.mail.Done)
	defer v.link.End()
	defer v.alarm.Stop()
	debug.SetPanicOnFault(true) // a bad ring page costs this vbd only
	gone := false
	for !gone {
		// While a look at the guest's nodes waits for the guest's budget, events of
		// the guest do not wake the vbd.
		front := v.frontWatch.Events()
		if _, owed := v.work.Owed(); owed {
			front = nil
		}
		due := true // to reconcile
		select {
		case <-ctx.Done():
			v.inTurn(ctx, v.suspend)
			return
		case f := <-v.mail.Calls:
			v.inTurn(ctx, f)
			continue
		case <-v.mail.Poked:
			v.unread |= unread(v.mail.Changed())
		case <-v.conn.events:
			v.inTurn(ctx, func() { v.handleNotices(ctx) })
		case r := <-v.disk.opened:
			v.inTurn(ctx, func() { v.diskOpened(ctx, r) })
		case <-v.disk.poll.C:
			v.inTurn(ctx, v.resize)
			due = v.resized()
		case <-v.alarm.C():
			v.alarm.Rang()
		case _, ok := <-front:
			v.frontWatch.Received(ok)
			due = v.work.Pay()
		}
		if due {
			gone = v.reconcileInTurn(ctx)
		}
		if at, owed := v.work.Owed(); owed {
			v.alarm.Set(at)
		}
	}
	v.inTurn(ctx, v.suspend)
}

// reconcileInTurn reconciles with the toolstack's nodes, and with the guest's nodes if a
// look is due. It reports whether the vbd has ended.
func (v *Vbd) reconcileInTurn(ctx context.Context) (gone bool) {
	v.work.Look(func(due bool) {
		if due {
			v.unread |= unreadFront
		}
		v.inTurn(ctx, func() { gone = v.reconcile(ctx) })
	})
	return gone
}

// inTurn runs f within the vbd's turn, and keeps a panic in f from ending the process.
func (v *Vbd) inTurn(ctx context.Context, f func()) {
	v.work.Turn().Do(func() { v.guard(ctx, f) })
	v.revision.Update(v.gist())
}

// guard runs f and quarantines the vbd if f panics.
func (v *Vbd) guard(ctx context.Context, f func()) {
	device.Guard(v.log, f, func(err error) { v.quarantine(ctx, err) })
}

// AwaitChange waits until the status has another revision than from, until ctx ends, or
// until the vbd ends.
func (v *Vbd) AwaitChange(ctx context.Context, from uint64) { v.revision.Await(ctx, from, v.mail.Done) }

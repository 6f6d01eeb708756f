// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Store is the part of xenstore that a vif uses. *xenstore.Client is one.
type Store = device.Store

// DefaultGrace is the time that a frontend has to close after the toolstack has asked
// for it. libxl waits 10 s; a vif answers within one.
const DefaultGrace = 900 * time.Millisecond

// Config describes a vif.
type Config struct {
	ID xenbus.VifID
	// Path is the backend directory, absolute, without a slash at the end:
	// /local/domain/<own>/backend/vif/<domid>/<devid>.
	Path string
	// ErrorPath is the node for the text of an error:
	// /local/domain/<own>/error/backend/vif/<domid>/<devid>/error.
	ErrorPath string

	Store  Store
	Engine netengine.Engine
	Log    *zap.Logger // with the vif's fields, and rate-limited

	Options

	Guest       *budget.Guest       // budgets of the domain, shared by its vifs; nil: the vif has its own
	GrantBudget *staticgrant.Budget // of the static grants of the domain; nil: no bound
	Keeper      Keeper              // keeps the TAP's queues while no daemon runs; nil: they are not kept
	Kept        []int               // queues that a predecessor's keeper kept; the vif owns them from Run on

	// Taken reports whether another back end has the device by now. Then the vif ends
	// and changes nothing more. nil: there is no other back end.
	Taken func() bool
}

// Vif is one vif. Its fields belong to the goroutine in Run, except for mail and notices.
type Vif struct {
	cfg Config
	log *zap.Logger

	// Written by other goroutines.
	mail    *device.Mailbox // Changed has an unread
	notices chan struct{}   // the data plane has notices of conn

	// The vif's state. own is Unknown until the node was first read. lastNode is the
	// value of the node when it was last read or written.
	own, lastNode xenbus.State
	detachAt      time.Time // end of the frontend's grace; zero: the vif is not detached
	claimed       bool      // another back end has served it, and this one has not been connected yet
	released      bool      // another back end owns the device, or is about to
	block         block     // keeps it from connecting; errors.go

	// Contents of xenstore; observe.go.
	nodes  nodes
	guest  guestView
	reconf reconfiguration // headroom.go
	unread unread          // parts that have changed since they were read

	frontWatch, mcastWatch, headroomWatch device.Watch

	// The TAP device; tap.go, findtap.go, keptqueues.go.
	tap          *tap.Device // nil: there is none
	setup        tapSetup
	spareQueues  bool  // it has spare queues until the hotplug script is done; see closeSpareQueues
	elsewhere    bool  // it is in another network namespace
	fullMTU      int   // its MTU before limitMTU lowered it; 0: not lowered
	keptQueues   []int // files from a predecessor's keeper that are not used yet
	storedQueues int   // number of queues that the keeper has

	// The connection, and settings and counters that outlive one.
	link netengine.Link
	conn *connection // nil: there is none
	// resuming is set from the end of a packet process on, until the vif is connected again.
	resuming  bool
	noProcess time.Time // since then no packet process runs; see awaitProcess; zero: one does
	rate      Rate
	weight    int
	totals    [dataplane.NumCounters]uint64 // of connections that have ended

	// The record for a successor; record.go.
	predecessor record // record of a predecessor
	saved       device.Record

	errorNode device.ErrorNode
	busySince time.Time // see waitWhileBusy; zero: nothing that the vif needs is in use

	revision *device.Revision[gist]  // revision.go
	outline  atomic.Pointer[outline] // line.go; nil before the first turn
	busy     atomic.Bool             // it is in a turn, or waits for one
	shown    chan struct{}           // its counters were shown
	alarm    device.Alarm
	work     *device.Work // the Store, and the turn: the goroutine holds it except while it waits
}

// New makes a vif. It does nothing before Run.
func New(cfg Config) *Vif {
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Guest == nil {
		cfg.Guest = budget.NewHost(budget.Turns).Guest()
	}
	v := &Vif{
		cfg: cfg, log: cfg.Log, keptQueues: cfg.Kept, weight: 1,
		mail:      device.NewMailbox(),
		notices:   make(chan struct{}, 1),
		work:      device.NewWork(cfg.Store, cfg.Guest),
		saved:     device.NewRecord(recordPath(cfg.RunDir, cfg.ID)),
		errorNode: device.NewErrorNode(cfg.ErrorPath, cfg.Log),
		alarm:     device.NewAlarm(),
		revision:  device.NewRevision[gist](),
		shown:     make(chan struct{}, 1),
	}
	v.busy.Store(true) // until the end of the first turn
	v.cfg.Store = v.work
	v.link = cfg.Engine.Open(netengine.LinkConfig{
		Domid: cfg.ID.Domid, Name: cfg.ID.String(), Log: cfg.Log,
		Guest: cfg.Guest, Turn: v.work.Turn(), GrantBudget: cfg.GrantBudget,
	})
	v.Poke()
	return v
}

// ID returns the domain and the number of the vif.
func (v *Vif) ID() xenbus.VifID { return v.cfg.ID }

// Poke makes the vif read all of its part of xenstore again. It never blocks. Pokes
// that come while one is pending are merged with it.
func (v *Vif) Poke() { v.Changed("") }

// SetStore gives the vif another connection to xenstore, after the old one was lost. The
// data path has been running meanwhile.
func (v *Vif) SetStore(ctx context.Context, s Store) {
	v.mail.Call(ctx, func() {
		v.work.SetStore(s)
		v.frontWatch, v.mcastWatch, v.headroomWatch = device.Watch{}, device.Watch{}, device.Watch{} // lost with the connection
		v.Poke()
	})
}

// Reset makes the vif try to connect again after it has given up, with the frontend's
// present rings. It ends a quarantine. It returns false if the vif has ended.
func (v *Vif) Reset(ctx context.Context) bool {
	return v.mail.Call(ctx, func() {
		v.block = block{}
		v.Poke()
	})
}

// Done returns a channel that is closed when Run has returned.
func (v *Vif) Done() <-chan struct{} { return v.mail.Done }

// Run runs the vif. It returns when the backend directory is gone, when another back
// end has the device, or when ctx ends. Then it waits for xenstored no longer, and the
// TAP and the state in xenstore stay as they are, for a successor to adopt.
func (v *Vif) Run(ctx context.Context) {
	defer close(v.mail.Done)
	defer v.link.End()
	defer v.alarm.Stop()
	debug.SetPanicOnFault(true) // a bad ring page costs this vif only
	gone := false
	for !gone && !v.released {
		// While a look at the guest's nodes waits for the guest's budget, events of
		// the guest do not wake the vif.
		front, mcast, headroom := v.frontWatch.Events(), v.mcastWatch.Events(), v.headroomWatch.Events()
		if _, owed := v.work.Owed(); owed {
			front, mcast, headroom = nil, nil, nil
		}
		due := true // to reconcile
		select {
		case <-ctx.Done():
			v.inTurn(ctx, v.suspend)
			return
		case f := <-v.mail.Calls:
			v.inTurn(ctx, f)
			continue
		case <-v.notices:
			v.inTurn(ctx, func() { v.handleNotices(ctx) })
			continue
		case <-v.shown:
			v.inTurn(ctx, func() { v.saveCounters(time.Now()) })
			continue
		case <-v.mail.Poked:
			v.unread |= unread(v.mail.Changed())
		case <-v.alarm.C():
			v.alarm.Rang()
		case _, ok := <-front:
			v.frontWatch.Received(ok)
			v.guest.wroteState = true
			due = v.work.Pay()
		case _, ok := <-mcast:
			v.mcastWatch.Received(ok)
			due = v.work.Pay()
		case _, ok := <-headroom:
			v.headroomWatch.Received(ok)
			v.reconf.events++
			due = v.work.Pay()
		}
		if due {
			gone = v.reconcileInTurn(ctx)
		}
		if at, owed := v.work.Owed(); owed {
			v.alarm.Set(at)
		}
	}
	v.inTurn(ctx, v.unwatch)
}

// inTurn runs f within the vif's turn, and keeps a panic in f from ending the process.
func (v *Vif) inTurn(ctx context.Context, f func()) {
	v.busy.Store(true)
	device.Apart(func() {
		v.work.Turn().Do(func() { v.guard(ctx, f) })
		v.revision.Update(v.gist())
		v.expose()
	})
	v.busy.Store(false)
}

// guard runs f and quarantines the vif if f panics. If that panics as well, the connection's
// mappings and channels leak, and the vif stays out of service.
func (v *Vif) guard(ctx context.Context, f func()) {
	device.Guard(v.log, f, func(err error) { v.quarantine(ctx, err) })
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Store is the part of xenstore that a vif uses. *xenstore.Client is one.
type Store interface {
	Read(ctx context.Context, path string) (string, error)
	Write(ctx context.Context, path, value string) error
	Transaction(context.Context, func(*xenstore.Tx) error) error
	Watch(ctx context.Context, path string) (*xenstore.Watch, error)
	IsIntroduced(ctx context.Context, domid xen.Domid) (bool, error)
}

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

	Store Store
	Host  Host
	Pool  *dataplane.Pool
	Log   *zap.Logger // with the vif's fields, and rate-limited

	Options

	Guest       *budget.Guest       // budgets of the domain, shared by its vifs; nil: the vif has its own
	GrantBudget *staticgrant.Budget // of the static grants of the domain; nil: no bound
	Keeper      Keeper              // keeps the TAP's queues while no daemon runs; nil: they are not kept
	Kept        []int               // queues that a predecessor's keeper kept; the vif owns them from Run on

	// Taken reports whether another back end has the device by now. Then the vif ends
	// and changes nothing more. nil: there is no other back end.
	Taken func() bool
}

// Vif is one vif. Its fields belong to the goroutine in Run, except for the channels and
// those marked as shared.
type Vif struct {
	cfg Config
	log *zap.Logger

	// Written by other goroutines.
	poke    chan struct{}
	changed atomic.Uint32 // shared: changed parts of xenstore, an unread; set before poke
	calls   chan func()
	notices chan struct{} // the data plane has notices of conn
	done    chan struct{}

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

	frontWatch, mcastWatch, headroomWatch watch

	// The TAP device; tap.go, findtap.go, keptqueues.go.
	tap          *tap.Device // nil: there is none
	setup        tapSetup
	spareQueues  bool  // it has spare queues until the hotplug script is done; see closeSpareQueues
	elsewhere    bool  // it is in another network namespace
	fullMTU      int   // its MTU before limitMTU lowered it; 0: not lowered
	keptQueues   []int // files from a predecessor's keeper that are not used yet
	storedQueues int   // number of queues that the keeper has

	// The connection, and settings and counters that outlive one.
	conn    *connection // nil: there is none
	rate    Rate
	limiter dataplane.Limiter
	mcast   dataplane.McastList
	totals  [dataplane.NumCounters]uint64 // of connections that have ended

	// The record for a successor; record.go.
	predecessor record // record of a predecessor
	savedRecord string // contents of the file
	savedAt     time.Time

	errorText string    // contents of the error node
	busySince time.Time // see waitWhileBusy; zero: nothing that the vif needs is in use

	revision revision

	timer *time.Timer
	alarm time.Time // when timer fires; zero: it does not

	turn *budget.Turn // the goroutine holds it except while it waits
	work guestWork    // requests.go
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
		cfg: cfg, log: cfg.Log, keptQueues: cfg.Kept,
		poke:     make(chan struct{}, 1),
		calls:    make(chan func()),
		notices:  make(chan struct{}, 1),
		done:     make(chan struct{}),
		timer:    time.NewTimer(time.Hour),
		turn:     cfg.Guest.Turn(),
		work:     guestWork{idle: budget.Idle()},
		revision: newRevision(),
	}
	v.cfg.Store = countingStore{cfg.Store, v}
	v.Poke()
	return v
}

// ID returns the domain and the number of the vif.
func (v *Vif) ID() xenbus.VifID { return v.cfg.ID }

// Poke makes the vif read all of its part of xenstore again. It never blocks. Pokes
// that come while one is pending are merged with it.
func (v *Vif) Poke() { v.Changed("") }

// wake makes Run reconcile.
func (v *Vif) wake() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// SetStore gives the vif another connection to xenstore, after the old one was lost. The
// data path has been running meanwhile.
func (v *Vif) SetStore(ctx context.Context, s Store) {
	v.call(ctx, func() {
		v.cfg.Store = countingStore{s, v}
		v.frontWatch, v.mcastWatch, v.headroomWatch = watch{}, watch{}, watch{} // lost with the connection
		v.Poke()
	})
}

// Reset makes the vif try to connect again after it has given up, with the frontend's
// present rings. It ends a quarantine. It returns false if the vif has ended.
func (v *Vif) Reset(ctx context.Context) bool {
	return v.call(ctx, func() {
		v.block = block{}
		v.Poke()
	})
}

// Done returns a channel that is closed when Run has returned.
func (v *Vif) Done() <-chan struct{} { return v.done }

// call runs f in the vif's goroutine and waits for it. It returns false if the vif has
// ended, or if ctx ended before f began: the vif may be waiting for xenstored, or for its
// turn.
func (v *Vif) call(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	var once sync.Once // f either begins or is given up
	did := false
	begin := func() { did = true; f() }
	select {
	case v.calls <- func() { defer close(ran); once.Do(begin) }:
	case <-v.done:
		return false
	case <-ctx.Done():
		return false
	}
	select {
	case <-ran:
	case <-ctx.Done():
		once.Do(func() {}) // waits for f if it has begun
	}
	return did
}

// Run runs the vif. It returns when the backend directory is gone, when another back
// end has the device, or when ctx ends. Then it waits for xenstored no longer, and the
// TAP and the state in xenstore stay as they are, for a successor to adopt.
func (v *Vif) Run(ctx context.Context) {
	defer close(v.done)
	defer v.timer.Stop()
	debug.SetPanicOnFault(true) // a bad ring page costs this vif only
	gone := false
	for !gone && !v.released {
		// While a look at the guest's nodes waits for the guest's budget, events of
		// the guest do not wake the vif.
		front, mcast, headroom := v.frontWatch.events(), v.mcastWatch.events(), v.headroomWatch.events()
		if v.work.owed {
			front, mcast, headroom = nil, nil, nil
		}
		due := true // to reconcile
		select {
		case <-ctx.Done():
			v.inTurn(ctx, v.suspend)
			return
		case f := <-v.calls:
			v.inTurn(ctx, f)
			continue
		case <-v.notices:
			v.inTurn(ctx, func() { v.handleNotices(ctx) })
			continue
		case <-v.poke:
			v.unread |= unread(v.changed.Swap(0))
		case <-v.timer.C:
			v.alarm = time.Time{}
		case _, ok := <-front:
			v.frontWatch.received(ok)
			v.guest.wroteState = true
			due = v.payForLook()
		case _, ok := <-mcast:
			v.mcastWatch.received(ok)
			due = v.payForLook()
		case _, ok := <-headroom:
			v.headroomWatch.received(ok)
			v.reconf.events++
			due = v.payForLook()
		}
		if due {
			gone = v.reconcileInTurn(ctx)
		}
		if v.work.owed {
			v.wakeIn(max(time.Until(v.work.dueAt), 0))
		}
	}
	v.inTurn(ctx, v.unwatch)
}

// inTurn runs f within the vif's turn, and keeps a panic in f from ending the process.
func (v *Vif) inTurn(ctx context.Context, f func()) {
	v.turn.Do(func() { v.guard(ctx, f) })
	v.revision.update(v.gist())
}

// guard runs f and quarantines the vif if f panics.
func (v *Vif) guard(ctx context.Context, f func()) {
	defer v.recovered(func(err error) { v.quarantine(ctx, err) })
	f()
}

// recovered must be deferred. It turns a panic into an error and passes that to then. If
// then panics as well, the connection's mappings and channels leak, and the vif stays out
// of service.
func (v *Vif) recovered(then func(error)) {
	r := recover()
	if r == nil {
		return
	}
	v.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	defer v.recovered(func(error) {})
	then(fmt.Errorf("internal error: %v", r))
}

// wakeIn makes the vif reconcile after d, or earlier.
func (v *Vif) wakeIn(d time.Duration) { v.wakeAt(time.Now().Add(d)) }

// wakeAt makes the vif reconcile at a time, or earlier.
func (v *Vif) wakeAt(at time.Time) {
	if v.alarm.IsZero() || at.Before(v.alarm) {
		v.alarm = at
		v.timer.Reset(time.Until(at))
	}
}

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
	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Store is what a vif needs of xenstore. *xenstore.Client is one.
type Store interface {
	Read(path string) (string, error)
	Write(path, value string) error
	Transaction(func(*xenstore.Tx) error) error
	Watch(path string) (*xenstore.Watch, error)
	IsIntroduced(domid xen.Domid) (bool, error)
}

// DefaultGrace is how long a live frontend may take to close after the toolstack
// asked for it. libxl waits 10 s; ours is to answer within one.
const DefaultGrace = 900 * time.Millisecond

// Config is what a vif is made from.
type Config struct {
	Domid xen.Domid
	Devid int
	// Path is the backend directory, absolute, without a slash at the end:
	// /local/domain/<own>/backend/vif/<domid>/<devid>.
	Path string
	// ErrorPath is where the text of an error goes:
	// /local/domain/<own>/error/backend/vif/<domid>/<devid>/error.
	ErrorPath string

	Store Store
	Host  Host
	Pool  *dataplane.Pool
	Log   *zap.Logger // made for this vif: fields set, lines limited

	MaxQueues int
	Offload   bool          // TAPs with vnet headers
	RunDir    string        // where journals go; empty: nowhere
	Guest     *budget.Guest // budgets of the domain, shared by its vifs; nil: own ones
	Keeper    Keeper        // of the TAP's queues; nil: nobody
	Kept      []int         // queues that a predecessor's keeper kept; from Run on they are the vif's
	Drain     time.Duration // 0: dataplane.DefaultDrain
	Stall     time.Duration // 0: dataplane.DefaultStall
	Grace     time.Duration // 0: DefaultGrace

	ControlRings ctrlserver.Protocols // what is offered unless the toolstack says otherwise
	StaticGrants ctrlserver.StaticGrants
	NoBPF        error // why the kernel takes no steering program; nil: it does

	// Taken reports whether another back end has the device by now. Then the
	// vif ends without touching anything. nil: there is no other.
	Taken func() bool
}

// Vif is one vif. All fields belong to the goroutine in Run, but for the
// channels.
type Vif struct {
	cfg Config
	log *zap.Logger

	poke    chan struct{}
	changed atomic.Uint32 // what of xenstore, unread; before poke
	calls   chan func()
	news    chan struct{} // the data plane has news of link
	done    chan struct{}

	// The device on the host; device.go.
	tap     *tap.Device
	hadTap  bool // since the toolstack made the directory, whoever served it
	spares  bool // it has more queues than are needed, until the hotplug script is through
	away    bool // it is in another network namespace
	lost    bool // the one that the hotplug script worked on is no more
	claimed bool // another back end served it, and we have not been connected yet
	left    bool // another back end has the device, or is to have it
	fullMTU int  // what the MTU was before a frontend without scatter-gather

	// What a successor needs to know; record.go.
	was      record // as a predecessor left it
	recorded string // what stands in the file
	savedAt  time.Time

	// What outlives the process; kept.go.
	kept   []int // handed over by a predecessor, and not used yet
	stored int   // how many queues the keeper has

	// The connection; connect.go. live is whether the TAP has its carrier.
	link    *link
	live    bool
	since   time.Time
	limiter dataplane.Limiter
	mcast   dataplane.McastList
	totals  [dataplane.NumCounters]uint64 // of connections that are over

	// What xenstore says; observe.go.
	nodes      nodes
	front      xenbus.State
	alive      bool // the frontend's domain is there
	hidden     bool // the frontend's directory may not be read any more
	guestMTU   string
	offer      offer
	wrote      bool // the frontend has written its state, which was not read since
	spoke      bool // it was read, and no plan was made since
	frontWatch watch
	mcastWatch watch
	keyWatch   watch           // headroom.go
	reconf     reconfiguration // the same

	// Where the vif is. own is Unknown until the node was first read; shown
	// is what stood there last.
	own, shown xenbus.State
	detachAt   time.Time // when the frontend's grace ends; zero: it stays
	rate       Rate

	// What went wrong; trouble.go.
	trouble   string      // the error that stands in the error node
	reason    string      // why the vif is quarantined
	barred    netif.Stamp // the connection that is; zero: there was none
	tried     *attempt    // what not to try again
	busySince time.Time   // since when what it needs is in use; zero: it is not

	revision revision

	timer *time.Timer
	alarm time.Time // when timer rings, zero if it does not

	// The work it does, on account of the guest; see pay.
	turn     *budget.Turn // held within all that the goroutine does but wait
	requests int          // to xenstored
	unread   unread
	heard    bool      // the guest has written, and the vif has not looked since
	paid     time.Time // from when on it may look, if heard
	fresh    bool      // this look has found that the guest has written something new
	idle     *rate.Limiter
	quiet    time.Time // until then no look, for those before have found nothing new
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
		cfg: cfg, log: cfg.Log, kept: cfg.Kept,
		poke:  make(chan struct{}, 1),
		calls: make(chan func()),
		news:  make(chan struct{}, 1),
		done:  make(chan struct{}),
		timer: time.NewTimer(time.Hour),
		turn:  cfg.Guest.Turn(),
		idle:  budget.Idle(),

		revision: newRevision(),
	}
	v.cfg.Store = askingStore{cfg.Store, v}
	v.Poke()
	return v
}

// Name is the name the vif's TAP is made with.
func (v *Vif) Name() string { return fmt.Sprintf("vif%d.%d", v.cfg.Domid, v.cfg.Devid) }

// Domid is the frontend's domain.
func (v *Vif) Domid() xen.Domid { return v.cfg.Domid }

// Devid is the number of the vif in its domain.
func (v *Vif) Devid() int { return v.cfg.Devid }

// Poke makes the vif look at all of its part of xenstore again. It never blocks; pokes
// that come while one is pending are one.
func (v *Vif) Poke() { v.Changed("") }

// rouse wakes the vif.
func (v *Vif) rouse() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// SetStore gives the vif another connection to xenstore, after the old one was
// lost. The data path has gone on meanwhile.
func (v *Vif) SetStore(s Store) {
	v.call(context.Background(), func() {
		v.cfg.Store = askingStore{s, v}
		v.frontWatch, v.mcastWatch, v.keyWatch = watch{}, watch{}, watch{} // they went with the connection
		v.Poke()
	})
}

// Reset lets a vif try again what it has given up, with the rings its frontend
// has: it ends a quarantine. It reports false if the vif has ended.
func (v *Vif) Reset(ctx context.Context) bool {
	return v.call(ctx, func() {
		v.tried, v.reason = nil, ""
		v.Poke()
	})
}

// Done is closed when Run has returned.
func (v *Vif) Done() <-chan struct{} { return v.done }

// call runs f in the vif's goroutine and waits for it. It reports false if the
// vif has ended, or ctx did before the vif had time: it may be waiting for
// xenstored, or for its turn.
func (v *Vif) call(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	var once sync.Once // f begins, or is given up
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

// Run is the life of the vif. It returns when the backend directory is gone, or
// when ctx ends: then the TAP and the state in xenstore stay as they are, for a
// successor to take over.
func (v *Vif) Run(ctx context.Context) {
	defer close(v.done)
	defer v.timer.Stop()
	debug.SetPanicOnFault(true) // a ring page gone bad costs this vif
	gone := false
	for !gone && !v.left {
		// While it waits for its guest's budget nothing that the guest writes
		// wakes it.
		front, mcast, key := v.frontWatch.events(), v.mcastWatch.events(), v.keyWatch.events()
		if v.heard {
			front, mcast, key = nil, nil, nil
		}
		due := true // for a look
		select {
		case <-ctx.Done():
			v.act(v.handOver)
			return
		case f := <-v.calls:
			v.act(f)
			continue
		case <-v.news:
			v.act(v.hear)
			continue
		case <-v.poke:
			v.unread |= unread(v.changed.Swap(0))
		case <-v.timer.C:
			v.alarm = time.Time{}
		case _, ok := <-front:
			v.frontWatch.heard(ok)
			v.wrote = true
			due = v.pay()
		case _, ok := <-mcast:
			v.mcastWatch.heard(ok)
			due = v.pay()
		case _, ok := <-key:
			v.keyWatch.heard(ok)
			v.reconf.events++
			due = v.pay()
		}
		if due {
			gone = v.lookInTurn()
		}
		if v.heard {
			v.wakeIn(max(time.Until(v.paid), 0))
		}
	}
	v.act(v.unwatch)
}

// act does something in the vif's goroutine.
func (v *Vif) act(f func()) {
	v.turn.Do(func() { v.guard(f) })
	v.revision.update(v.gist())
}

// pay pays for a look at what the guest has written. It reports whether the look need
// not wait.
func (v *Vif) pay() bool {
	now := time.Now()
	v.heard, v.paid = true, now.Add(v.cfg.Guest.Look(now, v.quiet))
	return !v.paid.After(now)
}

// lookInTurn looks: at what the guest has written if that is paid for, and at what the
// toolstack has written in any case.
func (v *Vif) lookInTurn() (gone bool) {
	paid := v.heard && !time.Now().Before(v.paid)
	if paid {
		v.heard, v.fresh = false, false
		v.unread |= unreadFront
	}
	requests := v.requests
	v.act(func() { gone = v.look() })
	if paid {
		now := time.Now()
		v.cfg.Guest.Looked(now, v.requests-requests)
		if !v.fresh {
			v.quiet = now.Add(v.idle.ReserveN(now, 1).DelayFrom(now))
		}
	}
	return gone
}

// guard keeps a mistake in this code from costing more than this vif.
func (v *Vif) guard(f func()) {
	defer v.caught(func(err error) { v.quarantine(err) })
	f()
}

// caught, deferred, turns a panic into an error. If what is then done panics as
// well, so be it: what the connection held leaks, and the vif stays out of
// service.
func (v *Vif) caught(then func(error)) {
	r := recover()
	if r == nil {
		return
	}
	v.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	defer v.caught(func(error) {})
	then(fmt.Errorf("internal error: %v", r))
}

// wakeIn makes the vif look again after d, or earlier.
func (v *Vif) wakeIn(d time.Duration) { v.wakeAt(time.Now().Add(d)) }

// wakeAt makes the vif look again at a time, or earlier.
func (v *Vif) wakeAt(at time.Time) {
	if v.alarm.IsZero() || at.Before(v.alarm) {
		v.alarm = at
		v.timer.Reset(time.Until(at))
	}
}

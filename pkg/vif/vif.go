// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Store is what a vif needs of xenstore. *xenstore.Client is one.
type Store interface {
	Read(path string) (string, error)
	Write(path, value string) error
	Transaction(func(*xenstore.Tx) error) error
	Watch(path string) (*xenstore.Watch, error)
	IsIntroduced(domid uint16) (bool, error)
}

// DefaultGrace is how long a live frontend may take to close after the toolstack
// asked for it. libxl waits 10 s; ours is to answer within one.
const DefaultGrace = 900 * time.Millisecond

// Config is what a vif is made from.
type Config struct {
	Domid uint16
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
	Closers   *tap.Closers  // shared by all vifs
	Keeper    Keeper        // of the TAP's queues; nil: nobody
	Kept      []int         // queues that a predecessor's keeper kept; from Run on they are the vif's
	Drain     time.Duration // 0: dataplane.DefaultDrain
	Stall     time.Duration // 0: dataplane.DefaultStall
	Grace     time.Duration // 0: DefaultGrace

	ControlRings ControlRings // what is offered unless the toolstack says otherwise
	StaticGrants StaticGrants
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

	poke  chan struct{}
	calls chan func()
	news  chan struct{} // the data plane has news of link
	done  chan struct{}

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
	front      State
	hidden     bool // the frontend's directory may not be read any more
	guestMTU   string
	offer      offer
	spoke      bool // the frontend has written its state since the last plan was made
	frontWatch watch
	mcastWatch watch
	keyWatch   watch           // headroom.go
	reconf     reconfiguration // the same

	// Where the vif is. own is Unknown until the node was first read; shown
	// is what stood there last.
	own, shown State
	detachAt   time.Time // when the frontend's grace ends; zero: it stays
	rate       Rate

	// What went wrong; trouble.go.
	trouble   string      // the error that stands in the error node
	reason    string      // why the vif is quarantined
	barred    netif.Stamp // the connection that is; zero: there was none
	tried     *attempt    // what not to try again
	busySince time.Time   // since when what it needs is in use; zero: it is not

	timer   *time.Timer
	alarm   time.Time // when timer rings, zero if it does not
	free    time.Time // from when on a look is owed to nobody; see pace
	waiting bool      // for its turn to look
}

// New makes a vif. It does nothing before Run.
func New(cfg Config) *Vif {
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	v := &Vif{
		cfg: cfg, log: cfg.Log, kept: cfg.Kept,
		poke:  make(chan struct{}, 1),
		calls: make(chan func()),
		news:  make(chan struct{}, 1),
		done:  make(chan struct{}),
		timer: time.NewTimer(time.Hour),
	}
	v.Poke()
	return v
}

// Name is the name the vif's TAP is made with.
func (v *Vif) Name() string { return fmt.Sprintf("vif%d.%d", v.cfg.Domid, v.cfg.Devid) }

// Domid is the frontend's domain.
func (v *Vif) Domid() uint16 { return v.cfg.Domid }

// Devid is the number of the vif in its domain.
func (v *Vif) Devid() int { return v.cfg.Devid }

// Poke makes the vif look at xenstore again. It never blocks; pokes that come
// while one is pending are one.
func (v *Vif) Poke() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// SetStore gives the vif another connection to xenstore, after the old one was
// lost. The data path has gone on meanwhile.
func (v *Vif) SetStore(s Store) {
	v.call(context.Background(), func() {
		v.cfg.Store = s
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
// xenstored.
func (v *Vif) call(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	select {
	case v.calls <- func() { defer close(ran); f() }:
		<-ran
		return true
	case <-v.done:
	case <-ctx.Done():
	}
	return false
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
		// While the vif waits for its turn nothing wakes it that would only
		// make it look.
		poke, front, mcast, key := v.poke, v.frontWatch.events(), v.mcastWatch.events(), v.keyWatch.events()
		if v.waiting {
			poke, front, mcast, key = nil, nil, nil, nil
		}
		select {
		case <-ctx.Done():
			v.guard(v.handOver)
			return
		case f := <-v.calls:
			v.guard(f)
			continue
		case <-v.news:
			v.guard(v.hear)
			continue
		case <-poke:
		case <-v.timer.C:
			v.alarm = time.Time{}
		case _, ok := <-front:
			v.frontWatch.heard(ok)
			v.spoke = true
		case _, ok := <-mcast:
			v.mcastWatch.heard(ok)
		case _, ok := <-key:
			v.keyWatch.heard(ok)
			v.reconf.events++
		}
		wait := v.pace(time.Now())
		if v.waiting = wait > 0; v.waiting {
			v.wakeIn(wait)
			continue
		}
		v.guard(func() { gone = v.look() })
	}
	v.unwatch()
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

// A guest may write its state node as often as it likes. A vif looks at most so
// often: lookBurst times in a row, then once per lookInterval.
const (
	lookBurst    = 64
	lookInterval = 20 * time.Millisecond
)

// pace says how long to wait before looking again.
func (v *Vif) pace(now time.Time) time.Duration {
	if v.free.Before(now) {
		v.free = now
	}
	if ahead := v.free.Sub(now) - (lookBurst-1)*lookInterval; ahead > 0 {
		return ahead
	}
	v.free = v.free.Add(lookInterval)
	return 0
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

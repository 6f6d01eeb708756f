// SPDX-License-Identifier: Apache-2.0

// Package backend holds all vifs of one backend domain. It watches the domain's backend
// directory in xenstore, starts a [vif.Vif] for each device that appears there, passes
// events on to it, and keeps the connection to xenstore.
//
// The package knows the set of vifs. It must not know how a vif works, or look into
// packets.
package backend

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/loglimit"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Config holds the settings of a backend.
type Config struct {
	// Dial connects to xenstore. It is called again when the connection is lost.
	Dial func(context.Context) (*xenstore.Client, error)
	Host vif.Host
	Pool *dataplane.Pool
	Log  *zap.Logger

	vif.Options

	Kernel Kernel // nil: the kernel can serve no vifs of this domain

	// Keeper keeps the queues of TAPs while no daemon runs; nil: they are not kept.
	Keeper Keeper
	// Kept holds the files that the keeper kept for a predecessor. Run owns them. It
	// closes files whose name is unknown or that no vif needs.
	Kept []sdnotify.File
}

// maxStaticGrants bounds the pages that all guests together have mapped: half of the
// mappings that Linux allows a process by default (vm.max_map_count). Rings and the
// program need some of the others.
const maxStaticGrants = 65530 / 2

// Backend is a running backend.
type Backend struct {
	cfg     Config
	budgets *budget.Host
	keeper  *keeper // nil: no service manager keeps files

	ended    chan xenbus.VifID
	pings    chan chan<- struct{}
	requests chan request

	static *staticgrant.Budget // of all guests

	// These belong to the goroutine in Run.
	store  *xenstore.Client       // nil before the first connection
	self   xen.Domid              // our own domain
	own    string                 // its directory
	base   string                 // own + /backend/vif
	marker string                 // a node that only this instance of xenstored has; see writeMarker
	swept  bool                   // sweep was done
	kept   map[xenbus.VifID][]int // TAP queues, in order, of vifs that were not started yet

	guests map[xen.Domid]*guest // guests that have a vif

	// Only the goroutine in Run changes these. Other goroutines read them, even while
	// Run waits for an xenstored that hangs.
	mu      sync.Mutex
	vifs    map[xenbus.VifID]*vif.Vif // mu guards changes, and reads by others
	foreign map[xenbus.VifID]struct{} // vifs that netbackd does not serve; as vifs

	wg sync.WaitGroup // the vifs' goroutines
}

// New makes a backend.
func New(cfg Config) *Backend {
	return &Backend{
		cfg:     cfg,
		budgets: budget.NewHost(budget.Turns),
		static:  staticgrant.NewBudget(maxStaticGrants, nil),
		guests:  map[xen.Domid]*guest{},
		ended:   make(chan xenbus.VifID), requests: make(chan request),
		pings: make(chan chan<- struct{}),
		vifs:  map[xenbus.VifID]*vif.Vif{}, foreign: map[xenbus.VifID]struct{}{},
	}
}

// Run serves until ctx ends. Then it stops all vifs, without waiting for xenstored, so that
// a successor can adopt them. It calls ready once, when the existing vifs have been started.
// Before that, an error ends Run. After that, Run reconnects to xenstore if the connection
// is lost, and packets keep moving meanwhile.
func (b *Backend) Run(ctx context.Context, ready func()) error {
	vifCtx, stop := context.WithCancel(ctx)
	b.keeper = newKeeper(b.cfg.Keeper, b.cfg.Log)
	defer b.keeper.close(keeperTimeout)
	defer func() {
		stop()
		b.wg.Wait()
		if b.store != nil {
			_ = b.store.Close()
		}
	}()
	b.sortKept()
	defer b.closeKept()
	if err := b.dial(ctx); err != nil {
		return err
	}
	served := false
	serving := func() {
		if !served {
			served = true
			ready()
		}
	}
	for wait := redialFirst; ; {
		began := time.Now()
		err := b.session(vifCtx, serving)
		switch {
		case ctx.Err() != nil:
			return nil
		case !served:
			return err
		case time.Since(began) > redialMost:
			wait = redialFirst
		}
		b.cfg.Log.Warn("xenstore connection lost; packets keep moving", zap.Error(err))
		if !b.redial(ctx, &wait) {
			return nil
		}
		b.cfg.Log.Info("xenstore connection restored")
	}
}

// keeperTimeout bounds the time that Run waits for the service manager at the end.
const keeperTimeout = time.Second

func (b *Backend) dial(ctx context.Context) error {
	s, err := b.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	b.store = s
	return nil
}

// Pauses between attempts to reach xenstore.
const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second
)

// redial connects to xenstore again, with growing pauses, until it succeeds. It returns
// false if ctx ends first.
func (b *Backend) redial(ctx context.Context, wait *time.Duration) bool {
	_ = b.store.Close()
	pause := time.NewTimer(*wait)
	defer pause.Stop()
	logged := ""
	for {
		select {
		case <-ctx.Done():
			return false
		case k := <-b.ended:
			b.forget(k)
			continue
		case answer := <-b.pings:
			close(answer)
			continue
		case <-pause.C:
		}
		*wait = min(2**wait, redialMost)
		err := b.resume(ctx)
		if err == nil {
			return true
		}
		if text := err.Error(); text != logged {
			logged = text
			b.cfg.Log.Warn("xenstore connect failed", zap.Error(err))
		}
		pause.Reset(*wait)
	}
}

// errEmpty is returned after xenstored was restarted without its contents. Then all vifs
// seem to be removed, but the guests still run and need their network.
var errEmpty = errors.New("xenstore has come back empty; leaving the vifs as they are until netbackd is restarted")

// resume connects to xenstore again and passes the connection to the vifs.
func (b *Backend) resume(ctx context.Context) error {
	if err := b.dial(ctx); err != nil {
		return err
	}
	if err := b.checkMarker(ctx); err != nil {
		_ = b.store.Close()
		return err
	}
	for _, v := range b.vifs {
		v.SetStore(ctx, b.store)
	}
	return nil
}

// writeMarker writes a node that only this instance of xenstored has. After a reconnect
// its absence means that xenstored was restarted empty. The toolstack's nodes do not show
// that, because they are written again soon. A domain may always write below its data node.
func (b *Backend) writeMarker(ctx context.Context) error {
	b.marker = b.own + "/data/netbackd"
	err := b.store.Write(ctx, b.marker, "1")
	if errors.Is(err, xenstore.ErrPermission) {
		b.marker = b.own
		return nil
	}
	return err
}

// checkMarker returns errEmpty if xenstore has lost its contents, and with them our vifs.
func (b *Backend) checkMarker(ctx context.Context) error {
	if len(b.vifs) == 0 {
		return nil
	}
	exists, err := b.store.Exists(ctx, b.marker)
	if err == nil && !exists {
		err = errEmpty
	}
	return err
}

// session serves until a connection to xenstore is lost, or ctx ends.
func (b *Backend) session(ctx context.Context, serving func()) error {
	if err := b.findSelf(ctx); err != nil {
		return err
	}
	if err := b.writeMarker(ctx); err != nil {
		return err
	}
	dir, err := b.store.Watch(ctx, b.base)
	if err != nil {
		return err
	}
	released, err := b.watchReleases(ctx)
	if err != nil {
		return err
	}
	if err := b.scan(ctx); err != nil {
		return err
	}
	b.sweep()
	serving()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.store.Done():
			return b.store.Err()
		case e, ok := <-dir.C():
			if !ok {
				return b.store.Err()
			}
			if err := b.changed(ctx, e); err != nil {
				return err
			}
		case _, ok := <-released:
			if !ok {
				return b.store.Err()
			}
			if err := b.domainGone(ctx); err != nil {
				return err
			}
		case answer := <-b.pings:
			close(answer)
		case r := <-b.requests:
			r.done <- r.do(ctx)
		case k := <-b.ended:
			b.forget(k)
			// The directory may have been made again while the vif ended.
			if err := b.ensure(ctx, k, ""); err != nil {
				return err
			}
		}
	}
}

// sweep removes TAPs and files of vifs that were removed while no daemon ran. It does so
// once.
func (b *Backend) sweep() {
	if b.swept {
		return
	}
	b.swept = true
	b.discardKept()
	removed, err := vif.RemoveLeftovers(b.cfg.RunDir, func(id xenbus.VifID) bool { return b.vifs[id] != nil })
	if len(removed) > 0 {
		b.cfg.Log.Info("leftovers of removed vifs deleted", zap.Strings("names", removed))
	}
	if err != nil {
		b.cfg.Log.Warn("delete leftovers of removed vifs failed", zap.Error(err))
	}
}

// start starts a vif.
func (b *Backend) start(ctx context.Context, k xenbus.VifID) {
	g := b.guest(k.Domid)
	v := vif.New(vif.Config{
		ID:        k,
		Path:      b.path(k),
		ErrorPath: k.ErrorPath(b.self),
		Store:     b.store,
		Host:      b.cfg.Host,
		Pool:      b.cfg.Pool,
		Log:       loglimit.Wrap(b.cfg.Log.With(zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.Domid))), g.budget.Log, g.budget.LineCut),
		Options:   b.cfg.Options,
		Guest:     g.budget, GrantBudget: g.static,
		Keeper: b.keeper.of(g.budget),
		Kept:   b.kept[k],
		Taken:  func() bool { return b.kernelServes(k) },
	})
	delete(b.kept, k)
	b.mu.Lock()
	b.vifs[k] = v
	delete(b.foreign, k)
	b.mu.Unlock()
	b.wg.Go(func() {
		v.Run(ctx)
		select {
		case b.ended <- k:
		case <-ctx.Done():
		}
	})
}

// guest holds the budgets that all vifs of a guest share.
type guest struct {
	budget *budget.Guest
	static *staticgrant.Budget
}

func (b *Backend) guest(domid xen.Domid) *guest {
	g := b.guests[domid]
	if g == nil {
		g = &guest{b.budgets.Guest(), staticgrant.NewBudget(staticgrant.DefaultBudget, b.static)}
		b.guests[domid] = g
	}
	return g
}

// forget removes a vif that has ended from the set.
func (b *Backend) forget(k xenbus.VifID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.vifs, k)
	for other := range b.vifs {
		if other.Domid == k.Domid {
			return
		}
	}
	delete(b.guests, k.Domid)
}

// Ping waits until the goroutine in Run answers. An error alone does not mean that the
// backend hangs: the goroutine may wait for xenstored, for at most the client's timeout,
// while packets keep moving.
func (b *Backend) Ping(ctx context.Context) error {
	answer := make(chan struct{})
	select {
	case b.pings <- answer:
		<-answer
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

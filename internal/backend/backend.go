// SPDX-License-Identifier: Apache-2.0

// Package backend is the set of all vifs of one backend domain. It watches the
// domain's backend directory in xenstore, starts a [vif.Vif] for each device
// that appears there, tells it when something of its own has changed, and keeps
// the connection to xenstore.
//
// The package knows which vifs there are. What a vif does, and what a packet is,
// it must not know.
package backend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/loglimit"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Config is what a backend is made from.
type Config struct {
	// Dial connects to xenstore. It is called again when the connection is
	// lost.
	Dial func() (*xenstore.Client, error)
	Host vif.Host
	Pool *dataplane.Pool
	Log  *zap.Logger

	vif.Options

	Kernel Kernel // nil: the kernel can serve no vifs of this domain

	// Keeper keeps the queues of TAPs while no daemon runs; nil: nobody does.
	Keeper Keeper
	// Kept are the files that a predecessor's keeper hands over. Run takes them:
	// what makes no sense, and what nobody needs any more, it gives up.
	Kept []Kept
}

// Kept is a file that a [vif.Keeper] kept.
type Kept struct {
	Name string
	FD   int
}

// maxStaticGrants bounds the pages that all guests together have mapped: half of
// the mappings that Linux allows a process unless told otherwise
// (vm.max_map_count). The rings and the program need some.
const maxStaticGrants = 65530 / 2

// Backend is a running backend.
type Backend struct {
	cfg     Config
	budgets *budget.Host
	keeper  *keeper // nil: no manager keeps anything

	ended    chan key
	pings    chan chan<- struct{}
	requests chan request

	static *staticgrant.Budget // of all guests

	// Of the goroutine in Run.
	store *xenstore.Client // nil before the first
	held  func() bool      // ends that the end of Run closes store
	own   string           // our domain's path
	base  string           // own + /backend/vif
	sign  string           // a node of ours that only this xenstored has; see leaveSign
	swept bool
	kept  map[key][]int // queues for vifs that have not been found yet

	guests map[xen.Domid]*guest // that have a vif

	// Only the goroutine in Run changes vifs, and others look, also while it
	// waits for an xenstored that hangs.
	mu      sync.Mutex
	vifs    map[key]*vif.Vif // mu guards changes, and looks of others
	foreign map[key]struct{} // vifs that netbackd does not serve; mu guards it as well

	wg sync.WaitGroup // the vifs' goroutines
}

// New makes a backend.
func New(cfg Config) *Backend {
	return &Backend{
		cfg:     cfg,
		budgets: budget.NewHost(budget.Turns),
		static:  staticgrant.NewBudget(maxStaticGrants, nil),
		guests:  map[xen.Domid]*guest{},
		ended:   make(chan key), requests: make(chan request),
		pings: make(chan chan<- struct{}),
		vifs:  map[key]*vif.Vif{}, foreign: map[key]struct{}{},
	}
}

// Run serves until ctx ends. Then it stops all vifs in a way that a successor,
// or the same daemon started again, can take over. Ready is called once, when
// the vifs that were there have been found. Before that an error ends Run; after
// it, a connection to xenstore that is lost is made again, and packets keep
// moving meanwhile.
func (b *Backend) Run(ctx context.Context, ready func()) error {
	vifCtx, stop := context.WithCancel(ctx)
	b.keeper = newKeeper(b.cfg.Keeper, b.cfg.Log)
	defer b.keeper.close(endsWithin / 2)
	defer func() {
		stop()
		b.wg.Wait()
		if b.store != nil {
			b.hangUp()
		}
	}()
	b.takeKept()
	defer b.leaveKept()
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
		b.cfg.Log.Warn("lost xenstore; packets keep moving", zap.Error(err))
		if !b.redial(ctx, &wait) {
			return nil
		}
		b.cfg.Log.Info("xenstore is back")
	}
}

// endsWithin is how long what waits for xenstored, here or in a vif, may go on
// when Run is to end. xenstored may hang.
const endsWithin = 2 * time.Second

func (b *Backend) dial(ctx context.Context) error {
	s, err := b.cfg.Dial()
	if err != nil {
		return err
	}
	b.store = s
	b.held = context.AfterFunc(ctx, func() {
		time.AfterFunc(endsWithin, func() { _ = s.Close() })
	})
	return nil
}

// hangUp closes the connection to xenstore.
func (b *Backend) hangUp() {
	b.held()
	_ = b.store.Close()
}

// Pauses between attempts to reach xenstore.
const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second
)

// redial connects to xenstore again, however long it takes, with longer and
// longer pauses. It reports false if ctx ended first.
func (b *Backend) redial(ctx context.Context, wait *time.Duration) bool {
	b.hangUp()
	pause := time.NewTimer(*wait)
	defer pause.Stop()
	said := ""
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
		if text := err.Error(); text != said {
			said = text
			b.cfg.Log.Warn("no xenstore yet", zap.Error(err))
		}
		pause.Reset(*wait)
	}
}

// errEmpty: an xenstored that was started anew knows nothing, and so says of each
// vif that it is gone. The guests are still there, and need their network all the
// more.
var errEmpty = errors.New("xenstore has come back empty; leaving the vifs as they are until netbackd is restarted")

// resume connects to xenstore again and has the vifs go on with it.
func (b *Backend) resume(ctx context.Context) error {
	if err := b.dial(ctx); err != nil {
		return err
	}
	if err := b.recognise(); err != nil {
		b.hangUp()
		return err
	}
	for _, v := range b.vifs {
		v.SetStore(b.store)
	}
	return nil
}

// leaveSign leaves a sign in xenstore by which a connection made again tells
// whether it leads to the same one: what a toolstack writes does not, some of that
// is there again soon. A domain may always write below its data node.
func (b *Backend) leaveSign() error {
	b.sign = b.own + "/data/netbackd"
	err := b.store.Write(b.sign, "1")
	if errors.Is(err, xenstore.ErrPermission) {
		b.sign = b.own
		return nil
	}
	return err
}

// recognise fails if xenstore has forgotten the vifs there are.
func (b *Backend) recognise() error {
	if len(b.vifs) == 0 {
		return nil
	}
	there, err := b.store.Exists(b.sign)
	if err == nil && !there {
		err = errEmpty
	}
	return err
}

// session serves as long as one connection to xenstore lasts.
func (b *Backend) session(ctx context.Context, serving func()) error {
	if err := b.findSelf(); err != nil {
		return err
	}
	if err := b.leaveSign(); err != nil {
		return err
	}
	dir, err := b.store.Watch(b.base)
	if err != nil {
		return err
	}
	released, err := b.watchReleases()
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
			if err := b.domainGone(); err != nil {
				return err
			}
		case answer := <-b.pings:
			close(answer)
		case r := <-b.requests:
			r.done <- r.do(ctx)
		case k := <-b.ended:
			b.forget(k)
			// The directory may have come back while the vif was leaving.
			if err := b.ensure(ctx, k, ""); err != nil {
				return err
			}
		}
	}
}

// sweep removes, once, what was left of vifs that went while nobody served.
func (b *Backend) sweep() {
	if b.swept {
		return
	}
	b.swept = true
	b.dropKept()
	removed, err := vif.RemoveLeftovers(b.cfg.RunDir, func(domid xen.Domid, devid int) bool {
		return b.vifs[key{domid, devid}] != nil
	})
	if len(removed) > 0 {
		b.cfg.Log.Info("removed what was left of vifs that are gone", zap.Strings("names", removed))
	}
	if err != nil {
		b.cfg.Log.Warn("remove what was left of vifs that are gone", zap.Error(err))
	}
}

// start starts a vif.
func (b *Backend) start(ctx context.Context, k key) {
	g := b.guest(k.domid)
	v := vif.New(vif.Config{
		Domid: k.domid, Devid: k.devid,
		Path:      b.path(k),
		ErrorPath: fmt.Sprintf("%s/error/backend/vif/%d/%d/error", b.own, k.domid, k.devid),
		Store:     b.store,
		Host:      b.cfg.Host,
		Pool:      b.cfg.Pool,
		Log:       loglimit.Wrap(b.cfg.Log.With(zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.domid))), g.budget.Log, g.budget.LineCut),
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

// forget forgets a vif that has ended.
func (b *Backend) forget(k key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.vifs, k)
	for other := range b.vifs {
		if other.domid == k.domid {
			return
		}
	}
	delete(b.guests, k.domid)
}

// Ping waits until Run has nothing else to do and answers. Run may wait for
// xenstored, as long as xenstore's own limits allow, while packets keep moving: an
// error alone does not mean that anything is wrong here.
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

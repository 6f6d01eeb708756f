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
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/loglimit"
	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vif"
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

	MaxQueues int
	Offload   bool
	RunDir    string
	Drain     time.Duration
	Stall     time.Duration
}

// Bounds on what one vif writes into the log.
const (
	logBurst = 20
	logRate  = 10 // lines per second
)

// closers bounds how many TAPs are closed at a time. One takes some 15 ms, nearly
// all of it waiting, so a host that stops with a thousand guests needs many.
const closers = 32

// Backend is a running backend.
type Backend struct {
	cfg     Config
	closers *tap.Closers

	calls chan func()
	ended chan key
	done  chan struct{}

	// Of the goroutine in Run.
	store *xenstore.Client
	own   string // our domain's path
	base  string // own + /backend/vif
	vifs  map[key]*vif.Vif
	wg    sync.WaitGroup
}

// key names a vif.
type key struct {
	domid uint16
	devid int
}

// New makes a backend.
func New(cfg Config) *Backend {
	return &Backend{
		cfg:     cfg,
		closers: tap.NewClosers(closers),
		calls:   make(chan func()),
		ended:   make(chan key),
		done:    make(chan struct{}),
		vifs:    map[key]*vif.Vif{},
	}
}

// Run serves until ctx ends. Then it stops all vifs in a way that a successor,
// or the same daemon started again, can take over. Ready is called once, when
// the vifs that were there have been found.
func (b *Backend) Run(ctx context.Context, ready func()) error {
	defer close(b.done)
	vifCtx, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		b.waitVifs()
		if b.store != nil {
			_ = b.store.Close()
		}
	}()
	for {
		err := b.session(vifCtx, ready)
		if ctx.Err() != nil {
			return nil
		}
		if ready != nil && b.store == nil {
			return err // never worked: the caller says what is missing
		}
		ready = nil
		b.cfg.Log.Warn("lost xenstore; packets keep moving", zap.Error(err))
		if !b.redial(ctx) {
			return nil
		}
		b.cfg.Log.Info("xenstore is back")
	}
}

// redial connects to xenstore again, however long it takes.
func (b *Backend) redial(ctx context.Context) bool {
	const most = 2 * time.Second
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, most) {
		select {
		case <-ctx.Done():
			return false
		case f := <-b.calls:
			f()
			continue
		case k := <-b.ended:
			delete(b.vifs, k)
			continue
		case <-time.After(wait):
		}
		s, err := b.cfg.Dial()
		if err != nil {
			continue
		}
		b.store = s
		for _, v := range b.vifs {
			v.SetStore(s)
		}
		return true
	}
}

// session serves as long as one connection to xenstore lasts.
func (b *Backend) session(ctx context.Context, ready func()) error {
	if b.store == nil {
		s, err := b.cfg.Dial()
		if err != nil {
			return err
		}
		b.store = s
	}
	defer func() { _ = b.store.Close() }()
	if err := b.findSelf(); err != nil {
		return err
	}
	dir, err := b.store.Watch(b.base)
	if err != nil {
		return err
	}
	released, err := b.store.Watch("@releaseDomain")
	if err != nil {
		return err
	}
	if err := b.scan(ctx); err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
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
		case <-released.C():
			// It does not say which domain. Each vif looks for itself.
			for _, v := range b.vifs {
				v.Poke()
			}
		case k := <-b.ended:
			delete(b.vifs, k)
			// The directory may have come back while the vif was leaving.
			if err := b.ensure(ctx, k); err != nil {
				return err
			}
		case f := <-b.calls:
			f()
		}
	}
}

// findSelf finds our own domain's path.
func (b *Backend) findSelf() error {
	domid := uint16(0)
	s, err := b.store.Read("domid")
	switch {
	case err == nil:
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return fmt.Errorf("own domid is %q", s)
		}
		domid = uint16(n)
	case errors.Is(err, xenstore.ErrNotExist), errors.Is(err, xenstore.ErrInvalid):
		// Only dom0 may have no such node.
	default:
		return err
	}
	b.own = xenstore.DomainPath(domid)
	b.base = b.own + "/backend/vif"
	return nil
}

// changed handles an event below the base directory.
func (b *Backend) changed(ctx context.Context, e xenstore.Event) error {
	if e.Overflow {
		return b.scan(ctx)
	}
	rest, ok := strings.CutPrefix(e.Path, b.base+"/")
	if !ok {
		return b.scan(ctx)
	}
	dom, rest, ok := strings.Cut(rest, "/")
	dev, _, _ := strings.Cut(rest, "/")
	if !ok || dev == "" {
		return b.scan(ctx) // a whole guest came or went
	}
	k, ok := parseKey(dom, dev)
	if !ok {
		return nil
	}
	return b.ensure(ctx, k)
}

func parseKey(dom, dev string) (k key, ok bool) {
	d, err := strconv.ParseUint(dom, 10, 16)
	if err != nil {
		return k, false
	}
	n, err := strconv.ParseUint(dev, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != dev || strconv.FormatUint(d, 10) != dom {
		return k, false
	}
	return key{uint16(d), int(n)}, true
}

// ensure pokes the vif, or starts it if it is new and its directory is there.
func (b *Backend) ensure(ctx context.Context, k key) error {
	if v := b.vifs[k]; v != nil {
		v.Poke()
		return nil
	}
	there, err := b.store.Exists(b.path(k) + "/state")
	if err != nil || !there {
		return err
	}
	b.start(ctx, k)
	return nil
}

func (b *Backend) path(k key) string {
	return fmt.Sprintf("%s/%d/%d", b.base, k.domid, k.devid)
}

func (b *Backend) start(ctx context.Context, k key) {
	name := fmt.Sprintf("vif%d.%d", k.domid, k.devid)
	v := vif.New(vif.Config{
		Domid: k.domid, Devid: k.devid,
		Path:      b.path(k),
		ErrorPath: fmt.Sprintf("%s/error/backend/vif/%d/%d/error", b.own, k.domid, k.devid),
		Store:     b.store,
		Host:      b.cfg.Host,
		Pool:      b.cfg.Pool,
		Log:       loglimit.Wrap(b.cfg.Log.With(zap.String("vif", name), zap.Uint16("domid", k.domid)), logBurst, logRate),
		MaxQueues: b.cfg.MaxQueues,
		Offload:   b.cfg.Offload,
		RunDir:    b.cfg.RunDir,
		Closers:   b.closers,
		Drain:     b.cfg.Drain,
		Stall:     b.cfg.Stall,
	})
	b.vifs[k] = v
	b.wg.Go(func() {
		v.Run(ctx)
		select {
		case b.ended <- k:
		case <-ctx.Done():
		}
	})
}

// scan finds all vifs there are, and has those look that are known already.
func (b *Backend) scan(ctx context.Context) error {
	for _, v := range b.vifs {
		v.Poke()
	}
	doms, err := b.list(b.base)
	if err != nil {
		return err
	}
	for _, dom := range doms {
		devs, err := b.list(b.base + "/" + dom)
		if err != nil {
			return err
		}
		for _, dev := range devs {
			k, ok := parseKey(dom, dev)
			if !ok || b.vifs[k] != nil {
				continue
			}
			if err := b.ensure(ctx, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// list lists a directory that may not be there.
func (b *Backend) list(path string) ([]string, error) {
	names, err := b.store.List(path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// waitVifs waits until all vifs have handed over.
func (b *Backend) waitVifs() {
	b.wg.Wait()
}

// do runs f in the goroutine of Run.
func (b *Backend) do(f func()) bool {
	ran := make(chan struct{})
	select {
	case b.calls <- func() { defer close(ran); f() }:
		<-ran
		return true
	case <-b.done:
		return false
	}
}

// snapshot is the vifs there are, by domain and number.
func (b *Backend) snapshot() []*vif.Vif {
	var list []*vif.Vif
	b.do(func() {
		for _, v := range b.vifs {
			list = append(list, v)
		}
	})
	sort.Slice(list, func(i, j int) bool {
		if list[i].Domid() != list[j].Domid() {
			return list[i].Domid() < list[j].Domid()
		}
		return list[i].Devid() < list[j].Devid()
	})
	return list
}

// List is the status of all vifs.
func (b *Backend) List() []vif.Status {
	list := []vif.Status{}
	for _, v := range b.snapshot() {
		if s, ok := v.Status(); ok {
			list = append(list, s)
		}
	}
	return list
}

// ErrNoVif is returned for a vif that does not exist.
var ErrNoVif = errors.New("no such vif")

// Reset lets the quarantined vif of that name try again.
func (b *Backend) Reset(name string) error {
	for _, v := range b.snapshot() {
		if v.Name() == name {
			return v.Reset()
		}
	}
	return fmt.Errorf("%s: %w", name, ErrNoVif)
}

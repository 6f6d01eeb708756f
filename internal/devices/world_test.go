// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

var errNoDisk = errors.New("no such disk")

// fake is a device that serves nothing. It ends when its directory is gone.
type fake struct {
	id    xenbus.DeviceID
	path  string
	poke  chan struct{}
	ended chan struct{}

	mu    sync.Mutex // guards all below
	store *xenstore.Client
	keys  []string // of Changed
	reset int
}

func (f *fake) Run(ctx context.Context) {
	defer close(f.ended)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.poke:
		}
		f.mu.Lock()
		s := f.store
		f.mu.Unlock()
		if there, err := s.Exists(ctx, f.path+"/state"); err == nil && !there {
			return
		}
	}
}

func (f *fake) Changed(key string) {
	f.mu.Lock()
	f.keys = append(f.keys, key)
	f.mu.Unlock()
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

func (f *fake) SetStore(_ context.Context, s *xenstore.Client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store = s
}

func (f *fake) Status(context.Context) (string, bool) {
	select {
	case <-f.ended:
		return "", false
	default:
		return f.id.String(), true
	}
}

func (f *fake) AwaitChange(context.Context, uint64) {}

func (f *fake) Reset(context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset++
	return true
}

// fakeKind wants the devices whose key script is ours. Sweep leaves something this many times.
type fakeKind struct {
	gone  chan xen.Domid
	inUse *int
}

func (fakeKind) New(s Slot) *fake {
	return &fake{id: s.ID, path: s.Path, store: s.Store, poke: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (fakeKind) Wants(ctx context.Context, s *xenstore.Client, path string) (bool, error) {
	script, err := s.Read(ctx, path+"/script")
	if errors.Is(err, xenstore.ErrNotExist) {
		return false, nil
	}
	return script == "ours", err
}

func (fakeKind) CanAdopt(context.Context, *xenstore.Client, string) error { return nil }
func (k fakeKind) GuestGone(domid xen.Domid)                              { k.gone <- domid }

func (k fakeKind) Sweep(func(xenbus.DeviceID) bool) bool {
	if k.inUse == nil || *k.inUse == 0 {
		return false
	}
	*k.inUse--
	return true
}

func (fakeKind) Other(id xenbus.DeviceID, why Reason) string {
	return id.String() + ": " + [...]string{NotWanted: "not wanted", KernelTakes: "kernel", OverLimit: "over limit"}[why]
}

func (fakeKind) Silent(s, text string) string { return s + text }

// fakeKernel takes disks of the class vbd while it is loaded.
type fakeKernel struct {
	mu     sync.Mutex // guards all below
	loaded bool
	has    map[xenbus.DeviceID]bool
}

func (k *fakeKernel) Takes(c xenbus.Class) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loaded && c == xenbus.VBD
}

func (k *fakeKernel) Serves(id xenbus.DeviceID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.has[id]
}

func (k *fakeKernel) set(loaded bool, has ...xenbus.DeviceID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loaded, k.has = loaded, map[xenbus.DeviceID]bool{}
	for _, id := range has {
		k.has[id] = true
	}
}

type testSet = Set[*fake, string]

// world is an xenstored with a toolstack, and a Set that serves disks of two classes.
type world struct {
	t      *testing.T
	srv    *store.Server
	tool   *xenstore.Client
	kernel *fakeKernel
	gone   chan xen.Domid
	log    *observer.ObservedLogs
	limit  int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, srv: store.New(store.Options{}), kernel: &fakeKernel{}, gone: make(chan xen.Domid, 64)}
	t.Cleanup(func() { w.must(w.srv.Close()) })
	c, closed := w.connect()
	w.tool = c
	t.Cleanup(func() { w.must(c.Close()); <-closed })
	w.must(w.tool.Write(t.Context(), "/local/domain/0/domid", "0"))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect() (c *xenstore.Client, closed <-chan struct{}) {
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); _ = w.srv.ServeConn(theirs, 0, xenstore.Socket) }()
	return xenstore.New(ours, xenstore.Socket), served
}

func (w *world) dial(context.Context) (*xenstore.Client, error) {
	c, _ := w.connect()
	return c, nil
}

// set makes a Set that does not run yet.
func (w *world) set() *testSet {
	core, log := observer.New(zapcore.InfoLevel)
	w.log = log
	return New(Config[*fake, string]{
		Words: Words{
			Program: "diskd", One: "disk", Many: "disks", Example: "vbd-1-51712", Config: "disk=[...]",
			Driver: "xen-blkback", Lives: "disks are served",
		},
		Kind: fakeKind{gone: w.gone}, Classes: []xenbus.Class{xenbus.VBD, xenbus.VBD3},
		Dial: w.dial, Log: zap.New(core), Budgets: budget.NewHost(1),
		Kernel: w.kernel, Claimed: "claimed", NotFound: errNoDisk, MaxPerGuest: w.limit,
	})
}

// start runs a Set and returns it when it is ready. stop ends it and waits.
func (w *world) start() (s *testSet, stop func()) {
	w.t.Helper()
	s = w.set()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		w.must(<-ended)
	})
	w.t.Cleanup(stop)
	<-ready
	return s, stop
}

func vbd(domid xen.Domid, devid int) xenbus.DeviceID {
	return xenbus.DeviceID{Class: xenbus.VBD, Domid: domid, Devid: devid}
}

func vbd3(domid xen.Domid, devid int) xenbus.DeviceID {
	return xenbus.DeviceID{Class: xenbus.VBD3, Domid: domid, Devid: devid}
}

// attach makes a device with a script.
func (w *world) attach(id xenbus.DeviceID, script string) {
	w.t.Helper()
	w.must(w.tool.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		return errors.Join(
			tx.Write(w.t.Context(), id.BackendPath(0)+"/script", script),
			tx.Write(w.t.Context(), id.BackendPath(0)+"/state", "1"),
		)
	}))
}

func (w *world) detach(id xenbus.DeviceID) {
	w.t.Helper()
	w.must(w.tool.Remove(w.t.Context(), id.BackendPath(0)))
}

// node returns a node of a device's directory, "-" if it is missing.
func (w *world) node(id xenbus.DeviceID, key string) string {
	w.t.Helper()
	v, err := w.tool.Read(w.t.Context(), id.BackendPath(0)+"/"+key)
	if errors.Is(err, xenstore.ErrNotExist) {
		return "-"
	}
	w.must(err)
	return v
}

// await waits until the list has exactly these lines.
func (w *world) await(s *testSet, want ...string) {
	w.t.Helper()
	var diff string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if diff = cmp.Diff(strings.Join(want, "\n"), strings.Join(s.List(), "\n")); diff == "" {
			return
		}
	}
	w.t.Fatalf("unexpected list (-want +got):\n%s", diff)
}

// served returns the names of the devices in the set, in order.
func served(s *testSet) (names []string) {
	for _, id := range slices.SortedFunc(maps.Keys(s.devices), xenbus.DeviceID.Compare) {
		names = append(names, fmt.Sprint(id))
	}
	return names
}

// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// world is a host: a real xenstored that can be cut off and come back, a
// toolstack, and a backend that serves. Its vifs never connect, for that needs no
// backend; they make TAPs in a network of their own and show InitWait.
type world struct {
	t      *testing.T
	srv    *store.Server
	tool   *xenstore.Client
	log    *observer.ObservedLogs
	pool   *dataplane.Pool
	dir    string
	self   xen.Domid // the backend's domain
	kernel Kernel

	keeper Keeper          // of backends made from now on
	kept   []sdnotify.File // given to the next backend

	mu    sync.Mutex         // guards all below
	down  error              // why xenstore cannot be reached
	given *xenstore.Client   // the next result of dial
	conns []*xenstore.Client // the backend's
}

func newWorld(t *testing.T) *world {
	t.Helper()
	netns.NeedTUN(t)
	w := &world{t: t, srv: store.New(store.Options{}), dir: t.TempDir()}
	t.Cleanup(func() { w.must(w.srv.Close()) })
	w.tool = w.connect(0, xenstore.Socket)
	w.must(w.tool.Write(t.Context(), "/local/domain/0/domid", "0"))
	pool, err := dataplane.NewPool(dataplane.Options{Workers: 1, NoUring: true})
	w.must(err)
	w.pool = pool
	t.Cleanup(pool.Close)
	t.Cleanup(func() { // remove the TAPs that a test left to successors
		for name := range w.taps() {
			w.must(netns.Delete(name))
		}
	})
	return w
}

// newWorldServer starts another xenstored with the content it has after boot.
func newWorldServer(t *testing.T) *store.Server {
	s := store.New(store.Options{})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect(domid xen.Domid, kind xenstore.Kind) *xenstore.Client {
	srv := w.srv
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.ServeConn(theirs, domid, kind) }()
	c := xenstore.New(ours, kind)
	w.t.Cleanup(func() { w.must(c.Close()); <-served })
	return c
}

// dial connects the backend to xenstore.
func (w *world) dial(context.Context) (*xenstore.Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return nil, w.down
	}
	if c := w.given; c != nil {
		w.given = nil
		return c, nil
	}
	kind := xenstore.Socket
	if w.self != 0 {
		kind = xenstore.Xenbus
	}
	c := w.connect(w.self, kind)
	w.conns = append(w.conns, c)
	return c, nil
}

// dials returns how often the backend has connected.
func (w *world) dials() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// cut ends the backend's connection to xenstore. The backend gets no other until mend.
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = errors.New("xenstored is down")
	w.must(w.conns[len(w.conns)-1].Close())
}

// hang replaces the backend's connection with one that takes requests and answers none.
// It returns when the backend has sent a request on it. letGo gives the backend a
// working connection again.
func (w *world) hang() (letGo func()) {
	w.cut()
	ours, theirs := net.Pipe()
	asked := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 64)
		if n, _ := theirs.Read(buf); n > 0 {
			close(asked)
		}
		_, _ = io.Copy(io.Discard, theirs)
	}()
	c := xenstore.New(ours, xenstore.Socket)
	w.mu.Lock()
	w.down, w.given = nil, c
	w.mu.Unlock()
	<-asked
	return func() {
		w.must(c.Close())
		<-ended
	}
}

func (w *world) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = nil
}

// backend makes a backend that does not run yet.
func (w *world) backend() *Backend {
	core, log := observer.New(zapcore.InfoLevel)
	w.log = log
	kept := w.kept
	w.kept = nil
	return New(Config{
		Keeper: w.keeper, Kept: kept,
		Dial: w.dial, Engine: &netengine.Local{Pool: w.pool, Host: noHost{}}, Log: zap.New(core),
		Options: vif.Options{MaxQueues: 2, Offload: true, RunDir: w.dir}, Kernel: w.kernel,
	})
}

// start runs a backend and returns it when it is ready. stop ends it and waits.
func (w *world) start() (b *Backend, stop func()) {
	w.t.Helper()
	b = w.backend()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		w.must(<-ended)
	})
	w.t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		w.t.Fatalf("the backend ended: %v", err)
	}
	return b, stop
}

// noHost refuses every event channel and grant.
type noHost struct{}

func (noHost) Grants() netengine.Grants { return nil }

func (noHost) OpenMapper() (netengine.Mapper, error) { return nil, errors.New("no grants") }

func (noHost) OpenEvents(xen.Domid) (netengine.Events, error) {
	return nil, errors.New("no event channels")
}

func (w *world) back(domid, devid int) string {
	return fmt.Sprintf("/local/domain/%d/backend/vif/%d/%d", w.self, domid, devid)
}

// attach makes a vif as the toolstack does, and the guest unless it exists.
func (w *world) attach(domid, devid int) {
	w.t.Helper()
	w.guest(domid)
	front := fmt.Sprintf("/local/domain/%d/device/vif/%d", domid, devid)
	w.must(w.tool.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		for path, value := range map[string]string{
			w.back(domid, devid) + "/frontend": front, w.back(domid, devid) + "/online": "1",
			w.back(domid, devid) + "/state": "1", w.back(domid, devid) + "/hotplug-status": "",
			front + "/backend": w.back(domid, devid), front + "/state": "1",
		} {
			if err := tx.Write(w.t.Context(), path, value); err != nil {
				return err
			}
		}
		return nil
	}))
}

// guest makes a domain, unless it is there.
func (w *world) guest(domid int) {
	w.t.Helper()
	w.srv.DomainCreated(xen.Domid(domid))
	there, err := w.tool.IsIntroduced(w.t.Context(), xen.Domid(domid))
	w.must(err)
	if !there {
		w.must(w.tool.Introduce(w.t.Context(), xen.Domid(domid), 1, 1))
	}
}

// detach removes a vif as the toolstack does by force.
func (w *world) detach(domid, devid int) {
	w.t.Helper()
	w.must(w.tool.Remove(w.t.Context(), w.back(domid, devid)))
}

// taps returns the index of each vif's interface by its name.
func (w *world) taps() map[string]int {
	w.t.Helper()
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // it changed meanwhile
		links, err = netlink.LinkList()
	}
	w.must(err)
	taps := map[string]int{}
	for _, l := range links {
		if l.Type() == "tuntap" {
			taps[l.Attrs().Name] = l.Attrs().Index
		}
	}
	return taps
}

// await waits until the backend serves exactly these vifs, each in InitWait, and their
// interfaces exist.
func (w *world) await(b *Backend, names ...string) {
	w.t.Helper()
	want := strings.Join(names, " ")
	var got string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var serves []string
		for _, s := range b.List() {
			if s.State == xenbus.InitWait {
				serves = append(serves, s.Name)
			} else {
				serves = append(serves, fmt.Sprintf("%s(%v: %s)", s.Name, s.State, s.Error))
			}
		}
		if got = strings.Join(serves, " "); got != want {
			continue
		}
		taps := w.taps()
		all := len(taps) == len(names)
		for _, n := range names {
			all = all && taps[n] != 0
		}
		if all {
			return
		}
		got += fmt.Sprintf(", with interfaces %v", taps)
	}
	w.t.Fatalf("the backend serves %q, want %q", got, want)
}

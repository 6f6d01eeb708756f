// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

const (
	domid    = 7
	backDir  = "/local/domain/0/backend/vif/7/0"
	errorKey = "/local/domain/0/error/backend/vif/7/0/error"
	ifname   = "vif7.0"
)

var testID = xenbus.VifID{Domid: domid}

// world is a host with one vif: a real xenstored, real TAPs in a network of their own,
// and a fake Xen. Tests tell its toolstack and its guest what to do.
//
// The vif does not run. A test makes it reconcile and sees the result; see settle. So
// tests need not wait, except where waiting is their subject.
type world struct {
	t     *testing.T
	srv   *store.Server
	tool  *xenstore.Client // the toolstack's, domain 0
	guest *xenstore.Client // the guest's
	xs    *hookedStore     // the vif's
	host  fakeHost
	pool  *dataplane.Pool
	log   *observer.ObservedLogs
	cfg   Config
	v     *Vif

	conns []queueKeys
	tx    []*netif.TxFront
	rx    []*netif.RxFront
	next  xen.Gref
}

// hookedStore is a connection that tests can observe and interrupt.
type hookedStore struct {
	*xenstore.Client
	commit func(tx *xenstore.Tx) // before each transaction ends
	reads  int
	read   func() // before each read
	watch  func(path string) error
	alive  func() (bool, error)
}

func (s *hookedStore) Read(ctx context.Context, path string) (string, error) {
	s.reads++
	if s.read != nil {
		s.read()
	}
	return s.Client.Read(ctx, path)
}

func (s *hookedStore) WatchNode(ctx context.Context, path string) (*xenstore.Watch, error) {
	if s.watch != nil {
		if err := s.watch(path); err != nil {
			return nil, &xenstore.Error{Op: "WATCH", Path: path, Err: err}
		}
	}
	return s.Client.WatchNode(ctx, path)
}

func (s *hookedStore) IsIntroduced(ctx context.Context, id xen.Domid) (bool, error) {
	if s.alive != nil {
		return s.alive()
	}
	return s.Client.IsIntroduced(ctx, id)
}

func (s *hookedStore) Transaction(ctx context.Context, f func(*xenstore.Tx) error) error {
	return s.Client.Transaction(ctx, func(tx *xenstore.Tx) error {
		err := f(tx)
		if err == nil && s.commit != nil {
			s.commit(tx)
		}
		return err
	})
}

// newWorld makes a world whose toolstack has not made the vif yet.
func newWorld(t *testing.T) *world {
	t.Helper()
	netns.NeedTUN(t)
	w := &world{t: t, srv: store.New(store.Options{}), host: newFakeHost(t, domid), next: 8}
	t.Cleanup(func() { w.must(w.srv.Close()) })
	w.tool = w.connect(0)
	w.xs = &hookedStore{Client: w.connect(0)}
	w.srv.DomainCreated(domid)
	w.must(w.tool.Mkdir(t.Context(), "/local/domain/0"))
	w.must(w.tool.Introduce(t.Context(), domid, 1, 1))
	w.guest = w.connect(domid)
	pool, err := dataplane.NewPool(dataplane.Options{Workers: 1, NoUring: true})
	w.must(err)
	t.Cleanup(pool.Close)
	w.pool = pool
	core, log := observer.New(zapcore.DebugLevel)
	w.log = log
	w.cfg = Config{
		ID: testID, Path: backDir, ErrorPath: errorKey,
		Store: w.xs, Engine: &netengine.Local{Pool: pool, Host: w.host}, Log: zap.New(core),
		Options: Options{MaxQueues: testMaxQueues, Offload: true, RunDir: t.TempDir()},
	}
	w.v = New(w.cfg)
	t.Cleanup(func() {
		w.v.suspend()
		_ = removeTapNamed(ifname)
		_ = removeTapNamed(altName(testID))
	})
	return w
}

// connect connects a domain to xenstore.
func (w *world) connect(id xen.Domid) *xenstore.Client {
	ours, theirs := net.Pipe()
	kind := xenstore.Socket
	if id != 0 {
		kind = xenstore.Xenbus
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = w.srv.ServeConn(theirs, id, kind) }()
	c := xenstore.New(ours, kind)
	w.t.Cleanup(func() { w.must(c.Close()); <-served })
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// attach makes the vif as libxl does, with other keys if given: pairs of key and value,
// "-" for no key.
func (w *world) attach(pairs ...string) {
	w.t.Helper()
	back := keyMap{
		"frontend": frontDir, "frontend-id": "7", "online": "1", "state": "1",
		"script": "/etc/xen/scripts/vif-bridge", "mac": "00:16:3e:01:02:03",
		"bridge": "xenbr0", "handle": "0", "type": "vif", "hotplug-status": "",
	}.with(pairs...)
	front := keyMap{"backend": backDir, "backend-id": "0", "state": "1", "handle": "0", "mac": "00:16:3e:01:02:03"}
	w.must(w.tool.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		for _, d := range []struct {
			dir   string
			perms []xenstore.Perm
			keys  keyMap
		}{
			{backDir, []xenstore.Perm{{Domid: 0, Access: xenstore.AccessNone}, {Domid: domid, Access: xenstore.AccessRead}}, back},
			{frontDir, []xenstore.Perm{{Domid: domid, Access: xenstore.AccessNone}, {Domid: 0, Access: xenstore.AccessRead}}, front},
		} {
			if err := tx.Mkdir(w.t.Context(), d.dir); err != nil {
				return err
			}
			if err := tx.SetPermissions(w.t.Context(), d.dir, d.perms); err != nil {
				return err
			}
			for k, v := range d.keys {
				if err := tx.Write(w.t.Context(), d.dir+"/"+k, v); err != nil {
					return err
				}
			}
		}
		return nil
	}))
}

// detach asks for the removal of the vif, as the toolstack does.
func (w *world) detach() {
	w.t.Helper()
	w.must(w.tool.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		if err := tx.Write(w.t.Context(), backDir+"/online", "0"); err != nil {
			return err
		}
		s, err := tx.Read(w.t.Context(), backDir+"/state")
		if err != nil || s == "6" {
			return err
		}
		return tx.Write(w.t.Context(), backDir+"/state", "5")
	}))
}

// plugIn writes that the hotplug script is done.
func (w *world) plugIn() {
	w.t.Helper()
	w.must(w.tool.Write(w.t.Context(), backDir+"/hotplug-status", "connected"))
}

// frontState writes the state of the frontend.
func (w *world) frontState(s xenbus.State) {
	w.t.Helper()
	w.must(w.guest.Write(w.t.Context(), frontDir+"/state", s.Value()))
}

// rings makes rings for n queues in the guest and publishes them.
func (w *world) rings(n int, split bool, pairs ...string) {
	w.t.Helper()
	keys := keyMap{"request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1"}
	w.conns, w.tx, w.rx = nil, nil, nil
	for i := range n {
		prefix := ""
		if n > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		q := queueKeys{txGref: w.next, rxGref: w.next + 1, txPort: evtchn.Port(w.next), rxPort: evtchn.Port(w.next)}
		if split {
			q.rxPort++
		}
		w.next += 2
		tx, err := netif.InitTx(w.host.GrantAt(q.txGref, gntdev.ReadWrite))
		w.must(err)
		rx, err := netif.InitRx(w.host.GrantAt(q.rxGref, gntdev.ReadWrite))
		w.must(err)
		w.tx, w.rx, w.conns = append(w.tx, tx), append(w.rx, rx), append(w.conns, q)
		keys[prefix+"tx-ring-ref"], keys[prefix+"rx-ring-ref"] = fmt.Sprint(q.txGref), fmt.Sprint(q.rxGref)
		w.host.OfferAt(q.txPort)
		if split {
			w.host.OfferAt(q.rxPort)
			keys[prefix+"event-channel-tx"], keys[prefix+"event-channel-rx"] = fmt.Sprint(q.txPort), fmt.Sprint(q.rxPort)
			keys[prefix+"event-channel"] = "-"
		} else {
			keys[prefix+"event-channel"] = fmt.Sprint(q.txPort)
			keys[prefix+"event-channel-tx"], keys[prefix+"event-channel-rx"] = "-", "-"
		}
	}
	keys["multi-queue-num-queues"] = strconv.Itoa(n)
	for i := 0; i < len(pairs); i += 2 {
		keys[pairs[i]] = pairs[i+1]
	}
	w.must(w.guest.Transaction(w.t.Context(), func(tx *xenstore.Tx) error {
		for k, v := range keys {
			var err error
			if v == "-" {
				err = tx.Remove(w.t.Context(), frontDir+"/"+k)
			} else {
				err = tx.Write(w.t.Context(), frontDir+"/"+k, v)
			}
			if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
				return err
			}
		}
		return nil
	}))
}

// settle makes the vif reconcile until it has nothing left to do, and returns its steps. So
// every test also checks that reconciling ends.
func (w *world) settle() string {
	w.t.Helper()
	var all []string
	for i := range 5 {
		steps, gone := w.look()
		if gone {
			return strings.Join(append(all, "gone"), " ")
		}
		// These steps are repeated each time, without effect.
		busy := slices.ContainsFunc(steps, func(s string) bool {
			return s != "unregister" && s != "grace" && s != "reconfigured" && s != "await-key" && s != "tap"
		})
		if busy || i == 0 {
			all = append(all, steps...)
		}
		if !busy {
			return strings.Join(all, " ")
		}
	}
	w.t.Fatalf("the vif does not come to rest: %v", all)
	return ""
}

// look makes the vif reconcile once.
func (w *world) look() (steps []string, gone bool) {
	w.log.TakeAll()
	w.v.unread = unreadAll
	w.v.guard(w.t.Context(), func() { gone = w.v.reconcile(w.t.Context()) })
	for _, e := range w.log.FilterMessage("step").All() {
		steps = append(steps, e.ContextMap()["step"].(string))
	}
	return steps, gone
}

// wantSteps settles and checks the steps.
func (w *world) wantSteps(want string) {
	w.t.Helper()
	if got := w.settle(); got != want {
		w.t.Errorf("got steps %q, want %q; error node: %q", got, want, w.get(errorKey))
	}
}

// get reads a node; "-" is none.
func (w *world) get(path string) string {
	w.t.Helper()
	v, err := w.tool.Read(w.t.Context(), path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return "-"
	}
	w.must(err)
	return v
}

// wantState checks the vif's state node; "-" is none.
func (w *world) wantState(want string) {
	w.t.Helper()
	if got := w.get(backDir + "/state"); got != want {
		w.t.Errorf("state node is %q, want %q; error node: %q", got, want, w.get(errorKey))
	}
}

// wantError checks the error node.
func (w *world) wantError(want string) {
	w.t.Helper()
	if got := w.get(errorKey); got != want {
		w.t.Errorf("error node is %q, want %q", got, want)
	}
}

// wantHeld checks the guest's pages and ports that the backend has mapped and bound.
func (w *world) wantHeld(want string) {
	w.t.Helper()
	if got := w.host.held(); got != want {
		w.t.Errorf("the backend holds %s, want %s", got, want)
	}
}

// iface returns an interface, nil if there is none.
func (w *world) iface(name string) *netlink.Tuntap {
	w.t.Helper()
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	w.must(err)
	return l.(*netlink.Tuntap)
}

// wantTap checks the number of attached queues of the interface; 0 is no interface.
func (w *world) wantTap(queues int) {
	w.t.Helper()
	switch l := w.iface(ifname); {
	case l == nil && queues != 0:
		w.t.Errorf("no %s", ifname)
	case l != nil && l.Queues != queues:
		w.t.Errorf("%s has %d attached and %d detached queues, want %d attached", ifname, l.Queues, l.DisabledQueues, queues)
	}
}

// wantTapAtRest checks that there is an interface, and that all its queues are
// detached.
func (w *world) wantTapAtRest() {
	w.t.Helper()
	if l := w.iface(ifname); l == nil || l.Queues != 0 || l.DisabledQueues == 0 {
		w.t.Errorf("%s is %+v, want one at rest", ifname, l)
	}
}

// status returns the status of the vif.
func (w *world) status() Status { return w.v.status() }

// up attaches the vif and connects it with n queues.
func (w *world) up(n int) {
	w.t.Helper()
	w.attach()
	w.wantSteps("publish init-wait")
	w.plugIn()
	w.rings(n, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.wantState("4")
}

// journals lists the files of connections in the run directory.
func (w *world) journals() string {
	w.t.Helper()
	files, err := os.ReadDir(w.cfg.RunDir)
	w.must(err)
	var names []string
	for _, f := range files {
		if f.Name() != recordName(testID) { // it belongs to the device
			names = append(names, f.Name())
		}
	}
	return strings.Join(names, " ")
}

// handleNotices waits for notices of the data plane and makes the vif handle them. Only
// broken code reaches the limit.
func (w *world) handleNotices() {
	w.t.Helper()
	select {
	case <-w.v.notices:
		w.v.guard(w.t.Context(), func() { w.v.handleNotices(w.t.Context()) })
	case <-time.After(10 * time.Second):
		w.t.Fatal("the data plane has no notices")
	}
}

// eventually waits until ok returns true, because of other goroutines.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// failingStore fails transactions while *fail is set.
type failingStore struct {
	Store
	fail *bool
}

func (s *failingStore) Transaction(ctx context.Context, f func(*xenstore.Tx) error) error {
	if *s.fail {
		return &xenstore.Error{Op: "TRANSACTION_START", Err: xenstore.ErrQuota}
	}
	return s.Store.Transaction(ctx, f)
}

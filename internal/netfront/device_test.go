// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/packettest"
	"github.com/netbackd/netbackd/internal/xensim"
	"github.com/netbackd/netbackd/internal/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// The tests of this file run in the embedded Xen, against the smallest backend
// that goes through the states as xen-netback does.

// xen is an embedded Xen with a guest.
type xen struct {
	t     *testing.T
	store *xenstore.Client // dom0's
	dom0  *simclient.Conn
	domid uint16
	guest Host
	table gnttab.Table

	stopBackend func()
}

// checkedPages adds what a guest's kernel sees in its grant table.
type checkedPages struct {
	*simclient.Pages
	table gnttab.Table
}

func (p checkedPages) InUse(ref netif.Gref) (bool, error) {
	return p.table.Head(ref).Flags()&(gnttab.Reading|gnttab.Writing) != 0, nil
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newXen(t *testing.T) *xen {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- xensim.Run(ctx, dir, xensim.Options{Ready: func() { close(ready) }}) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	x := &xen{t: t}
	x.dom0 = must(simclient.Dial(dir, 0))(t)
	t.Cleanup(func() { x.dom0.Close() })
	x.store = must(x.dom0.Xenstore())(t)
	t.Cleanup(func() { x.store.Close() })
	ctl := must(x.dom0.Control())(t)
	t.Cleanup(func() { ctl.Close() })
	x.domid = must(ctl.CreateDomain(simclient.DomainConfig{GntallocLimit: 4096}))(t)
	x.addVif()
	if err := x.store.Introduce(x.domid, 1, 1); err != nil {
		t.Fatal(err)
	}
	conn := must(simclient.Dial(dir, x.domid))(t)
	t.Cleanup(func() { conn.Close() })
	store := must(conn.Xenstore())(t)
	t.Cleanup(func() { store.Close() })
	pages := must(conn.Pages())(t)
	t.Cleanup(func() { pages.Close() })
	mem := must(conn.Memory())(t)
	t.Cleanup(func() { mem.Close() })
	x.table = mem.Table()
	x.guest = Host{
		Pages:  checkedPages{pages, x.table},
		Store:  store,
		Events: func() (Events, error) { return conn.Events() },
	}
	return x
}

func (x *xen) front() string { return fmt.Sprintf("/local/domain/%d/device/vif/0", x.domid) }
func (x *xen) back() string  { return fmt.Sprintf("/local/domain/0/backend/vif/%d/0", x.domid) }

// addVif does what libxl does.
func (x *xen) addVif() {
	x.t.Helper()
	guest, dom0 := x.domid, uint16(0)
	write := func(dir string, owner, reader uint16, kv ...string) {
		if err := x.store.Mkdir(dir); err != nil {
			x.t.Fatal(err)
		}
		if err := x.store.SetPermissions(dir, []xenstore.Perm{{Domid: owner}, {Domid: reader, Access: xenstore.AccessRead}}); err != nil {
			x.t.Fatal(err)
		}
		for i := 0; i < len(kv); i += 2 {
			if err := x.store.Write(dir+"/"+kv[i], kv[i+1]); err != nil {
				x.t.Fatal(err)
			}
		}
	}
	if err := x.store.SetPermissions(must(x.homeDir())(x.t), []xenstore.Perm{{Domid: dom0}, {Domid: guest, Access: xenstore.AccessRead}}); err != nil {
		x.t.Fatal(err)
	}
	write(x.back(), dom0, guest, "frontend", x.front(), "frontend-id", strconv.Itoa(int(guest)), "state", "1", "online", "1", "handle", "0")
	write(x.front(), guest, dom0, "backend", x.back(), "backend-id", "0", "state", "1", "handle", "0", "mac", "00:16:3e:00:00:01")
}

func (x *xen) homeDir() (string, error) {
	dir := fmt.Sprintf("/local/domain/%d", x.domid)
	return dir, x.store.Mkdir(dir)
}

// miniBackend is a backend with one queue that sends every packet back. It goes
// through the states as xen-netback does.
type miniBackend struct {
	x      *xen
	offers map[string]string
	refuse bool // go to Closed instead of Connected
	states []string
	grants *simclient.Grants
}

func (x *xen) startBackend(b *miniBackend) {
	x.t.Helper()
	b.x = x
	b.grants = must(x.dom0.Grants())(x.t)
	keys := map[string]string{"feature-rx-copy": "1", "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-split-event-channels": "1"}
	for k, v := range b.offers {
		keys[k] = v
	}
	for k, v := range keys {
		if err := x.store.Write(x.back()+"/"+k, v); err != nil {
			x.t.Fatal(err)
		}
	}
	b.set("2")
	w := must(x.store.Watch(x.front() + "/state"))(x.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.run(ctx, w)
	}()
	x.stopBackend = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := errors.Join(w.Close(), b.grants.Close()); err != nil {
			x.t.Error(err)
		}
	})
	x.t.Cleanup(x.stopBackend)
}

func (b *miniBackend) set(state string) {
	b.states = append(b.states, state)
	if err := b.x.store.Write(b.x.back()+"/state", state); err != nil {
		b.x.t.Error(err)
	}
}

// run follows the frontend's state.
func (b *miniBackend) run(ctx context.Context, w *xenstore.Watch) {
	mine := "2"
	var stop func()
	to := func(states ...string) {
		for _, s := range states {
			b.set(s)
			mine = s
		}
	}
	disconnect := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	defer func() { disconnect() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.C():
		}
		front, err := b.x.store.Read(b.x.front() + "/state")
		if err != nil {
			b.x.t.Error(err)
			return
		}
		switch front + mine {
		case "14":
			disconnect()
			to("5", "6", "2")
		case "16":
			to("2")
		case "42":
			if b.refuse {
				to("5", "6")
				continue
			}
			if stop, err = b.connect(); err != nil {
				b.x.t.Error(err)
				return
			}
			to("4")
		case "54", "52":
			disconnect()
			to("5")
		case "65", "62":
			to("6")
		}
	}
}

// connect maps the rings and echoes what comes.
func (b *miniBackend) connect() (stop func(), err error) {
	x := b.x
	num := func(key string) uint32 {
		v, e := x.store.Read(x.front() + "/" + key)
		n, e2 := strconv.ParseUint(v, 10, 32)
		err = errors.Join(err, e, e2)
		return uint32(n)
	}
	refs := []gntdev.Ref{num("tx-ring-ref"), num("rx-ring-ref")}
	ports := []uint32{0, 0}
	if ok, _ := x.store.Exists(x.front() + "/event-channel-tx"); ok {
		ports = []uint32{num("event-channel-tx"), num("event-channel-rx")}
	} else {
		ports[0] = num("event-channel")
	}
	if err != nil {
		return nil, err
	}
	rings, err := b.grants.Map(x.domid, refs, gntdev.ReadWrite)
	if err != nil {
		return nil, err
	}
	events, err := x.dom0.Events()
	if err != nil {
		return nil, err
	}
	e := &echo{grants: b.grants, domid: x.domid, events: events}
	if e.tx, err = netif.AttachTx(rings.Bytes()[:netif.PageSize]); err != nil {
		return nil, err
	}
	if e.rx, err = netif.AttachRx(rings.Bytes()[netif.PageSize:]); err != nil {
		return nil, err
	}
	for _, p := range ports {
		if p == 0 {
			e.ports = append(e.ports, e.ports[0])
			continue
		}
		local, err := events.BindInterdomain(x.domid, evtchn.Port(p))
		if err != nil {
			return nil, err
		}
		e.ports = append(e.ports, local)
	}
	if e.arena, err = gntdev.NewArena(1 << 16); err != nil {
		return nil, err
	}
	w := must(newWaker())(x.t)
	var wg sync.WaitGroup
	quit := make(chan struct{})
	wg.Go(func() {
		if err := e.run(w, quit); err != nil {
			x.t.Error(err)
		}
	})
	return func() {
		close(quit)
		w.wake()
		wg.Wait()
		w.close()
		if err := errors.Join(events.Close(), rings.Unmap(), e.arena.Close()); err != nil {
			x.t.Error(err)
		}
	}, nil
}

// echo sends packets of one slot back.
type echo struct {
	grants *simclient.Grants
	domid  uint16
	events *simclient.Events
	ports  []evtchn.Port // tx, rx
	tx     *netif.TxBack
	rx     *netif.RxBack
	arena  *gntdev.Arena
}

func (e *echo) run(w *waker, quit chan struct{}) error {
	for {
		for {
			n, err := e.tx.Available()
			if err != nil {
				return err
			}
			if n == 0 {
				if more, err := e.tx.Arm(); err != nil || !more {
					break
				}
				continue
			}
			if err := e.one(); err != nil {
				return err
			}
		}
		select {
		case <-quit:
			return nil
		default:
		}
		if _, err := sleep(e.events, w); err != nil {
			return err
		}
	}
}

func (e *echo) one() error {
	r := e.tx.Request(e.tx.ReqCons())
	e.tx.Consume(1)
	rsp := []netif.TxResponse{{ID: r.ID}}
	if r.Flags&netif.TxExtraInfo != 0 {
		e.tx.Consume(1)
		rsp = append(rsp, netif.TxResponse{Status: netif.StatusNull})
	} else {
		b := e.rx.Request(e.rx.ReqCons())
		var segs [2]gntdev.Segment
		segs[0].FromGuest(e.domid, r.Gref, r.Offset, e.arena.Addr(0), r.Size)
		segs[1].ToGuest(e.domid, b.Gref, 0, e.arena.Addr(0), r.Size)
		if err := e.grants.Copy(segs[:1]); err != nil {
			return err
		}
		if segs[0].Status() != 0 {
			rsp[0].Status = netif.StatusError
		} else if n, _ := e.rx.Available(); n > 0 {
			e.rx.Consume(1)
			if err := e.grants.Copy(segs[1:]); err != nil {
				return err
			}
			if e.rx.Commit([]netif.RxSlot{netif.RxResponse{ID: b.ID, Status: netif.Status(r.Size)}.Slot()}) {
				if err := e.events.Notify(e.ports[1]); err != nil {
					return err
				}
			}
		}
	}
	if e.tx.Commit(rsp) {
		return e.events.Notify(e.ports[0])
	}
	return nil
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// exchange sends packets and wants them back.
func exchange(t *testing.T, ctx context.Context, q *Queue, n int) {
	t.Helper()
	want := packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(500)}.Bytes()
	var p Packet
	for i := range n {
		if err := q.Send(want, Meta{}); err != nil {
			t.Fatal(err)
		}
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := q.Reap(); err != nil {
				t.Fatal(err)
			}
			ok, err := q.Recv(&p)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				break
			}
			if err := q.Wait(ctx); err != nil {
				t.Fatalf("packet %d: %v", i, err)
			}
		}
		if !bytes.Equal(p.AppendTo(nil), want) {
			t.Fatalf("packet %d differs", i)
		}
		q.Release(&p)
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	noViolations(t, q)
}

func TestDeviceLivesThroughItsStates(t *testing.T) {
	for _, split := range []bool{false, true} {
		t.Run(fmt.Sprintf("split %v", split), func(t *testing.T) {
			x := newXen(t)
			b := &miniBackend{}
			x.startBackend(b)
			cfg := Config{Features: AllFeatures(), SplitEvents: split, Strict: true, IDSalt: 0x5a00}
			d := must(Open(x.guest, cfg))(t)
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			ctx := deadline(t)
			if err := d.Connect(ctx); err != nil {
				t.Fatal(err)
			}
			if got := d.Offers(); !got.SG || got.MaxQueues != 1 || !got.SplitEvents {
				t.Errorf("offers %+v", got)
			}
			exchange(t, ctx, d.Queues()[0], 50)

			if err := d.Disconnect(ctx); err != nil {
				t.Fatal(err)
			}
			if d.State() != StateClosed || len(d.Queues()) != 0 {
				t.Errorf("after Disconnect: %v, %d queues", d.State(), len(d.Queues()))
			}
			if s, err := d.BackendState(); s != StateClosed || err != nil {
				t.Errorf("backend is %v, %v", s, err)
			}
			if err := d.Reconnect(ctx); err != nil {
				t.Fatal(err)
			}
			exchange(t, ctx, d.Queues()[0], 10)

			if err := d.Suspend(ctx); err != nil {
				t.Fatal(err)
			}
			exchange(t, ctx, d.Queues()[0], 10)
			x.stopBackend()
			want := []string{"2", "4", "5", "6", "2", "4", "5", "6", "2", "4"}
			if diff := cmp.Diff(want, b.states); diff != "" {
				t.Errorf("backend's states (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeviceAnswersClosing(t *testing.T) {
	x := newXen(t)
	b := &miniBackend{}
	x.startBackend(b)
	d := must(Open(x.guest, Config{Features: AllFeatures()}))(t)
	defer d.Close()
	ctx := deadline(t)
	if err := d.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	// What libxl does to detach a device.
	if err := x.store.Write(x.back()+"/state", "5"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WaitBackend(ctx, StateClosing); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() {
		// The test's backend does not watch its own state: play it.
		for {
			s, err := x.store.Read(x.front() + "/state")
			if err != nil {
				closed <- err
				return
			}
			if s == "6" {
				closed <- x.store.Write(x.back()+"/state", "6")
				return
			}
		}
	}()
	if err := d.FinishClosing(ctx); err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if d.State() != StateClosed || len(d.Queues()) != 0 {
		t.Errorf("%v, %d queues", d.State(), len(d.Queues()))
	}
}

func TestDeviceIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		b    miniBackend
		want error
	}{
		{name: "closed", b: miniBackend{refuse: true}, want: ErrRefused},
		{name: "no feature-rx-copy", b: miniBackend{offers: map[string]string{"feature-rx-copy": "0"}}, want: ErrRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newXen(t)
			x.startBackend(&c.b)
			d := must(Open(x.guest, Config{Features: AllFeatures()}))(t)
			defer d.Close()
			if err := d.Connect(deadline(t)); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("keys that are none", func(t *testing.T) {
		for k, v := range map[string]string{"feature-sg": "yes", "multi-queue-max-queues": "0"} {
			x := newXen(t)
			x.startBackend(&miniBackend{offers: map[string]string{k: v}})
			d := must(Open(x.guest, Config{Features: AllFeatures()}))(t)
			if err := d.Connect(deadline(t)); err == nil {
				t.Errorf("%s = %q was taken", k, v)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("no backend", func(t *testing.T) {
		x := newXen(t)
		d := must(Open(x.guest, Config{}))(t)
		defer d.Close()
		if err := x.store.Remove(x.back()); err != nil {
			t.Fatal(err)
		}
		if err := d.Connect(deadline(t)); !errors.Is(err, ErrGone) {
			t.Errorf("error %v, want %v", err, ErrGone)
		}
	})
	t.Run("a backend that does nothing", func(t *testing.T) {
		x := newXen(t)
		d := must(Open(x.guest, Config{}))(t)
		defer d.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := d.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
		}
	})
	t.Run("no such vif", func(t *testing.T) {
		x := newXen(t)
		if _, err := Open(x.guest, Config{Dir: "device/vif/9"}); !errors.Is(err, xenstore.ErrNotExist) {
			t.Errorf("error %v, want %v", err, xenstore.ErrNotExist)
		}
	})
}

// TestDevicePublishes wants exactly these nodes, for a backend to read.
func TestDevicePublishes(t *testing.T) {
	toolstack := []string{"backend", "backend-id", "handle", "mac", "state"}
	for _, c := range []struct {
		name   string
		offers map[string]string
		cfg    Config
		want   []string // nodes, beside the toolstack's; with values where they are known
		queues int
	}{
		{
			name:   "one queue",
			cfg:    Config{Features: AllFeatures()},
			queues: 1,
			want: []string{"event-channel", "feature-gso-tcpv4=1", "feature-gso-tcpv6=1", "feature-ipv6-csum-offload=1",
				"feature-rx-notify=1", "feature-sg=1", "request-rx-copy=1", "rx-ring-ref", "tx-ring-ref"},
		},
		{
			name:   "two queues, split, control ring",
			offers: map[string]string{"multi-queue-max-queues": "4", "feature-ctrl-ring": "1"},
			cfg:    Config{Queues: 2, SplitEvents: true, Control: true, Features: Features{RxCopy: true, NoCsumOffload: true, MulticastControl: true}},
			queues: 2,
			want: []string{"ctrl-ring-ref", "event-channel-ctrl", "feature-no-csum-offload=1", "multi-queue-num-queues=2", "queue-0", "queue-1",
				"request-multicast-control=1", "request-rx-copy=1"},
		},
		{
			name:   "more queues than there may be, and no split",
			offers: map[string]string{"multi-queue-max-queues": "3", "feature-split-event-channels": "0"},
			cfg:    Config{Queues: 8, SplitEvents: true, Control: true},
			queues: 3,
			want:   []string{"multi-queue-num-queues=3", "queue-0", "queue-1", "queue-2"},
		},
		{
			name:   "keys of the test's own",
			cfg:    Config{Features: AllFeatures(), Keys: map[string]string{"tx-ring-ref": "nonsense", "feature-sg": "", "xdp-headroom": "256"}},
			queues: 1,
			want: []string{"event-channel", "feature-gso-tcpv4=1", "feature-gso-tcpv6=1", "feature-ipv6-csum-offload=1",
				"feature-rx-notify=1", "request-rx-copy=1", "rx-ring-ref", "tx-ring-ref=nonsense", "xdp-headroom=256"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newXen(t)
			for k, v := range map[string]string{"feature-rx-copy": "1", "feature-split-event-channels": "1", "state": "2"} {
				if err := x.store.Write(x.back()+"/"+k, v); err != nil {
					t.Fatal(err)
				}
			}
			for k, v := range c.offers {
				if err := x.store.Write(x.back()+"/"+k, v); err != nil {
					t.Fatal(err)
				}
			}
			d := must(Open(x.guest, c.cfg))(t)
			defer d.Close()
			if err := d.Offer(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if len(d.Queues()) != c.queues {
				t.Errorf("%d queues, want %d", len(d.Queues()), c.queues)
			}
			var got []string
			for _, k := range must(x.store.List(x.front()))(t) {
				if slices.Contains(toolstack, k) {
					continue
				}
				v := must(x.store.Read(x.front() + "/" + k))(t)
				// Refs and ports are anybody's guess.
				if k == "ctrl-ring-ref" || k == "event-channel-ctrl" || k == "event-channel" || k == "rx-ring-ref" || k == "tx-ring-ref" && v != "nonsense" || v == "" {
					got = append(got, k)
				} else {
					got = append(got, k+"="+v)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("nodes (-want +got):\n%s", diff)
			}
			if s := must(d.Key("state"))(t); s != "4" {
				t.Errorf("state %s", s)
			}
		})
	}
}

// TestStateIsNotWrittenIntoNothing: what the toolstack removed must stay removed.
func TestStateIsNotWrittenIntoNothing(t *testing.T) {
	x := newXen(t)
	d := must(Open(x.guest, Config{}))(t)
	defer d.Close()
	if err := x.store.Remove(x.front()); err != nil {
		t.Fatal(err)
	}
	if err := d.Disconnect(deadline(t)); !errors.Is(err, xenstore.ErrNotExist) {
		t.Errorf("error %v, want %v", err, xenstore.ErrNotExist)
	}
	if ok := must(x.store.Exists(x.front()))(t); ok {
		t.Error("the device is back as a ghost")
	}
}

// TestGrantsAreWhatTheyShouldBe: the backend may read what we send and nothing
// else of it, and a grant given back is no more.
func TestGrantsAreWhatTheyShouldBe(t *testing.T) {
	x := newXen(t)
	x.startBackend(&miniBackend{})
	d := must(Open(x.guest, Config{Features: AllFeatures()}))(t)
	defer d.Close()
	if err := d.Connect(deadline(t)); err != nil {
		t.Fatal(err)
	}
	q := d.Queues()[0]
	if f := x.table.Head(q.tx.refs[0]).Flags(); f&gnttab.ReadOnly == 0 {
		t.Errorf("a tx buffer is granted with flags %#x", f)
	}
	if f := x.table.Head(q.rx.refs[0]).Flags(); f&gnttab.ReadOnly != 0 {
		t.Errorf("an rx buffer is granted with flags %#x", f)
	}
	if used, _ := x.guest.Pages.(UseChecker).InUse(q.rings.Refs()[0]); !used {
		t.Error("a mapped ring is not in use")
	}
	ref := must(d.FreedGref())(t)
	if f := x.table.Head(ref).Flags(); f&gnttab.TypeMask != 0 {
		t.Errorf("a freed grant has flags %#x", f)
	}
}

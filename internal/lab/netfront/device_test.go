// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netfront/fronttest"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// The tests of this file run in the embedded Xen, against fronttest's backend.

// checkedPages adds the use of pages, which a guest's kernel reads in its grant table.
type checkedPages struct {
	*simclient.Pages
	table gnttab.Table
}

func (p checkedPages) InUse(ref xen.Gref) (bool, error) {
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

// newGuestHost makes a guest with a vif and joins it.
func newGuestHost(t *testing.T, x *fronttest.Xen) (xen.Domid, Host) {
	t.Helper()
	domid := x.NewGuest()
	conn := must(simclient.Dial(x.Dir, domid))(t)
	t.Cleanup(func() { conn.Close() })
	store := must(conn.Xenstore())(t)
	t.Cleanup(func() { store.Close() })
	pages := must(conn.Pages())(t)
	t.Cleanup(func() { pages.Close() })
	mem := must(conn.Memory())(t)
	t.Cleanup(func() { mem.Close() })
	return domid, Host{
		Pages:  checkedPages{pages, mem.Table()},
		Store:  store,
		Events: func() (Events, error) { return conn.Events() },
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// exchange sends packets and checks that they come back.
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
			x := fronttest.NewXen(t)
			domid, host := newGuestHost(t, x)
			b := x.Start(domid, fronttest.Options{})
			cfg := Config{Features: AllFeatures(), SplitEvents: split, Strict: true, IDSalt: 0x5a00}
			d := must(Open(t.Context(), host, cfg))(t)
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
			if d.State() != xenbus.Closed || len(d.Queues()) != 0 {
				t.Errorf("after Disconnect: %v, %d queues", d.State(), len(d.Queues()))
			}
			if s, err := d.BackendState(ctx); s != xenbus.Closed || err != nil {
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
			b.Stop()
			once := []xenbus.State{xenbus.InitWait, xenbus.Connected, xenbus.Closing, xenbus.Closed}
			want := slices.Concat(once, once, once[:2])
			if diff := cmp.Diff(want, b.States()); diff != "" {
				t.Errorf("backend's states (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeviceAnswersClosing(t *testing.T) {
	x := fronttest.NewXen(t)
	domid, host := newGuestHost(t, x)
	x.Start(domid, fronttest.Options{})
	d := must(Open(t.Context(), host, Config{Features: AllFeatures()}))(t)
	defer d.Close()
	ctx := deadline(t)
	if err := d.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	// libxl detaches a device so.
	x.Write(x.BackDir(domid), "online", "0", "state", "5")
	if _, err := d.WaitBackend(ctx, xenbus.Closing); err != nil {
		t.Fatal(err)
	}
	if err := d.FinishClosing(ctx); err != nil {
		t.Error(err)
	}
	if d.State() != xenbus.Closed || len(d.Queues()) != 0 {
		t.Errorf("%v, %d queues", d.State(), len(d.Queues()))
	}
}

func TestDeviceIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		o    fronttest.Options
		want error
	}{
		{name: "closed", o: fronttest.Options{Refuse: true}, want: ErrRefused},
		{name: "no feature-rx-copy", o: fronttest.Options{Offers: map[string]string{"feature-rx-copy": "0"}}, want: ErrRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := fronttest.NewXen(t)
			domid, host := newGuestHost(t, x)
			x.Start(domid, c.o)
			d := must(Open(t.Context(), host, Config{Features: AllFeatures()}))(t)
			defer d.Close()
			if err := d.Connect(deadline(t)); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("keys that are none", func(t *testing.T) {
		for k, v := range map[string]string{"feature-sg": "yes", "multi-queue-max-queues": "0"} {
			x := fronttest.NewXen(t)
			domid, host := newGuestHost(t, x)
			x.Start(domid, fronttest.Options{Offers: map[string]string{k: v}})
			d := must(Open(t.Context(), host, Config{Features: AllFeatures()}))(t)
			if err := d.Connect(deadline(t)); err == nil {
				t.Errorf("%s = %q was taken", k, v)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("no backend", func(t *testing.T) {
		x := fronttest.NewXen(t)
		domid, host := newGuestHost(t, x)
		d := must(Open(t.Context(), host, Config{}))(t)
		defer d.Close()
		if err := x.Store.Remove(t.Context(), x.BackDir(domid)); err != nil {
			t.Fatal(err)
		}
		if err := d.Connect(deadline(t)); !errors.Is(err, ErrGone) {
			t.Errorf("error %v, want %v", err, ErrGone)
		}
	})
	t.Run("a backend that does nothing", func(t *testing.T) {
		_, host := newGuestHost(t, fronttest.NewXen(t))
		d := must(Open(t.Context(), host, Config{}))(t)
		defer d.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := d.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
		}
	})
	t.Run("no such vif", func(t *testing.T) {
		_, host := newGuestHost(t, fronttest.NewXen(t))
		if _, err := Open(t.Context(), host, Config{Dir: "device/vif/9"}); !errors.Is(err, xenstore.ErrNotExist) {
			t.Errorf("error %v, want %v", err, xenstore.ErrNotExist)
		}
	})
}

// TestDevicePublishes checks the nodes that the device writes for a backend.
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
			x := fronttest.NewXen(t)
			domid, host := newGuestHost(t, x)
			x.Write(x.BackDir(domid), "feature-rx-copy", "1", "feature-split-event-channels", "1", "state", "2")
			for k, v := range c.offers {
				x.Write(x.BackDir(domid), k, v)
			}
			d := must(Open(t.Context(), host, c.cfg))(t)
			defer d.Close()
			if err := d.Offer(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if len(d.Queues()) != c.queues {
				t.Errorf("%d queues, want %d", len(d.Queues()), c.queues)
			}
			var got []string
			for _, k := range must(x.Store.List(t.Context(), x.FrontDir(domid)))(t) {
				if slices.Contains(toolstack, k) {
					continue
				}
				v := must(x.Store.Read(t.Context(), x.FrontDir(domid)+"/"+k))(t)
				// Refs and ports vary.
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
			if s := must(d.Key(t.Context(), "state"))(t); s != "4" {
				t.Errorf("state %s", s)
			}
		})
	}
}

// TestStateIsNotWrittenIntoNothing: the device does not create nodes again that the
// toolstack removed.
func TestStateIsNotWrittenIntoNothing(t *testing.T) {
	x := fronttest.NewXen(t)
	domid, host := newGuestHost(t, x)
	d := must(Open(t.Context(), host, Config{}))(t)
	defer d.Close()
	if err := x.Store.Remove(t.Context(), x.FrontDir(domid)); err != nil {
		t.Fatal(err)
	}
	if err := d.Disconnect(deadline(t)); !errors.Is(err, xenstore.ErrNotExist) {
		t.Errorf("error %v, want %v", err, xenstore.ErrNotExist)
	}
	if ok := must(x.Store.Exists(t.Context(), x.FrontDir(domid)))(t); ok {
		t.Error("the device is back as a ghost")
	}
}

// TestGrantsAreWhatTheyShouldBe: the backend may only read the tx pages, and a freed grant
// is not valid any more.
func TestGrantsAreWhatTheyShouldBe(t *testing.T) {
	x := fronttest.NewXen(t)
	domid, host := newGuestHost(t, x)
	x.Start(domid, fronttest.Options{})
	d := must(Open(t.Context(), host, Config{Features: AllFeatures()}))(t)
	defer d.Close()
	if err := d.Connect(deadline(t)); err != nil {
		t.Fatal(err)
	}
	q := d.Queues()[0]
	pages := host.Pages.(checkedPages)
	if f := pages.table.Head(q.tx.refs[0]).Flags(); f&gnttab.ReadOnly == 0 {
		t.Errorf("a tx buffer is granted with flags %#x", f)
	}
	if f := pages.table.Head(q.rx.refs[0]).Flags(); f&gnttab.ReadOnly != 0 {
		t.Errorf("an rx buffer is granted with flags %#x", f)
	}
	if used, _ := pages.InUse(q.rings.Refs()[0]); !used {
		t.Error("a mapped ring is not in use")
	}
	ref := must(d.FreedGref())(t)
	if f := pages.table.Head(ref).Flags(); f&gnttab.TypeMask != 0 {
		t.Errorf("a freed grant has flags %#x", f)
	}
}

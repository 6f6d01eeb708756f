// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// closeLimit is the time that a vif may take to close in these tests. The documented limit
// is 1 s; libxl waits 10 s.
const closeLimit = 3 * time.Second

// followed checks that a recorder's values are a subsequence of want with the same end.
func followed(t *testing.T, what string, r *recorder, want string) {
	t.Helper()
	got := r.values()
	rest := strings.Fields(want)
	for _, v := range got {
		i := slices.Index(rest, v)
		if i < 0 {
			t.Errorf("%s went %v, want %s", what, got, want)
			return
		}
		rest = rest[i+1:]
	}
	if len(rest) > 0 {
		t.Errorf("%s went %v, want %s", what, got, want)
	}
}

// TestDriverReloadedTenTimesUnderTraffic: the guest unloads its driver and loads it again,
// while the host sends to it.
func TestDriverReloadedTenTimesUnderTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	stop := g.flooded()
	defer stop()
	for range 10 {
		_, err := g.Reconnect(w.ctx, guest.ConnectArgs{})
		w.must(err)
		before := g.counter(dataplane.RxPackets)
		g.waitCounter(dataplane.RxPackets, before+10)
	}
	stop()
	g.pings(5)
	g.tcpToGuest(g.ip, 4<<20)
	g.innocent()
	if n := w.logged("connected", g.VifName(), "queues"); n != 11 {
		t.Errorf("the log tells of %d connections, want 11", n)
	}
	if s := g.status(); s.Grants != 4 || len(w.journals(g.Domid, g.Devid)) != 2 {
		t.Errorf("in the end %d pages are mapped, journals %v", s.Grants, w.journals(g.Domid, g.Devid))
	}
}

// TestReconnectWithOtherQueuesAndFeatures: the driver reconnects with another
// configuration, and no setting of the first connection applies to the second.
func TestReconnectWithOtherQueuesAndFeatures(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(4))
	for _, c := range []struct {
		queues int
		split  bool
		f      netfront.Features
	}{
		{1, false, netfront.Features{RxCopy: true}},
		{3, true, netfront.AllFeatures()},
		{1, true, netfront.Features{RxCopy: true, RxNotify: true, NoCsumOffload: true}},
		{8, false, netfront.Features{RxCopy: true, RxNotify: true, SG: true, GSOTCPv4: true}},
	} {
		front := config(0).Front.Front
		front.Queues, front.SplitEvents, front.Features = c.queues, c.split, c.f
		_, err := g.Reconnect(w.ctx, guest.ConnectArgs{Front: &front})
		w.must(err)
		ports := c.queues
		if c.split {
			ports = 2 * c.queues
		}
		s := g.status()
		if len(s.Queues) != c.queues || s.Grants != 2*c.queues || s.Ports != ports {
			t.Errorf("%d queues, %d pages, %d channels; want %d, %d, %d", len(s.Queues), s.Grants, s.Ports, c.queues, 2*c.queues, ports)
		}
		if n := len(w.journals(g.Domid, g.Devid)); n != c.queues {
			t.Errorf("%d journals with %d queues", n, c.queues)
		}
		g.pings(3)
		g.tcpToHost(2 << 20)
		g.tcpToGuest(g.ip, 2<<20)
	}
	g.innocent()
}

// TestSuspendAndResumeUnderTraffic: a guest that was saved and restored in place, or that
// booted a crash kernel, goes from Connected directly to Initialising, with new rings.
func TestSuspendAndResumeUnderTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	back := w.record(w.BackPath(g.Domid, g.Devid) + "/state")
	stop := g.flooded()
	defer stop()
	for range 5 {
		_, err := g.Suspend(w.ctx, guest.ConnectArgs{})
		w.must(err)
		before := g.counter(dataplane.RxPackets)
		g.waitCounter(dataplane.RxPackets, before+10)
	}
	stop()
	g.pings(5)
	g.innocent()
	followed(t, "the backend", back, "4"+strings.Repeat(" 5 6 2 4", 5))
	if d, err := w.Domain(g.Domid); err != nil || d.Pins != 4 {
		t.Errorf("%d pages of the guest are in use (%v), want the rings of the last connection", d.Pins, err)
	}
}

// TestConnectedAgainWithOtherRingsAndStatesBetweenMissed: a guest closes, frees its rings
// and connects new ones while the daemon is busy. The daemon sees only Connected, before
// and after.
func TestConnectedAgainWithOtherRingsAndStatesBetweenMissed(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(2)
	f.connect()
	before := w.books()
	old := f.queues
	f.newRings(3)
	f.offer(f.keys(), xenbus.Connected)
	w.wait("the new rings to be served", func() bool { return f.status().Grants == 6 })
	f.connected()
	for _, q := range old {
		w.must(q.rings.Free()) // does not fail; the checks below show that it is freed
	}
	w.waitBooks(books{before.Maps + 2, before.Interdomain + 2})
	if d, err := w.Domain(f.domid); err != nil || d.GrantsInUse != 6 {
		t.Errorf("%d pages of the guest in use (%v), want 6", d.GrantsInUse, err)
	}
	if s := w.read(f.back() + "/state"); s != "4" {
		t.Errorf("the backend is in state %s", s)
	}
}

// TestConnectedAgainWithNewChannelsOfTheSameNumbers: a guest makes its event channels again
// and gets the same port numbers. The daemon sees only another write of Connected.
func TestConnectedAgainWithNewChannelsOfTheSameNumbers(t *testing.T) {
	w := newWorld(t)
	for name, rings := range map[string]func(*rawFront){
		"to rings that stand as they did": func(*rawFront) {},
		"to rings made anew":              (*rawFront).anew,
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1)
			f.connect()
			data, err := f.pages.Alloc(0, 1, false)
			w.must(err)
			copy(data.Bytes(), plainFrame(100))
			q := &f.queues[0]
			held := w.books()
			for id := uint16(10); id < 40; id += 10 {
				f.ask(data.Refs()[0], id)
				if got := f.answers(); !slices.Equal(got, []uint16{id, id + 1, id + 2}) {
					t.Fatalf("answers: %v, want those to %d", got, id)
				}
				for _, p := range []evtchn.Port{q.txPort, q.rxPort} {
					w.must(f.events.Unbind(p))
					again, err := f.events.BindUnbound(0)
					w.must(err)
					if again != p {
						t.Fatalf("the new channel is %d, the old was %d: this shows nothing", again, p)
					}
				}
				rings(f)
				f.offer(f.keys(), xenbus.Connected)
			}
			f.ask(data.Refs()[0], 40)
			if got := f.answers(); !slices.Equal(got, []uint16{40, 41, 42}) {
				t.Errorf("answers: %v", got)
			}
			f.connected()
			w.waitBooks(held)
		})
	}
}

// TestConnectedAgainAndNothingIsNew: a guest that only writes Connected again is not
// reconnected.
func TestConnectedAgainAndNothingIsNew(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	f.connect()
	since := f.status().Since
	for _, rate := range []string{"100001", "100002"} {
		f.state(xenbus.Connected)
		w.must(w.Store().Write(w.ctx, f.back()+"/rate", rate+",1000"))
		w.wait("the daemon to have looked", func() bool { return strings.HasPrefix(f.status().Rate, rate) })
	}
	f.connected()
	if s := f.status(); !s.Since.Equal(since) {
		t.Errorf("connected since %v, was since %v", s.Since, since)
	}
}

// TestReconfiguringIsAnswered: Linux's netfront asks for XDP headroom with this state, and
// waits for the answer without a limit. It continues with the same rings.
func TestReconfiguringIsAnswered(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	back := w.BackPath(g.Domid, g.Devid) + "/state"
	since := g.status().Since
	whole := g.streaming(8 << 20)
	for range 2 {
		w.must(g.SetState(w.ctx, "", xenbus.Reconfiguring))
		w.wait("the answer", func() bool { return w.read(back) == "8" })
		g.pings(2)
		w.must(g.SetState(w.ctx, "", xenbus.Connected))
		g.waitStatus("the daemon to see it", func(s *vif.Status) bool { return s.Frontend == xenbus.Connected })
		g.pings(2)
	}
	whole()
	if s := g.status(); s.State != xenbus.Connected || !s.Since.Equal(since) {
		t.Errorf("%v since %v, was connected since %v", s.State, s.Since, since)
	}
	// It still closes.
	w.must(g.Disconnect(w.ctx, ""))
	g.waitState(xenbus.Closed)
	g.innocent()
}

// TestReconfiguringTwiceWithoutConnectedBetween: the node is 8 already when the guest asks
// again, so the guest does not wait for a change.
func TestReconfiguringTwiceWithoutConnectedBetween(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	f.connect()
	f.state(xenbus.Reconfiguring)
	f.waitBack(xenbus.Reconfigured)
	f.state(xenbus.Reconfiguring)
	f.state(xenbus.Connected)
	f.state(xenbus.Reconfiguring)
	f.waitBack(xenbus.Reconfigured)
	f.state(xenbus.Connected)
	w.wait("the daemon to see it", func() bool { return f.status().Frontend == xenbus.Connected })
	f.connected()
	f.close()
	f.reopen()
	f.connect()
}

// TestDetachOfALiveGuest: xl network-detach of a working guest gives the guest time to
// close.
func TestDetachOfALiveGuest(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		g := w.guest(queues(2))
		back := w.record(w.BackPath(g.Domid, g.Devid) + "/state")
		front := w.record(w.FrontPath(g.Domid, g.Devid) + "/state")
		took, err := w.Detach(w.ctx, g.Domid, g.Devid)
		w.must(err)
		t.Logf("Closed after %v", took.Round(10*time.Microsecond))
		if took > closeLimit {
			t.Errorf("Closed after %v", took)
		}
		w.vifGone(g.Domid, g.Devid)
		w.unpinned(g.Domid)
		w.wait("the directory to be gone", func() bool { return slices.Contains(back.values(), absent) })
		followed(t, "the backend", back, "4 5 6 "+absent)
		if got := front.values(); !slices.Contains(got, "6") {
			t.Errorf("the frontend went %v: it was not let to close", got)
		}
		g.innocent()
	})
}

// TestDetachOfASilentGuest: the daemon waits for a guest that does not answer, but not as
// long as the toolstack waits for the daemon.
func TestDetachOfASilentGuest(t *testing.T) {
	w := newWorld(t)
	shortest := closeLimit // of the vifs that waited
	for _, c := range []struct {
		name  string
		state xenbus.State // where it is stuck
		wait  bool         // the daemon waits for it
	}{
		{"it stays Connected", xenbus.Connected, true},
		{"it stays in Closing", xenbus.Closing, true},
		{"it stays in Reconfiguring", xenbus.Reconfiguring, true},
		{"it never connected", xenbus.Initialising, false},
		{"it stays in Initialised", xenbus.Initialised, false},
		{"it has closed long ago", xenbus.Closed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(2)
			if c.state != xenbus.Initialising {
				f.connect()
				f.state(c.state)
				w.wait("the daemon to see it", func() bool { return f.status().Frontend == c.state })
			}
			back := w.record(f.back() + "/state")
			took, err := w.Detach(w.ctx, f.domid, f.devid)
			w.must(err)
			t.Logf("Closed after %v", took.Round(time.Millisecond))
			if took > closeLimit {
				t.Errorf("Closed after %v", took)
			}
			switch {
			case c.wait && took < 500*time.Millisecond:
				t.Errorf("closed after %v, without waiting for the guest", took)
			case c.wait:
				shortest = min(shortest, took)
			case took >= shortest:
				t.Errorf("closed after %v, although there was no guest to wait for", took)
			}
			w.vifGone(f.domid, f.devid)
			w.unpinned(f.domid)
			if got := back.values(); slices.Contains(got, "2") && c.state != xenbus.Initialising {
				t.Errorf("the backend went %v", got)
			}
		})
	}
}

// TestDetachOfADeadGuest: the guest's process is gone and its domain still exists, so the
// guest does not answer.
func TestDetachOfADeadGuest(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.must(g.Kill())
	took, err := w.Detach(w.ctx, g.Domid, g.Devid)
	w.must(err)
	t.Logf("Closed after %v", took.Round(time.Millisecond))
	if took > closeLimit {
		t.Errorf("Closed after %v", took)
	}
	w.vifGone(g.Domid, g.Devid)
	w.unpinned(g.Domid)
}

func TestDetachUnderTraffic(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		for range 2 {
			g := w.guest(queues(4))
			stop := g.flooded()
			sending := w.sendInVain(g)
			before := g.status()
			g.waitCounter(dataplane.TxPackets, before.Counters[dataplane.TxPackets.String()]+100)
			g.waitCounter(dataplane.RxPackets, before.Counters[dataplane.RxPackets.String()]+100)
			took, err := w.Detach(w.ctx, g.Domid, g.Devid)
			w.must(err)
			t.Logf("Closed after %v", took.Round(10*time.Microsecond))
			if took > closeLimit {
				t.Errorf("Closed after %v", took)
			}
			w.vifGone(g.Domid, g.Devid)
			w.unpinned(g.Domid)
			stop()
			g.innocent()
			w.must(g.Kill())
			<-sending
		}
	})
}

// sendInVain has the guest send an endless stream. The channel is closed when the stream
// fails.
func (w *world) sendInVain(g *testGuest) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: 1 << 40, Seed: 3}})
	}()
	return ended
}

// TestDestroyUnderTraffic runs xl destroy under traffic.
func TestDestroyUnderTraffic(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		g := w.guest(queues(4))
		stop := g.flooded()
		defer stop()
		sending := w.sendInVain(g)
		g.waitCounter(dataplane.TxPackets, 100)
		g.waitCounter(dataplane.RxPackets, 100)
		took, err := w.Destroy(w.ctx, g.Domid)
		w.must(err)
		t.Logf("Closed after %v", took.Round(10*time.Microsecond))
		if took > closeLimit {
			t.Errorf("Closed after %v", took)
		}
		w.vifGone(g.Domid, g.Devid)
		w.domainGone(g.Domid)
		w.must(g.Kill())
		<-sending
	})
}

// TestDomainIsGoneWithoutCleanUp: the domain is gone and the toolstack does not clean up,
// as after a kill of xl. No page of the guest may stay mapped, or the domain remains a
// zombie.
func TestDomainIsGoneWithoutCleanUp(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	stop := g.flooded()
	defer stop()
	g.waitCounter(dataplane.RxPackets, 50)
	w.must(w.Hypervisor().Destroy(g.Domid))
	w.domainGone(g.Domid)
	w.wait("the interface to be gone", func() bool { return w.link(g.Domid, g.Devid) == nil })
	if j := w.journals(g.Domid, g.Devid); len(j) > 0 {
		t.Errorf("journals are left: %v", j)
	}
	// The directory belongs to the toolstack. The list shows that it still exists.
	s := g.waitStatus("the daemon to have closed it", func(s *vif.Status) bool { return s.State == xenbus.Closed })
	if s.Grants != 0 || s.Frontend != xenbus.Unknown {
		t.Errorf("%d pages mapped, frontend %v", s.Grants, s.Frontend)
	}
	if v := w.read(w.BackPath(g.Domid, g.Devid) + "/state"); v != "6" {
		t.Errorf("the backend is in state %s, want 6", v)
	}
	w.must(w.Store().Remove(w.ctx, w.BackPath(g.Domid, g.Devid)))
	w.vifGone(g.Domid, g.Devid)
}

// TestDomainIsGoneAndItsNodesStay is the same with an xenstored before Xen 4.17, which
// leaves the nodes of a dead domain at Connected. Only the release of the domain shows
// that it is gone.
func TestDomainIsGoneAndItsNodesStay(t *testing.T) {
	w := newWorld(t)
	f, other := w.rawFront(2), w.rawFront(1)
	f.connect()
	other.connect()
	// The embedded xenstored removes the nodes that a dead domain owned.
	dom0Owned := []xenstore.Perm{{Domid: 0}, {Domid: f.domid, Access: xenstore.AccessBoth}}
	w.must(w.Store().SetPermissions(w.ctx, f.dir(), dom0Owned))
	keys, err := w.Store().List(w.ctx, f.dir())
	w.must(err)
	for _, k := range append(keys, "queue-0/tx-ring-ref", "queue-1/tx-ring-ref") {
		w.must(w.Store().SetPermissions(w.ctx, f.dir()+"/"+k, dom0Owned))
	}
	for _, rate := range []string{"1000", "2000"} { // the work that this started ends
		w.must(w.Store().Write(w.ctx, f.back()+"/rate", rate+",1000"))
		w.wait("the daemon to have looked", func() bool { return strings.HasPrefix(f.status().Rate, rate) })
	}
	w.must(w.Hypervisor().Destroy(f.domid))
	w.domainGone(f.domid)
	f.waitBack(xenbus.Closed)
	if s := w.read(f.dir() + "/state"); s != "4" {
		t.Fatalf("the frontend's state is %s: this shows nothing", s)
	}
	w.wait("the interface to be gone", func() bool { return w.link(f.domid, f.devid) == nil })
	other.connected()
}

// TestCrashedDomainThatIsPreserved: xl keeps a domain that has stopped by itself for an
// inspection (on_crash=preserve). Its memory still exists, and may be mapped.
func TestCrashedDomainThatIsPreserved(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.undisturbed(func() {
		w.must(w.Hypervisor().Shutdown(g.Domid))
		stop := g.flooded()
		g.waitStatus("packets for it to pile up", func(s *vif.Status) bool { return s.Queues[0].Held > 0 })
		stop()
	})
	took, err := w.Destroy(w.ctx, g.Domid)
	w.must(err)
	if took > closeLimit {
		t.Errorf("Closed after %v", took)
	}
	w.vifGone(g.Domid, g.Devid)
	w.domainGone(g.Domid)
}

// TestFrontendDirectoryIsRemoved: libxl removes the frontend's directory when it uses
// force.
func TestFrontendDirectoryIsRemoved(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(2)
	f.connect()
	back := w.record(f.back() + "/state")
	w.must(w.Store().Remove(w.ctx, f.dir()))
	f.waitBack(xenbus.Closed)
	w.unpinned(f.domid)
	w.wait("the interface to be gone", func() bool { return w.link(f.domid, f.devid) == nil })
	followed(t, "the backend", back, "4 5 6")
	if w.read(f.dir()) != absent {
		t.Error("netbackd wrote into a frontend's directory that was removed")
	}
	w.must(w.Store().Remove(w.ctx, f.back()))
	w.vifGone(f.domid, f.devid)
}

// TestBackendDirectoryIsRemoved: a device is gone with its directory. A late write would
// create a directory that no toolstack removes.
func TestBackendDirectoryIsRemoved(t *testing.T) {
	w := newWorld(t)
	for _, state := range []xenbus.State{xenbus.Initialising, xenbus.Connected, xenbus.Closing, xenbus.Closed} {
		t.Run(fmt.Sprintf("with the frontend %v", state), func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1)
			if state != xenbus.Initialising {
				f.connect()
				f.state(state)
				w.wait("the daemon to see it", func() bool { return f.status().Frontend == state })
			}
			w.must(w.Store().Remove(w.ctx, f.back()))
			w.vifGone(f.domid, f.devid)
			w.unpinned(f.domid)
			// The frontend goes through further states, without a backend.
			for _, s := range []xenbus.State{xenbus.Closing, xenbus.Closed, xenbus.Initialising, xenbus.Connected} {
				f.state(s)
			}
			g := w.rawFront(1) // the daemon serves it after it has handled all earlier events
			g.connect()
			if v := w.read(f.back()); v != absent {
				t.Errorf("there is a ghost of the directory: %q", v)
			}
			w.noInterface(f.domid, f.devid)
		})
	}
}

// TestBackendDirectoryIsRemovedWhileTheRingsAreMapped is the same while the daemon connects
// the vif.
func TestBackendDirectoryIsRemovedWhileTheRingsAreMapped(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		f := w.rawFront(1)
		ref := f.queues[0].rings.Refs()[1]
		w.must(w.Hypervisor().AddFault(f.domid, simclient.Fault{Op: "map", Ref: ref, Delay: 300 * time.Millisecond, Count: 1}))
		f.offer(f.keys(), xenbus.Connected)
		w.wait("the first page to be mapped", func() bool { d, err := w.Domain(f.domid); return err == nil && d.Pins > 0 })
		w.must(w.Store().Remove(w.ctx, f.back()))
		w.vifGone(f.domid, f.devid)
		w.unpinned(f.domid)
		if v := w.read(f.back()); v != absent {
			t.Errorf("there is a ghost of the directory: %q", v)
		}
	}
}

// TestDeviceIsMadeAnewInTheSamePlace: a toolstack replaces a device in one transaction, and
// no event shows that it is another one.
func TestDeviceIsMadeAnewInTheSamePlace(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(2)
	f.connect()
	index := w.link(f.domid, f.devid).Attrs().Index
	again := func(f *rawFront) {
		// Directory by directory, in one transaction, so that no reader sees it missing.
		dirs := map[string][]string{
			f.back(): {"frontend", "frontend-id", "online", "script", "mac", "bridge", "handle", "type"},
			f.dir():  {"backend", "backend-id", "handle", "mac", "trusted"},
		}
		w.must(w.Store().Transaction(w.ctx, func(tx *xenstore.Tx) error {
			for dir, keys := range dirs {
				kept := map[string]string{"state": "1"}
				for _, k := range keys {
					v, err := tx.Read(w.ctx, dir+"/"+k)
					if err != nil {
						return fmt.Errorf("%s of %s: %w", k, dir, err)
					}
					kept[k] = v
				}
				perms, err := tx.Permissions(w.ctx, dir)
				if err != nil {
					return err
				}
				if err := tx.Remove(w.ctx, dir); err != nil {
					return err
				}
				if err := tx.Mkdir(w.ctx, dir); err != nil {
					return err
				}
				if err := tx.SetPermissions(w.ctx, dir, perms); err != nil {
					return err
				}
				for k, v := range kept {
					if err := tx.Write(w.ctx, dir+"/"+k, v); err != nil {
						return err
					}
				}
			}
			return tx.Write(w.ctx, f.back()+"/hotplug-status", "")
		}))
		f.wrote = nil
	}
	for range 5 {
		again(f)
		f.waitBack(xenbus.InitWait)
		w.unpinned(f.domid)
		l := w.link(f.domid, f.devid)
		if l == nil || l.Attrs().Index == index {
			t.Fatalf("the new device has the old one's interface: %v", l)
		}
		index = l.Attrs().Index
		w.must(w.Store().Write(w.ctx, f.back()+"/hotplug-status", "connected"))
		f.newRings(2)
		f.connect()
		f.connected()
	}
}

// TestDetachAndAttachAgainAndAgain is the same with xl: detach and attach in quick
// succession.
func TestDetachAndAttachAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	for i := range 8 {
		_, err := w.Detach(w.ctx, g.Domid, g.Devid)
		w.must(err)
		w.must(g.Client.Detach(w.ctx, ""))
		cfg := config(0)
		w.must(w.Attach(w.ctx, g.Domid, cfg.Vif))
		_, err = g.Client.Attach(w.ctx, cfg.Front)
		w.must(err)
		g.waitState(xenbus.Connected)
		g.waitLink()
		g.pings(2)
		if s := g.status(); s.Grants != 2 || s.Quarantine != "" {
			t.Fatalf("round %d: %d pages mapped, quarantine %q", i, s.Grants, s.Quarantine)
		}
	}
	g.innocent()
}

// TestFirstPacketAfterConnectedPassesTheBridge: a migrated guest announces its new place
// with its first packet, as soon as the backend is Connected. If the bridge dropped that
// packet, the guest would be unreachable until it sends again.
func TestFirstPacketAfterConnectedPassesTheBridge(t *testing.T) {
	w := newWorld(t)
	w.guest() // keeps the bridge up
	g := w.guest()
	for i := range 10 {
		_, err := g.Reconnect(w.ctx, guest.ConnectArgs{})
		w.must(err)
		r, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Timeout: 700 * time.Millisecond}})
		w.must(err)
		if r.Received != 1 {
			t.Fatalf("the first ping of connection %d was lost", i+1)
		}
	}
}

// TestStrangerWritesTheState: a process other than the toolstack writes our state node.
func TestStrangerWritesTheState(t *testing.T) {
	w := newWorld(t)
	for _, value := range []string{"", "2", "3", "5", "6", "7", "42", "-1", "four"} {
		t.Run(fmt.Sprintf("%q", value), func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1)
			f.connect()
			w.must(w.Store().Write(w.ctx, f.back()+"/state", value))
			// The write disconnects no vif, and the next reload of the
			// driver corrects the state.
			w.must(w.Store().Write(w.ctx, f.back()+"/rate", "1000000,50000"))
			w.wait("the daemon to have looked", func() bool { return f.status().Rate != "unlimited" })
			f.connected()
			f.close()
			f.reopen()
			f.connect()
			f.connected()
		})
	}
}

func TestFrontendGoesWhereNoFrontendGoes(t *testing.T) {
	w := newWorld(t)
	for _, state := range []xenbus.State{xenbus.InitWait, xenbus.Reconfigured} {
		t.Run(state.String(), func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1)
			f.connect()
			back := w.record(f.back() + "/state")
			f.state(state)
			w.waitError(f.domid, f.devid, `"state"`)
			f.waitBack(xenbus.Closed)
			w.unpinned(f.domid)
			followed(t, "the backend", back, "4 5 6")
			f.reopen()
			f.connect()
			w.wait("the error to be taken back", func() bool { return w.read(f.errNode()) == absent })
		})
	}
}

// TestGuestLeavesBeforeTheScriptIsThrough: a guest boots while the hotplug script still
// runs, and a guest disconnects before the script has ended.
func TestGuestLeavesBeforeTheScriptIsThrough(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(2, script(lab.NoScript))
	back := w.record(f.back() + "/state")
	for range 3 {
		f.offer(f.keys(), xenbus.Connected)
		w.wait("the rings to be mapped", func() bool { return f.status().Grants == 4 })
		f.close()
		w.unpinned(f.domid)
		f.reopen()
	}
	if slices.Contains(back.values(), "4") {
		t.Errorf("the backend went %v without a script", back.values())
	}
	f.offer(f.keys(), xenbus.Connected)
	w.must(w.Store().Write(w.ctx, f.back()+"/hotplug-status", "connected"))
	f.waitBack(xenbus.Connected)
	f.connected()
}

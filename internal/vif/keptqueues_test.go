// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// fakeKeeper is a service manager.
type fakeKeeper struct {
	t     *testing.T
	files map[string]int
	full  int   // number of files that it has room for; 0: no limit
	fault error // result of every call
}

func newKeeper(w *world) *fakeKeeper {
	k := &fakeKeeper{t: w.t, files: map[string]int{}}
	w.t.Cleanup(func() {
		for _, fd := range k.files {
			w.must(unix.Close(fd))
		}
	})
	w.cfg.Keeper = k
	w.v = New(w.cfg)
	return k
}

func (k *fakeKeeper) Store(name string, fd int) error {
	if k.fault != nil {
		return k.fault
	}
	if _, taken := k.files[name]; taken {
		k.t.Errorf("%s is stored twice", name)
	}
	if k.full != 0 && len(k.files) >= k.full {
		return nil // as systemd does
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		k.files[name] = own
	}
	return err
}

func (k *fakeKeeper) Adopted(name string) {
	if _, there := k.files[name]; !there && k.full == 0 {
		k.t.Errorf("%s is adopted, and not kept", name)
	}
}

func (k *fakeKeeper) Remove(name string) {
	fd, there := k.files[name]
	if !there {
		return
	}
	delete(k.files, name)
	if err := unix.Close(fd); err != nil {
		k.t.Error(err)
	}
}

// names lists the names of the kept files.
func (k *fakeKeeper) names() string {
	var names []string
	for n := range k.files {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// successor makes the vif of the next daemon, which gets the kept files.
func (k *fakeKeeper) successor(w *world) {
	w.t.Helper()
	cfg := w.cfg
	for i := 0; ; i++ {
		fd, there := k.files[KeptName(testID, i)]
		if !there {
			break
		}
		own, err := unix.Dup(fd)
		w.must(err)
		cfg.Kept = append(cfg.Kept, own)
	}
	w.v = New(cfg)
}

// broadcast sends n frames from the host to the TAP.
func (w *world) broadcast(n int) {
	w.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer func() { w.must(unix.Close(fd)) }()
	for range n {
		w.must(unix.Sendto(fd, broadcastFrame(46), 0, &unix.SockaddrLinklayer{Ifindex: w.iface(ifname).Index}))
	}
}

// send sends one frame with payload bytes of payload from the host to the TAP.
func (w *world) send(payload int) {
	w.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer func() { w.must(unix.Close(fd)) }()
	w.must(unix.Sendto(fd, broadcastFrame(payload), 0, &unix.SockaddrLinklayer{Ifindex: w.iface(ifname).Index}))
}

func broadcastFrame(payload int) []byte {
	return append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, payload)...)
}

// slots posts n rx slots on every queue.
func (w *world) slots(n int) {
	for i := range w.rx {
		for range n {
			w.rx[i].Put(netif.RxRequest{Gref: bufferGref})
		}
		w.rx[i].Push()
		w.host.kick(w.conns[i].rxPort)
	}
}

// TestKeptQueues: while no daemon runs the carrier stays and packets wait, and the next
// daemon delivers all of them.
func TestKeptQueues(t *testing.T) {
	const packets = 200
	for _, tt := range []struct {
		name string
		end  func(w *world)
	}{
		{"restart", func(w *world) { w.v.suspend() }},
		{"kill", func(w *world) {
			// The kernel closes what is open, in the order of numbers.
			w.v.closeLink(netengine.Leave)
			for i := range w.v.tap.Queues() {
				w.must(unix.Close(w.v.tap.Queue(i).FD()))
			}
			w.v = nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			k := newKeeper(w)
			w.up(2)
			w.must(netlink.LinkSetUp(w.iface(ifname)))
			if got, want := k.names(), "tap-7.0-0 tap-7.0-1"; got != want {
				t.Errorf("kept %q, want %q", got, want)
			}
			w.slots(packets)
			before := w.iface(ifname)
			tt.end(w)
			w.broadcast(packets)
			if l := w.iface(ifname); l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 || l.Queues != 2 {
				t.Errorf("while no daemon runs: carrier %t, %d queues", l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0, l.Queues)
			}
			k.successor(w)
			w.wantSteps("connect plug")
			w.eventually(fmt.Sprintf("%d packets", packets), func() bool { return w.status().Counters["rx_packets"] == packets })
			if l := w.iface(ifname); l.Index != before.Index || l.Queues != 2 || l.Statistics.TxDropped != before.Statistics.TxDropped {
				t.Errorf("index %d, was %d; %d queues; %d packets dropped", l.Index, before.Index, l.Queues, l.Statistics.TxDropped)
			}
			if got, want := k.names(), "tap-7.0-0 tap-7.0-1"; got != want {
				t.Errorf("kept %q, want %q", got, want)
			}
			w.detach()
			w.frontState(xenbus.Closed)
			w.wantSteps("disconnect closed unregister")
			w.wantTap(0)
			if got := k.names(); got != "" {
				t.Errorf("kept after the end: %q", got)
			}
		})
	}
}

// TestKeptFollowsTheQueues: the keeper keeps the queues that the TAP has.
func TestKeptFollowsTheQueues(t *testing.T) {
	w := newWorld(t)
	k := newKeeper(w)
	want := func(names string) {
		t.Helper()
		if got := k.names(); got != names {
			t.Errorf("kept %q, want %q", got, names)
		}
	}
	w.up(2)
	want("tap-7.0-0 tap-7.0-1")
	w.frontState(xenbus.Closed)
	w.settle()
	want("tap-7.0-0 tap-7.0-1") // for the next connection
	w.wantTapAtRest()
	w.frontState(xenbus.Initialising)
	w.settle()
	w.rings(3, false)
	w.frontState(xenbus.Connected)
	w.settle()
	want("tap-7.0-0 tap-7.0-1 tap-7.0-2")
	<-w.v.mail.Poked // New's
	w.must(netns.Delete(ifname))
	w.eventually("the data plane notices", func() bool { return len(w.v.mail.Poked) > 0 })
	w.settle()
	want("tap-7.0-0 tap-7.0-1 tap-7.0-2")
	w.must(w.tool.Remove(t.Context(), backDir))
	w.wantSteps("gone")
	want("")
	w.wantTap(0)
}

// TestKeptBadly: a guest gets its network in spite of kept queues that cannot be used.
func TestKeptBadly(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(w *world, k *fakeKeeper)
		steps string
	}{
		{"not all fitted", func(w *world, k *fakeKeeper) { k.Remove(KeptName(testID, 1)) }, "connect plug"},
		{"none", func(w *world, k *fakeKeeper) {
			k.Remove(KeptName(testID, 0))
			k.Remove(KeptName(testID, 1))
		}, "connect plug"},
		{"the TAP was deleted", func(w *world, _ *fakeKeeper) { w.must(netns.Delete(ifname)) }, "connect plug"},
		{"the TAP was renamed", func(w *world, _ *fakeKeeper) { w.must(netns.Rename(ifname, "web")) }, "connect plug"},
		{"not a TAP", func(w *world, k *fakeKeeper) {
			for name := range k.files {
				k.Remove(name)
			}
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			w.must(err)
			k.files[KeptName(testID, 0)] = fd
		}, "connect plug"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			k := newKeeper(w)
			w.up(2)
			t.Cleanup(func() { _ = removeTapNamed("web") })
			w.v.suspend()
			tt.spoil(w, k)
			k.successor(w)
			w.eventually("the guest is served", func() bool { w.look(); return w.v.conn != nil })
			w.wantState("4")
			w.plugIn()
			w.settle()
			if s := w.status(); w.v.conn.carrier == carrierWaiting || len(s.Queues) != 2 {
				t.Errorf("status %+v", s)
			}
			if got, want := k.names(), "tap-7.0-0 tap-7.0-1"; got != want {
				t.Errorf("kept %q, want %q", got, want)
			}
			if l := w.iface(altName(testID)); l == nil || l.Queues != 2 || l.DisabledQueues != 0 {
				t.Errorf("interface %+v", l)
			}
		})
	}
}

// TestKeeperFails: the vif is served although the keeper fails.
func TestKeeperFails(t *testing.T) {
	w := newWorld(t)
	k := newKeeper(w)
	k.fault = unix.ECONNREFUSED
	w.attach()
	w.look()
	if n := w.log.FilterMessageSnippet("not kept").Len(); n == 0 {
		t.Error("nothing was logged")
	}
	w.plugIn()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	k.fault = nil
	w.frontState(xenbus.Closing)
	w.settle()
	if got, want := k.names(), "tap-7.0-0 tap-7.0-1"; got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
}

// TestKeptOfAClosedVif: the kept queues of a vif whose guest does not come back are
// discarded with the vif.
func TestKeptOfAClosedVif(t *testing.T) {
	w := newWorld(t)
	k := newKeeper(w)
	w.up(1)
	w.frontState(xenbus.Closed)
	w.settle()
	w.v.suspend()
	k.successor(w)
	w.wantSteps("")
	w.detach()
	w.wantSteps("unregister")
	w.wantTap(0)
	if got := k.names(); got != "" {
		t.Errorf("kept %q", got)
	}
}

// TestAltNameIsRestored: the daemon that made the TAP was killed before it gave it a
// name.
func TestAltNameIsRestored(t *testing.T) {
	w := newWorld(t)
	w.attach()
	d, err := tap.Create(tap.Config{Name: ifname, VnetHdr: true, Persist: true})
	w.must(err)
	w.must(d.CloseKeep())
	w.wantSteps("publish init-wait")
	if l := w.iface(altName(testID)); l == nil || l.Name != ifname {
		t.Errorf("interface %+v", l)
	}
}

func TestParseKept(t *testing.T) {
	for name, want := range map[string]string{
		"tap-7.0-3": "7 0 3", "tap-32751.65535-255": "32751 65535 255",
		"": "", "stored": "", "tap-": "", "tap-7": "", "tap-7.0": "", "tap-07.0-0": "", "tap-7.0-0x": "",
		"tap-7.0--1": "", "tap-7.0-256": "", "tap-70000.0-0": "", "ring-7.0-0": "",
	} {
		got := ""
		if id, q, ok := ParseKept(name); ok {
			got = fmt.Sprint(id.Domid, id.Devid, q)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// TestKeptNames: a name tells the vif and the queue, and no two are the same.
func TestKeptNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := xenbus.VifID{
			Domid: xen.Domid(rapid.Uint16Range(0, uint16(xen.FirstReservedDomid)-1).Draw(t, "domid")),
			Devid: rapid.IntRange(0, 65535).Draw(t, "devid"),
		}
		queue := rapid.IntRange(0, tap.MaxQueues-1).Draw(t, "queue")
		got, q, ok := ParseKept(KeptName(id, queue))
		if !ok || got != id || q != queue {
			t.Errorf("got %v %d %t for queue %d of %v", got, q, ok, queue, id)
		}
	})
}

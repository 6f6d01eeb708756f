// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// breach breaks the ring protocol on the guest's last queue. When it returns the vif
// has noticed.
func (w *world) breach() {
	w.t.Helper()
	i := len(w.tx) - 1
	w.tx[i].SetReqProd(netif.TxRingSize + 1)
	w.host.kick(w.conns[i].txPort)
	w.handleNotices()
}

func TestQuarantine(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.breach()
	w.wantState("4") // so that it can still be closed properly
	w.wantHeld(nothing)
	w.wantTapAtRest()
	s := w.status()
	w.wantError("22 quarantined: " + s.Quarantine)
	if !strings.HasPrefix(s.Quarantine, "queue 1: ") || !strings.Contains(s.Quarantine, netif.ErrOverflow.Error()) || s.Carrier || s.Waits != "the guest to reconnect, or netbackd reset" {
		t.Errorf("status %+v", s)
	}
	for range 10 {
		w.frontState(xenbus.Connected)
		w.wantSteps("")
		w.wantHeld(nothing)
	}

	t.Run("reset", func(t *testing.T) {
		w.reset()
		if got := w.settle(); !strings.HasPrefix(got, "connect closing closed") {
			t.Errorf("steps %q", got) // the ring is still broken
		}
		w.wantState("6")
	})
	t.Run("the guest connects anew", func(t *testing.T) {
		w.frontState(xenbus.Closed)
		w.wantSteps("")
		w.frontState(xenbus.Initialising)
		w.wantSteps("publish init-wait")
		w.rings(2, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.wantError("-")
		if s := w.status(); s.Quarantine != "" || s.Error != "" {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("reset after the ring was put right", func(t *testing.T) {
		w.breach()
		w.tx[1].SetReqProd(0)
		w.reset()
		w.wantSteps("connect plug")
		w.wantState("4")
		w.wantHeld("4 pages, 2 handles, 2 ports")
	})
	t.Run("the guest connects anew, unseen and with the same names", func(t *testing.T) {
		w.breach()
		w.wantSteps("")
		w.sameRings()
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug")
		w.wantError("-")
	})
	t.Run("kexec", func(t *testing.T) {
		w.breach()
		w.frontState(xenbus.Initialising)
		w.wantSteps("closing closed publish init-wait")
	})
}

// reset does what Reset does, for a vif that does not run.
func (w *world) reset() {
	w.t.Helper()
	go func() { (<-w.v.mail.Calls)() }()
	if !w.v.Reset(context.Background()) {
		w.t.Error("not reset")
	}
}

// connectUnplugged attaches a vif and connects its guest before the hotplug script is
// done.
func (w *world) connectUnplugged() {
	w.t.Helper()
	w.attach()
	w.settle()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect")
}

// TestQuarantineBeforeHotplug: the vif is in InitWait, from where it would connect.
func TestQuarantineBeforeHotplug(t *testing.T) {
	w := newWorld(t)
	w.connectUnplugged()
	w.breach()
	w.plugIn()
	w.wantSteps("")
	w.wantState("2")
	w.frontState(xenbus.Reconfiguring) // and back, which is not to reconnect
	w.wantSteps("reconfigured")
	w.frontState(xenbus.Connected)
	w.wantSteps("init-wait")
	w.wantState("2")
	w.wantHeld(nothing)
	w.frontState(xenbus.Closing)
	w.wantSteps("closing")
	w.frontState(xenbus.Closed)
	w.wantSteps("closed")
	w.frontState(xenbus.Initialising)
	w.wantSteps("publish init-wait")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
}

// TestOldNotices: notices of a connection that has ended have no effect.
func TestOldNotices(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	tell := w.v.noticeHandler(w.v.conn)
	w.rings(1, false)
	w.wantSteps("disconnect connect plug")
	tell(dataplane.Notice{Kind: dataplane.Breach, Err: netif.ErrOverflow})
	tell(dataplane.Notice{Kind: dataplane.Stalled})
	w.handleNotices()
	if s := w.status(); s.Quarantine != "" || s.Stalled || s.State != xenbus.Connected {
		t.Errorf("status %+v", s)
	}
	w.wantHeld("2 pages, 1 handles, 1 ports")
	w.frontState(xenbus.Closing)
	w.wantSteps("disconnect closing")
	tell(dataplane.Notice{Kind: dataplane.Breach, Err: netif.ErrOverflow})
	w.handleNotices()
	w.wantSteps("")
	w.wantState("5")
}

// TestNoticesMerge: after many notices while it was busy, the vif acts on the present
// state, and does not miss a breach.
func TestNoticesMerge(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	tell := w.v.noticeHandler(w.v.conn)
	for range 1000 {
		tell(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
		tell(dataplane.Notice{Kind: dataplane.Resumed, Queue: 1})
		tell(dataplane.Notice{Kind: dataplane.Stalled, Queue: 0})
	}
	w.log.TakeAll()
	w.handleNotices()
	if n := len(w.log.All()); n != 1 {
		t.Errorf("%d lines in the log: %v", n, w.log.All())
	}
	for range 1000 {
		tell(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
		tell(dataplane.Notice{Kind: dataplane.Breach, Queue: 1, Err: netif.ErrOverflow})
	}
	w.handleNotices()
	if s := w.status(); s.Quarantine == "" {
		t.Errorf("status %+v", s)
	}
}

// TestStall: the TAP has no carrier while a guest posts no rx slots on one of its queues.
func TestStall(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	tell := w.v.noticeHandler(w.v.conn)
	for _, tt := range []struct {
		kind    dataplane.NoticeKind
		queue   int
		carrier bool
		stalled bool
	}{
		{dataplane.Stalled, 0, false, true},
		{dataplane.Stalled, 1, false, true},
		{dataplane.Resumed, 0, false, true},
		{dataplane.Stalled, 0, false, true},
		{dataplane.Resumed, 1, false, true},
		{dataplane.Resumed, 0, true, false},
	} {
		tell(dataplane.Notice{Kind: tt.kind, Queue: tt.queue})
		w.handleNotices()
		if s := w.status(); s.Carrier != tt.carrier || s.Stalled != tt.stalled {
			t.Errorf("queue %d %v: carrier %t, stalled %t; want %t, %t", tt.queue, tt.kind, s.Carrier, s.Stalled, tt.carrier, tt.stalled)
		}
		if s := w.status(); s.Waits != "" && tt.carrier || s.Waits == "" && !tt.carrier {
			t.Errorf("queue %d %v: waits for %q", tt.queue, tt.kind, s.Waits)
		}
	}
	w.wantSteps("")
}

// TestStallBeforeHotplug: the carrier stays off before the script is done.
func TestStallBeforeHotplug(t *testing.T) {
	w := newWorld(t)
	w.connectUnplugged()
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	tell := w.v.noticeHandler(w.v.conn)
	for _, k := range []dataplane.NoticeKind{dataplane.Stalled, dataplane.Resumed} {
		tell(dataplane.Notice{Kind: k})
		w.handleNotices()
		if w.status().Carrier {
			t.Errorf("carrier after %v", k)
		}
	}
}

// TestRealStall: the data plane reports a guest that posts no slots.
func TestRealStall(t *testing.T) {
	w := newWorld(t)
	w.cfg.Drain, w.cfg.Stall = 20*time.Millisecond, 40*time.Millisecond
	w.v = New(w.cfg)
	w.up(1)
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	// There is no slot for this broadcast.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer func() { w.must(unix.Close(fd)) }()
	frame := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 46)...)
	to := &unix.SockaddrLinklayer{Ifindex: w.iface(ifname).Index}
	w.must(unix.Sendto(fd, frame, 0, to))
	w.handleNotices()
	if s := w.status(); !s.Stalled || s.Carrier {
		t.Fatalf("stalled %t, carrier %t", s.Stalled, s.Carrier)
	}
	for range 64 {
		w.rx[0].Put(netif.RxRequest{Gref: bufferGref})
	}
	w.rx[0].Push()
	w.host.kick(w.conns[0].rxPort)
	w.handleNotices()
	if s := w.status(); s.Stalled || !s.Carrier {
		t.Errorf("stalled %t, carrier %t", s.Stalled, s.Carrier)
	}
}

// TestPanic: a panic costs this vif, not the daemon.
func TestPanic(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.v.guard(t.Context(), func() { panic("oops") })
	w.wantHeld(nothing)
	w.wantError("22 quarantined: internal error: oops")
	w.wantSteps("")
	w.wantState("4")
	w.reset()
	w.wantSteps("connect plug")
	w.wantHeld("4 pages, 2 handles, 2 ports")

	t.Run("and another one while the first is cleaned up", func(t *testing.T) {
		l := w.v.link
		w.v.link = brokenLink{l}
		w.v.guard(t.Context(), func() { panic("oops") })
		if s := w.status(); s.Quarantine == "" {
			t.Errorf("status %+v", s)
		}
		w.v.link = l
		w.v.closeLink(netengine.Leave)
		w.wantSteps("")
		w.detach()
		w.frontState(xenbus.Closed)
		w.wantSteps("closed unregister")
		w.wantTap(0)
	})
}

// brokenLink is a link that panics when it is closed.
type brokenLink struct{ netengine.Link }

func (brokenLink) Close(netengine.Ending) [dataplane.NumCounters]uint64 { panic("oops again") }

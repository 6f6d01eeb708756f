// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// elsewhere attaches a vif that another back end has connected and released.
func (w *world) elsewhere(queues int, pairs ...string) {
	w.t.Helper()
	w.attach("state", "4", "multi-queue-max-queues", "16", ClaimedKey, "1")
	w.rings(queues, true, pairs...)
	w.frontState(xenbus.Connected)
	w.v = New(w.cfg)
}

// TestClaimed: rings that another back end has served are served once the hotplug script
// has set up the TAP.
func TestClaimed(t *testing.T) {
	w := newWorld(t)
	w.elsewhere(2)
	w.wantSteps("tap")
	w.wantState("4")
	w.wantHeld("0 pages, 0 handles, 0 ports")
	w.wantError("-")
	if s := w.status(); s.Interface != ifname || s.Carrier || s.Waits != "the hotplug script" {
		t.Errorf("status %+v", s)
	}
	w.plugIn()
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	w.wantSteps("connect plug")
	w.wantState("4")
	w.wantError("-")
	w.wantHeld("4 pages, 2 handles, 4 ports")
	if s := w.status(); !s.Carrier || s.Waits != "" {
		t.Errorf("status %+v", s)
	}
	// From here on it is a vif like any other.
	w.must(netlink.LinkDel(w.iface(ifname)))
	w.eventually("the data plane notices", func() bool { return len(w.v.mail.Poked) > 0 })
	w.wantSteps("connect")
	w.wantError("22 " + errTapLost.Error())
}

// TestClaimedBeforeConnected: the hotplug script claims a vif whose guest may have
// connected while the other back end was in InitWait, and has the queues that it
// offered.
func TestClaimedBeforeConnected(t *testing.T) {
	for _, front := range []xenbus.State{xenbus.Initialising, xenbus.Connected} {
		t.Run(front.String(), func(t *testing.T) {
			w := newWorld(t)
			w.attach("state", "2", "multi-queue-max-queues", "16", ClaimedKey, "1")
			if front == xenbus.Connected {
				w.rings(12, true)
			}
			w.frontState(front)
			w.cfg.MaxQueues = 2
			w.v = New(w.cfg)
			want := map[xenbus.State]string{xenbus.Initialising: "publish", xenbus.Connected: "publish connect"}[front]
			w.wantSteps(want)
			w.wantState("2")
			w.wantError("-")
			if front == xenbus.Initialising {
				if got := w.get(backDir + "/multi-queue-max-queues"); got != "2" {
					t.Errorf("offers %s queues", got)
				}
				return
			}
			w.plugIn()
			w.wantSteps("plug connected")
			w.wantState("4")
		})
	}
}

// TestTaken: the other back end has taken the device first, and its interface has the name.
// The vif changes nothing of it.
func TestTaken(t *testing.T) {
	w := newWorld(t)
	_, err := netns.AddBridge(ifname) // any interface but a TAP
	w.must(err)
	t.Cleanup(func() { w.must(netns.Delete(ifname)) })
	w.attach()
	w.cfg.Taken = func() bool { return true }
	w.v = New(w.cfg)
	if steps, gone := w.look(); !gone || strings.Join(steps, " ") != "publish" {
		t.Errorf("steps %v, gone %t", steps, gone)
	}
	w.wantState("1")
	w.wantError("-")
}

// TestRelease: another back end finds everything that it needs.
func TestRelease(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	tap := w.iface(ifname)
	w.must(netlink.LinkSetUp(tap))
	w.eventually("carrier", func() bool { return w.status().Carrier })
	const sent = 5
	for range sent { // to a guest that posts no rx slots
		w.frame(tap.Index)
	}
	lost, err := w.v.release(t.Context())
	if err != nil || lost < sent {
		t.Errorf("%d lost, want at least %d, %v", lost, sent, err)
	}
	w.wantHeld("0 pages, 0 handles, 0 ports")
	w.wantState("4")
	w.wantError("-")
	if got := w.journals(); got != "" {
		t.Errorf("journals left: %s", got)
	}
	if _, err := netlink.LinkByName(ifname); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("the TAP is still there: %v", err)
	}
	if !w.v.released {
		t.Error("the vif has not ended")
	}
}

// frame sends a frame to the guest of a vif.
func (w *world) frame(index int) {
	w.t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer func() { w.must(unix.Close(fd)) }()
	var b [60]byte
	copy(b[:], "\x00\x16\x3e\x01\x02\x03\x02\x00\x00\x00\x00\x01\x88\xb5")
	w.must(unix.Sendto(fd, b[:], 0, &unix.SockaddrLinklayer{Ifindex: index}))
}

func TestReleaseRefused(t *testing.T) {
	t.Run("multicast", func(t *testing.T) {
		w := newWorld(t)
		w.attach()
		w.wantSteps("publish init-wait")
		w.plugIn()
		w.rings(1, false, "request-multicast-control", "1")
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		if _, err := w.v.release(t.Context()); !errors.Is(err, ErrMcast) {
			t.Errorf("got %v", err)
		}
		w.wantHeld("2 pages, 1 handles, 1 ports")
	})
	t.Run("control ring", func(t *testing.T) {
		w := newWorld(t)
		w.up(1)
		w.must(w.guest.Write(t.Context(), frontDir+"/ctrl-ring-ref", "9"))
		if _, err := w.v.release(t.Context()); !errors.Is(err, ErrCtrlRing) {
			t.Errorf("got %v", err)
		}
		w.wantHeld("2 pages, 1 handles, 1 ports")
	})
	t.Run("closed", func(t *testing.T) {
		w := newWorld(t)
		w.up(1)
		w.frontState(xenbus.Closed)
		w.wantSteps("disconnect closing closed")
		if _, err := w.v.release(t.Context()); !errors.Is(err, ErrNotOpen) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("quarantined", func(t *testing.T) {
		w := newWorld(t)
		w.up(1)
		w.v.quarantine(t.Context(), errors.New("broke the protocol"))
		if _, err := w.v.release(t.Context()); !errors.Is(err, ErrNotOpen) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("ended", func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		w.attach()
		w.v.Run(ctx)
		if _, err := w.v.Release(context.Background()); !errors.Is(err, ErrEnded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCanTakeOver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		state  string // of the back end
		queues int    // of a frontend that is connected, 0: it is not
		pairs  []string
		want   string // in the error
	}{
		{"waits for its guest", "2", 0, nil, ""},
		{"connected", "4", 2, nil, ""},
		{"as many queues as it was offered", "4", 16, nil, ""},
		{"more queues than it was offered", "4", 17, nil, "a number from 1 to 16"},
		{"no XDP program", "4", 1, []string{"xdp-headroom", "0"}, ""},
		{"XDP program", "4", 1, []string{"xdp-headroom", "256"}, ""},
		{"its guest has reconfigured", "8", 2, []string{"xdp-headroom", "256"}, ""},
		{"its guest has reconfigured and has a control ring", "8", 1, []string{"ctrl-ring-ref", "9"}, ErrCtrlRing.Error()},
		{"control ring", "4", 1, []string{"ctrl-ring-ref", "9"}, ErrCtrlRing.Error()},
		{"broken keys", "4", 1, []string{"tx-ring-ref", "x"}, `key "tx-ring-ref" is "x"`},
		{"closing", "5", 0, nil, "it is closing"},
		{"closed", "6", 0, nil, "it is closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.attach("state", tt.state, "multi-queue-max-queues", "16")
			if tt.queues > 0 {
				w.rings(tt.queues, true, tt.pairs...)
				w.frontState(xenbus.Connected)
			}
			err := CanAdopt(t.Context(), w.cfg.Store, backDir, 2)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestOverwritten: the kernel's driver is loaded while netbackd serves, and closes vifs that
// it cannot have. The vif corrects that unless the guest has seen it.
func TestOverwritten(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	w.must(w.tool.Write(t.Context(), backDir+"/state", "5"))
	w.must(w.tool.Remove(t.Context(), backDir+"/hotplug-status")) // as the driver does
	w.wantSteps("init-wait")
	w.wantState("2")
	w.plugIn()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.must(w.tool.Write(t.Context(), backDir+"/state", "5"))
	if steps, _ := w.look(); len(steps) > 0 {
		t.Errorf("steps %v: the guest is to decide", steps)
	}
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closing closed")
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestRateFollows(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected", "rate", "10240,50000")
	w.settle()
	check := func(want, errorNode string) {
		t.Helper()
		w.settle()
		if got := w.status().Rate; got != want {
			t.Errorf("rate %q, want %q", got, want)
		}
		w.wantError(errorNode)
	}
	check("10240 B/50ms", "-")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	check("10240 B/50ms", "-")
	w.must(w.tool.Write(t.Context(), backDir+"/rate", "20480,50000"))
	check("20480 B/50ms", "-")
	const bad = `22 key "rate" is "fast", want bytes and microseconds, such as 10240,50000`
	w.must(w.tool.Write(t.Context(), backDir+"/rate", "fast"))
	check("20480 B/50ms", bad)
	w.wantState("4")
	w.must(w.tool.Write(t.Context(), backDir+"/rate", "1,1"))
	check("1 B/1µs", bad) // stays until the guest connects next
	w.must(w.tool.Remove(t.Context(), backDir+"/rate"))
	check("unlimited", bad)
}

func TestWeightFollows(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected", "weight", "4")
	check := func(want int, errorNode string) {
		t.Helper()
		w.settle()
		if got := w.status().Weight; got != want {
			t.Errorf("weight %d, want %d", got, want)
		}
		w.wantError(errorNode)
	}
	check(4, "-")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	check(4, "-")
	w.must(w.tool.Write(t.Context(), backDir+"/weight", "16"))
	check(16, "-")
	w.wantState("4")
	w.must(w.tool.Remove(t.Context(), backDir+"/weight"))
	check(1, "-")
	w.must(w.tool.Write(t.Context(), backDir+"/weight", "17"))
	check(1, `22 key "weight" is "17", want a number from 1 to 16`)
}

// TestMcastFollows: a frontend may ask for the filter while it is connected.
func TestMcastFollows(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.wantSteps("")
	has := func() bool { return slices.Contains(w.status().Features, "multicast-control") }
	for _, tt := range []struct {
		value string
		want  bool
	}{{"1", true}, {"0", false}, {"1", true}, {"", false}, {"1", true}, {"-", false}} {
		before := len(w.v.mcastWatch.Events())
		if tt.value == "-" {
			w.must(w.guest.Remove(t.Context(), frontDir+"/"+mcastKey))
		} else {
			w.must(w.guest.Write(t.Context(), frontDir+"/"+mcastKey, tt.value))
		}
		if before == 0 {
			<-w.v.mcastWatch.Events() // the event makes a running vif look
		}
		w.wantSteps("")
		if has() != tt.want {
			t.Errorf("%s=%q: filter %t", mcastKey, tt.value, has())
		}
	}
	w.must(w.guest.Write(t.Context(), frontDir+"/"+mcastKey, "banana"))
	w.wantSteps("")
	w.wantError(`22 frontend key "request-multicast-control" is "banana", want 0 or 1`)
	w.wantState("4")
	w.wantHeld("2 pages, 1 handles, 1 ports")
}

// TestMcastListIsForgotten: the list belongs to the connection.
func TestMcastListIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.tx[0].Put(netif.TxRequest{Flags: netif.TxExtraInfo})
	w.tx[0].PutExtra(netif.NewMcast(true, [6]byte{0x01, 0x00, 0x5e, 0, 0, 0x16}))
	w.tx[0].Push()
	w.host.kick(w.conns[0].txPort)
	w.eventually("the address is in the list", func() bool {
		return slices.Equal(w.status().Mcast, []string{"01:00:5e:00:00:16"})
	})
	w.frontState(xenbus.Closing)
	w.wantSteps("disconnect closing")
	w.frontState(xenbus.Closed)
	w.wantSteps("closed")
	w.frontState(xenbus.Initialising)
	w.settle()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	if got := w.status().Mcast; len(got) != 0 {
		t.Errorf("the list holds %v", got)
	}
	if got := w.status().Counters["mcast_changes"]; got != 1 {
		t.Errorf("%d changes counted, want the one of the first connection", got)
	}
}

// TestMcastAfterRestart: without a journal a successor does not know the list, and the
// guest does not send it again.
func TestMcastAfterRestart(t *testing.T) {
	for _, tt := range []struct {
		name     string
		lost     bool
		filtered uint64
	}{
		{name: "the list is in the journal", filtered: 1},
		{name: "the list is lost", lost: true},
	} {
		t.Run(tt.name, func(t *testing.T) { mcastAfterRestart(t, tt.lost, tt.filtered) })
	}
}

func mcastAfterRestart(t *testing.T, lost bool, filtered uint64) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.settle()
	w.rings(1, false, "request-multicast-control", "1")
	w.frontState(xenbus.Connected)
	w.settle()
	w.v.suspend()
	if lost {
		w.must(os.Remove(filepath.Join(w.cfg.RunDir, "ring-7.0-0")))
	}
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	for range 4 {
		w.rx[0].Put(netif.RxRequest{Gref: bufferGref})
	}
	w.rx[0].Push()
	w.host.kick(w.conns[0].rxPort)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer func() { w.must(unix.Close(fd)) }()
	frame := append([]byte("\x33\x33\xff\x00\x00\x01\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 46)...)
	w.must(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.iface(ifname).Index}))
	w.eventually("the frame passed, or was filtered", func() bool {
		c := w.status().Counters
		return c["rx_packets"]+c["rx_mcast_filtered"] == 1
	})
	if n := w.status().Counters["rx_mcast_filtered"]; n != filtered {
		t.Errorf("%d frames were filtered, want %d", n, filtered)
	}
}

func TestMTU(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected", "mtu", "9000")
	w.must(w.tool.Write(t.Context(), frontDir+"/mtu", "9000"))
	w.settle()
	want := func(tap int) {
		t.Helper()
		if s := w.status(); s.MTU != tap || s.ConfigMTU != 9000 || s.GuestMTU != 9000 {
			t.Errorf("mtu %d, configured %d, guest %d", s.MTU, s.ConfigMTU, s.GuestMTU)
		}
	}
	want(9000)

	// This is a boot loader that takes one slot.
	w.rings(1, false, "feature-sg", "0")
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	want(1500)
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closing closed")
	w.frontState(xenbus.Initialising)
	w.settle()
	// This is the kernel that it starts.
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	want(9000)

	// The choice of a script stays.
	w.must(netlink.LinkSetMTU(w.iface(ifname), 4000))
	w.rings(1, false)
	w.wantSteps("disconnect connect plug")
	want(4000)
	w.rings(1, false, "feature-sg", "0")
	w.wantSteps("disconnect connect plug")
	want(1500)
	w.must(netlink.LinkSetMTU(w.iface(ifname), 1400))
	w.rings(1, false)
	w.wantSteps("disconnect connect plug")
	want(1400)
}

// TestMTURaised: the host raises the MTU while a guest without scatter-gather is
// connected. The first packet that does not fit is counted and logged, and is the last.
func TestMTURaised(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.settle()
	w.must(netns.Up(ifname))
	w.rings(1, false, "feature-sg", "0")
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.slots(10)
	w.must(netlink.LinkSetMTU(w.iface(ifname), 9000))
	w.send(9000)
	w.handleNotices()
	if got := w.iface(ifname).MTU; got != 1500 {
		t.Errorf("MTU %d, want 1500 again", got)
	}
	w.eventually("the packet is counted", func() bool { return w.status().Counters["rx_too_big"] == 1 })
	if n := w.log.FilterMessageSnippet("no packet larger than a page").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	// The raised MTU holds for a guest with scatter-gather.
	w.frontState(xenbus.Closed)
	w.settle()
	w.frontState(xenbus.Initialising)
	w.settle()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	if got := w.iface(ifname).MTU; got != 9000 {
		t.Errorf("MTU %d, want 9000", got)
	}
}

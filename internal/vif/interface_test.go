// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestOneQueueOffered: a vif that offers one queue has a TAP that can have only one, and a
// successor that offers more still serves it with one queue.
func TestOneQueueOffered(t *testing.T) {
	w := newWorld(t)
	w.cfg.MaxQueues = 1
	w.v = New(w.cfg)
	w.up(1)
	single := func(want bool) {
		t.Helper()
		if got := w.iface(ifname).Flags&netlink.TUNTAP_MULTI_QUEUE == 0; got != want {
			t.Errorf("a TAP with one queue: %v", got)
		}
	}
	single(true)
	index := w.iface(ifname).Index

	w.v.suspend()
	w.cfg.MaxQueues = testMaxQueues
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	w.wantState("4")
	single(true)

	w.frontState(xenbus.Closing)
	w.settle()
	w.frontState(xenbus.Closed)
	w.settle()
	w.frontState(xenbus.Initialising)
	w.settle()
	if got := w.get(backDir + "/multi-queue-max-queues"); got != "1" {
		t.Errorf("%s queues are offered of a TAP that can have one", got)
	}
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.settle()
	if got := w.get(errorKey); got == "-" {
		t.Error("a frontend with more queues than were offered gets no error")
	}
	w.rings(1, false)
	w.frontState(xenbus.Initialising)
	w.settle()
	w.frontState(xenbus.Connected)
	w.settle()
	w.wantState("4")
	if got := w.iface(ifname).Index; got != index {
		t.Errorf("another TAP: index %d, was %d", got, index)
	}
}

// TestTapOfAPredecessorThatOfferedMore: a successor that offers one queue still serves the
// TAP with several queues.
func TestTapOfAPredecessorThatOfferedMore(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	index := w.iface(ifname).Index
	w.v.suspend()
	w.cfg.MaxQueues = 1
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	w.wantState("4")
	w.wantTap(2)
	if got := w.iface(ifname).Index; got != index {
		t.Errorf("another TAP: index %d, was %d", got, index)
	}
}

// TestDisciplineDeleted: a hotplug script may delete the TAP's queueing discipline. The
// kernel then makes one for each of 256 queues. The vif removes these.
func TestDisciplineDeleted(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	l := w.iface(ifname)
	kinds := func() (kinds []string) {
		all, err := netlink.QdiscList(l)
		w.must(err)
		for _, q := range all {
			kinds = append(kinds, q.Type())
		}
		return kinds
	}
	w.must(netns.Up(ifname))
	if got := kinds(); len(got) != 1 || got[0] != "noqueue" {
		t.Fatalf("disciplines: %v", got)
	}
	all, err := netlink.QdiscList(l)
	w.must(err)
	w.must(netlink.QdiscDel(all[0]))
	if got := kinds(); len(got) < 2 { // those of queues that are not open are not shown
		t.Fatalf("disciplines of the kernel's: %v", got)
	}
	w.plugIn()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	if got := kinds(); len(got) != 1 || got[0] != "noqueue" {
		t.Errorf("%d disciplines", len(got))
	}
}

// TestAdministratorsInterface: an administrator's settings of the TAP stay when its
// guest reconnects and when the daemon is restarted.
func TestAdministratorsInterface(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	l := w.iface(ifname)
	w.must(netlink.LinkSetTxQLen(l, 99))
	w.must(netlink.LinkSetAlias(l, "web's"))
	w.must(netlink.LinkSetGroup(l, 7))
	w.must(netlink.SetPromiscOn(l))
	w.must(netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 9}))
	w.must(netns.AddAddr(ifname, "10.77.0.1/24"))
	w.must(netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(7, 0)},
		Rate:       1 << 20, Limit: 1 << 20, Buffer: 1 << 20,
	}))
	check := func(when string) {
		t.Helper()
		l := w.iface(ifname)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		w.must(err)
		qdiscs, err := netlink.QdiscList(l)
		w.must(err)
		for what, kept := range map[string]bool{
			"the length of its queues": l.TxQLen == 99,
			"its alias":                l.Alias == "web's",
			"its group":                l.LinkAttrs.Group == 7,
			"promiscuous mode":         l.Promisc > 0,
			"its hardware address":     l.HardwareAddr.String() == "02:00:00:00:00:09",
			"its address":              len(addrs) == 1,
			"its queueing discipline": slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool {
				return q.Type() == "tbf"
			}),
		} {
			if !kept {
				t.Errorf("%s: %s is not as it was set", when, what)
			}
		}
	}
	check("set")
	w.frontState(xenbus.Closing)
	w.settle()
	w.frontState(xenbus.Closed)
	w.settle()
	w.frontState(xenbus.Initialising)
	w.settle()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.settle()
	w.wantState("4")
	check("connected anew")
	w.v.suspend()
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	check("another daemon")
}

// TestBridgeInUserspace: Open vSwitch's userspace datapath takes packets as they are,
// so the TAP of a vif for such a bridge has no vnet header. That stays so for a
// successor, also while the bridge does not exist.
func TestBridgeInUserspace(t *testing.T) {
	for _, name := range []string{"ovsbr0", "ovsbr0.7", "ovsbr0:1,2", "ovsbr0.7:1,2"} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, kept %v", name, keep), func(t *testing.T) {
				w := newWorld(t)
				var k *fakeKeeper
				if keep {
					k = newKeeper(w)
				}
				ovs, err := tap.Create(tap.Config{Name: "ovsbr0"})
				w.must(err)
				gone := sync.OnceFunc(func() { w.must(ovs.Close()) })
				defer gone()
				w.attach("bridge", name)
				w.wantSteps("publish init-wait")
				w.plugIn()
				w.rings(2, false)
				w.frontState(xenbus.Connected)
				w.wantSteps("connect plug connected")
				plain := func(when string) {
					t.Helper()
					if l := w.iface(ifname); l.Flags&netlink.TUNTAP_VNET_HDR != 0 || l.Queues != 2 {
						t.Errorf("%s: flags %#x, %d queues", when, l.Flags, l.Queues)
					}
				}
				plain("connected")
				gone()
				w.v.suspend()
				if w.v = New(w.cfg); keep {
					k.successor(w)
				}
				w.wantSteps("connect plug")
				plain("another daemon")
				w.wantError("-")
			})
		}
	}
	// This is a bridge of the kernel.
	w := newWorld(t)
	_, err := netns.AddBridge("xenbr0")
	w.must(err)
	defer func() { w.must(netns.Delete("xenbr0")) }()
	w.up(1)
	if l := w.iface(ifname); l.Flags&netlink.TUNTAP_VNET_HDR == 0 {
		t.Errorf("flags %#x", l.Flags)
	}
}

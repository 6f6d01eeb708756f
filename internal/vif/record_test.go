// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// dies kills the daemon: nothing of its orderly end happens, and the kernel closes its
// files.
func (w *world) dies() {
	w.t.Helper()
	v := w.v
	if v.conn != nil {
		v.closeLink(netengine.Leave)
	}
	v.unwatch()
	v.closeKeptQueues()
	if v.tap != nil {
		w.must(v.tap.CloseKeep())
	}
	w.v = New(w.cfg)
}

// ends lists the ways in which a daemon ends.
var ends = map[string]func(w *world){
	"stopped": func(w *world) { w.v.suspend(); w.v = New(w.cfg) },
	"killed":  (*world).dies,
}

// eachEnd runs a test for each end.
func eachEnd(t *testing.T, test func(t *testing.T, w *world, end func())) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test(t, w, func() { t.Helper(); end(w); w.wantHeld(nothing) })
		})
	}
}

// TestQuarantineOutlivesTheDaemon: a quarantine and its reason outlive a restart, and the
// quarantine ends as without a restart.
func TestQuarantineOutlivesTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.up(2)
		w.breach()
		reason := w.status().Quarantine
		for range 2 {
			end()
			w.wantSteps("")
			w.wantState("4")
			w.wantHeld(nothing)
			if s := w.status(); s.Quarantine != reason || s.Interface == "" || s.Waits != "the guest to reconnect, or netbackd reset" {
				t.Errorf("status %+v, want the reason %q", s, reason)
			}
			w.wantError("22 quarantined: " + reason)
		}
		w.frontState(xenbus.Closing)
		w.wantSteps("closing")
		w.frontState(xenbus.Closed)
		w.wantSteps("closed")
		w.frontState(xenbus.Initialising)
		w.wantSteps("publish init-wait")
		w.rings(2, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.wantError("-")
		end()
		w.wantSteps("connect plug")
	})
}

// TestResetOutlivesTheDaemon: a reset by an administrator also counts for the next daemon.
func TestResetOutlivesTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.up(1)
		w.breach()
		w.tx[0].SetReqProd(0)
		end()
		w.wantSteps("")
		w.reset()
		w.wantSteps("connect plug")
		end()
		w.wantSteps("connect plug")
		if s := w.status(); s.Quarantine != "" || s.State != xenbus.Connected {
			t.Errorf("status %+v", s)
		}
	})
}

// TestMTUOutlivesTheDaemon: the TAP gets back the MTU that it had before a frontend without
// scatter-gather, also from a successor, independent of the time of the predecessor's death.
func TestMTUOutlivesTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.attach("mtu", "9000")
		w.settle()
		w.plugIn()
		w.rings(1, false, "feature-sg", "0")
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		mtu := func(want int) {
			t.Helper()
			if got := w.iface(ifname).MTU; got != want {
				t.Errorf("MTU %d, want %d", got, want)
			}
		}
		mtu(1500)
		for range 2 {
			end()
			w.wantSteps("connect plug")
			mtu(1500)
		}
		end()
		w.frontState(xenbus.Initialising)
		w.settle()
		w.rings(1, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		mtu(9000)
		end()
		w.wantSteps("connect plug")
		mtu(9000)
	})
}

// TestStallOutlivesTheDaemon: a TAP whose guest posts no rx slots gets no carrier from a
// successor before the guest posts some.
func TestStallOutlivesTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.up(2)
		w.must(netlink.LinkSetUp(w.iface(ifname)))
		w.v.noticeHandler(w.v.conn)(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
		w.handleNotices()
		for range 2 {
			end()
			w.wantSteps("connect plug")
			if s := w.status(); !s.Stalled || s.Carrier || s.Queues[0].Stalled || !s.Queues[1].Stalled {
				t.Errorf("stalled %t, carrier %t, queues %+v", s.Stalled, s.Carrier, s.Queues)
			}
		}
		w.slots(20)
		w.handleNotices()
		if s := w.status(); s.Stalled || !s.Carrier || s.Queues[1].Stalled {
			t.Errorf("stalled %t, carrier %t, queues %+v", s.Stalled, s.Carrier, s.Queues)
		}
		end()
		w.wantSteps("connect plug")
		if s := w.status(); s.Stalled || !s.Carrier {
			t.Errorf("stalled %t, carrier %t", s.Stalled, s.Carrier)
		}
		// Another connection is not stalled.
		w.v.noticeHandler(w.v.conn)(dataplane.Notice{Kind: dataplane.Stalled, Queue: 1})
		w.handleNotices()
		end()
		w.sameRings()
		w.wantSteps("connect plug")
		if s := w.status(); s.Stalled || !s.Carrier {
			t.Errorf("another connection: stalled %t, carrier %t", s.Stalled, s.Carrier)
		}
	})
}

// TestKilledWhenItFindsTheTAPGone: a daemon is killed after a TAP was deleted and before it
// reports that. The next daemon reports it, and knows that the hotplug script has not set
// up the new TAP.
func TestKilledWhenItFindsTheTAPGone(t *testing.T) {
	for _, kept := range []bool{false, true} {
		w := newWorld(t)
		var k *fakeKeeper
		if kept {
			k = newKeeper(w)
		}
		w.up(1)
		w.v.suspend()
		w.must(netlink.LinkDel(w.iface(ifname)))
		if kept {
			k.successor(w)
		} else {
			w.v = New(w.cfg)
		}
		w.xs.commit = func(tx *xenstore.Tx) {
			if w.get(backDir+"/hotplug-status") == "connected" && w.iface(ifname) != nil {
				t.Error("there is another TAP, and the script counts as done for it")
			}
		}
		w.wantSteps(map[bool]string{false: "connect", true: "connect plug"}[kept])
		w.xs.commit = nil
		w.wantError("22 " + errTapLost.Error())
		if got := w.get(backDir + "/hotplug-status"); got != "" {
			t.Errorf("hotplug-status %q", got)
		}
		w.v.suspend()
		_ = removeTapNamed(ifname)
	}
}

// TestClaimOutlivesTheDaemon: another back end has served the vif until now, and the daemon
// is restarted before it has connected. Packets wait in the rings until the hotplug script
// is done, and no error is reported for a missing TAP.
func TestClaimOutlivesTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.elsewhere(2)
		end() // before the first look
		w.wantSteps("tap")
		end() // with a TAP that the script has not seen
		w.wantSteps("tap")
		w.wantState("4")
		w.wantHeld(nothing)
		w.wantError("-")
		if s := w.status(); s.Waits != "the hotplug script" || s.Carrier {
			t.Errorf("status %+v", s)
		}
		end()
		w.plugIn()
		w.wantSteps("connect plug")
		if got := w.get(backDir + "/" + ClaimedKey); got != "-" {
			t.Errorf("still marked as claimed: %q", got)
		}
		// From here on it is a vif like any other.
		end()
		w.wantSteps("connect plug")
		w.v.suspend()
		w.must(netlink.LinkDel(w.iface(ifname)))
		w.v = New(w.cfg)
		w.wantSteps("connect")
		w.wantError("22 " + errTapLost.Error())
	})
}

// TestCountersOutliveTheDaemon: the counters begin no lower than a predecessor has shown
// them.
func TestCountersOutliveTheDaemon(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, end func()) {
		w.up(1)
		count := func() uint64 { return w.status().Counters["tx_slots"] }
		w.sendList([6]byte{1, 0, 0x5e, 0, 0, 9})
		w.comeAgain()
		w.rings(1, false)
		w.frontState(xenbus.Connected)
		w.settle()
		if n := count(); n != 2 {
			t.Errorf("%d slots of 2", n)
		}
		end()
		w.wantSteps("connect plug")
		if n := count(); n != 2 {
			t.Errorf("after a restart %d slots of 2", n)
		}
		// These are counters of the present connection, as they were shown.
		w.sendList([6]byte{1, 0, 0x5e, 0, 0, 10})
		w.v.saved = device.NewRecord(recordPath(w.v.cfg.RunDir, w.v.cfg.ID)) // of unknown age
		if n := count(); n != 4 {
			t.Errorf("%d slots of 4", n)
		}
		end()
		w.wantSteps("connect plug")
		if n := count(); n != 4 {
			t.Errorf("after another restart %d slots of 4", n)
		}
		// The counters of another device in its place begin at 0.
		w.must(w.tool.Remove(t.Context(), backDir))
		w.must(w.tool.Remove(t.Context(), frontDir))
		end()
		w.attach()
		w.wantSteps("publish init-wait")
		if n := count(); n != 0 {
			t.Errorf("another device has %d", n)
		}
	})
}

// TestDeviceMadeAnewWhileNoDaemonRuns: a device that the toolstack has removed and made
// again while no daemon ran inherits nothing from the old one: neither its TAP, nor the
// packets in it, nor its MTU, nor its quarantine.
func TestDeviceMadeAnewWhileNoDaemonRuns(t *testing.T) {
	for _, kept := range []bool{false, true} {
		eachEnd(t, func(t *testing.T, w *world, end func()) {
			var k *fakeKeeper
			if kept {
				k = newKeeper(w)
			}
			w.up(1)
			w.breach()
			before := w.iface(ifname).Index
			w.must(netlink.LinkSetMTU(w.iface(ifname), 9000))
			end()
			w.must(w.tool.Remove(t.Context(), backDir))
			w.must(w.tool.Remove(t.Context(), frontDir))
			if kept {
				k.successor(w)
			}
			w.attach()
			w.wantSteps("publish init-wait")
			if l := w.iface(ifname); l == nil || l.Index == before || l.MTU != 1500 {
				t.Errorf("interface %+v, before %d", l, before)
			}
			if s := w.status(); s.Quarantine != "" {
				t.Errorf("quarantined: %s", s.Quarantine)
			}
			if kept && k.names() != "tap-7.0-0" {
				t.Errorf("kept: %q", k.names())
			}
		})
	}
}

// TestRecordIsGarbage: a vif is served although its record cannot be read or written.
func TestRecordIsGarbage(t *testing.T) {
	for _, garbage := range []string{"", "{", `{"connection":"12"}`, `{"stalled":[-1,7,99999999]}`, `{"full_mtu":-5,"interface":-1}`, strings.Repeat("x", 1<<16)} {
		w := newWorld(t)
		w.up(1)
		w.v.suspend()
		w.must(os.WriteFile(recordPath(w.v.cfg.RunDir, w.v.cfg.ID), []byte(garbage), 0o600))
		w.v = New(w.cfg)
		w.wantSteps("connect plug")
		if s := w.status(); s.State != xenbus.Connected || s.Quarantine != "" || s.Stalled {
			t.Errorf("of %.20q: %+v", garbage, s)
		}
		w.v.suspend()
	}
	t.Run("no room", func(t *testing.T) {
		w := newWorld(t)
		w.must(os.Mkdir(recordPath(w.v.cfg.RunDir, w.v.cfg.ID), 0o700))
		w.up(1)
		if s := w.status(); s.State != xenbus.Connected {
			t.Errorf("%+v", s)
		}
	})
}

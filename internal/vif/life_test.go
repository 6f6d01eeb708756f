// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestCreate: the TAP and the features exist before state 2 can be read and the hotplug
// script be started.
func TestCreate(t *testing.T) {
	w := newWorld(t)
	w.attach()
	seen := false
	w.xs.commit = func(tx *xenstore.Tx) {
		if s, _ := tx.Read(t.Context(), backDir+"/state"); s != "2" {
			return
		}
		seen = true
		if w.iface(ifname) == nil {
			t.Error("state 2 without a TAP")
		}
		if v, err := tx.Read(t.Context(), backDir+"/feature-rx-copy"); v != "1" {
			t.Errorf("state 2 without features: %q, %v", v, err)
		}
	}
	w.wantSteps("publish init-wait")
	if !seen {
		t.Error("no transaction wrote state 2")
	}
	w.wantState("2")
	for _, p := range (backendOffer{maxQueues: testMaxQueues, offload: true, split: true}).nodes() {
		if got := w.get(backDir + "/" + p.key); got != p.value {
			t.Errorf("%s is %q, want %q", p.key, got, p.value)
		}
	}
	l := w.iface(ifname)
	if l.Flags&1 != 0 {
		t.Error("the TAP is up, so a script cannot rename it")
	}
	if l.TxQLen != txQueueLen {
		t.Errorf("txqueuelen %d, want %d", l.TxQLen, txQueueLen)
	}
	if l.NonPersist {
		t.Error("the TAP goes with the process")
	}
	if got := l.HardwareAddr.String(); got != "fe:ff:ff:ff:ff:ff" {
		t.Errorf("the address is %s", got)
	}
	if got := w.status().Waits; got != "the guest" {
		t.Errorf("waits for %q", got)
	}
	w.wantError("-")
}

// TestHotplugGate: state 4 is shown when the hotplug script is done, and not before.
func TestHotplugGate(t *testing.T) {
	for _, tt := range []struct {
		status string // "-": no node
		open   bool
	}{
		{"-", true}, {"connected", true}, {"", false}, {"error", false}, {"connected ", true}, {"Connected", false},
	} {
		t.Run(fmt.Sprintf("hotplug-status=%s", tt.status), func(t *testing.T) {
			w := newWorld(t)
			w.attach("hotplug-status", tt.status)
			w.wantSteps("publish init-wait")
			w.rings(1, false)
			w.frontState(xenbus.Connected)
			if tt.open {
				w.wantSteps("connect plug connected")
				w.wantState("4")
			} else {
				w.wantSteps("connect")
				w.wantState("2")
				if got := w.status().Waits; got != "the hotplug script" {
					t.Errorf("waits for %q", got)
				}
				w.plugIn()
				w.wantSteps("plug connected")
				w.wantState("4")
			}
			// Nothing else brings it up.
			if up := w.status().Up; up != (tt.status == "-") {
				t.Errorf("up %t", up)
			}
		})
	}
}

func TestConnect(t *testing.T) {
	for _, queues := range []int{1, 2, 8} {
		for _, split := range []bool{false, true} {
			for _, offload := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d queues, split %t, offload %t", queues, split, offload), func(t *testing.T) {
					w := newWorld(t)
					w.cfg.Offload = offload
					w.v = New(w.cfg)
					w.attach()
					w.wantSteps("publish init-wait")
					w.plugIn()
					w.rings(queues, split)
					w.frontState(xenbus.Connected)
					w.wantSteps("connect plug connected")
					w.wantState("4")
					w.wantTap(queues)
					ports := queues
					if split {
						ports = 2 * queues
					}
					w.wantHeld(fmt.Sprintf("%d pages, %d handles, %d ports", 2*queues, queues, ports))
					s := w.status()
					if len(s.Queues) != queues || s.Grants != 2*queues || s.Ports != ports || s.State != xenbus.Connected || s.Since.IsZero() {
						t.Errorf("status %+v", s)
					}
					w.must(netlink.LinkSetUp(w.iface(ifname)))
					if s := w.status(); !s.Up || !s.Carrier || s.Waits != "" {
						t.Errorf("up %t, carrier %t, waits for %q", s.Up, s.Carrier, s.Waits)
					}
					w.wantSteps("")
				})
			}
		}
	}
}

// TestDriverReload: the guest unloads and loads its driver repeatedly. The device stays.
func TestDriverReload(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	index := w.iface(ifname).Index
	for range 3 {
		w.frontState(xenbus.Closing)
		w.wantSteps("disconnect closing")
		w.wantState("5")
		w.wantHeld(nothing)
		w.frontState(xenbus.Closed)
		w.wantSteps("closed")
		w.wantState("6")
		w.wantTapAtRest()
		if got := w.journals(); got != "" {
			t.Errorf("journals left: %s", got)
		}
		if s := w.status(); s.Carrier || s.Waits != "the guest" {
			t.Errorf("carrier %t, waits for %q", s.Carrier, s.Waits)
		}
		w.frontState(xenbus.Initialising)
		w.wantSteps("publish init-wait")
		w.wantState("2")
		w.rings(2, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.wantHeld("4 pages, 2 handles, 2 ports")
		if got := w.iface(ifname).Index; got != index {
			t.Fatalf("another TAP, index %d, want %d, so it is in no bridge", got, index)
		}
	}
	w.wantError("-")
}

// TestKexec: a new kernel does not know the rings of the old one.
func TestKexec(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.frontState(xenbus.Initialising)
	w.wantSteps("disconnect closing closed publish init-wait")
	w.wantHeld(nothing)
	w.rings(1, true)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.wantHeld("2 pages, 1 handles, 2 ports")
	w.wantTap(1)
}

// TestOtherRings: the frontend reconnects between two looks of the vif.
func TestOtherRings(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.rings(2, true)
	w.frontState(xenbus.Connected)
	w.wantSteps("disconnect connect plug")
	w.wantState("4")
	w.wantHeld("4 pages, 2 handles, 4 ports")
	if s := w.status(); len(s.Queues) != 2 {
		t.Errorf("%d queues", len(s.Queues))
	}
	// Other keys that the guest writes meanwhile do not matter.
	w.must(w.guest.Write(t.Context(), frontDir+"/feature-sg", "0"))
	w.must(w.guest.Write(t.Context(), frontDir+"/multi-queue-num-queues", "banana"))
	w.wantSteps("")
	w.wantHeld("4 pages, 2 handles, 4 ports")
}

// TestStateOverwritten: a device whose state another program sets to Initialising gets
// another TAP, which the hotplug script has not seen.
func TestStateOverwritten(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	before := w.iface(ifname).Index
	w.must(w.tool.Write(t.Context(), backDir+"/state", "1"))
	w.wantSteps("publish init-wait connect plug") // which finds out
	if l := w.iface(ifname); l == nil || l.Index == before {
		t.Errorf("interface %+v, want another", l)
	}
	w.wantState("2")
	if got := w.get(backDir + "/hotplug-status"); got != "" {
		t.Errorf("hotplug-status is %q", got)
	}
	w.wantError("22 " + errTapLost.Error())
	w.plugIn()
	w.wantSteps("plug connected")
	w.wantError("-")
}

// TestStateNodeRemoved: the device exists as long as its state node does.
func TestStateNodeRemoved(t *testing.T) {
	for _, back := range []string{"1", "2", "4", "5", "6", "8", "nonsense"} {
		t.Run(back, func(t *testing.T) {
			w := newWorld(t)
			w.up(1)
			w.must(w.tool.Remove(t.Context(), backDir+"/state"))
			w.wantSteps("gone")
			w.wantHeld(nothing)
			w.wantTap(0)
			w.wantState("-")
			w.wantError("-")
			if got := w.journals(); got != "" {
				t.Errorf("in the run directory: %s", got)
			}
			w.v = New(w.cfg) // the backend finds the device again
			w.must(w.tool.Write(t.Context(), backDir+"/hotplug-status", ""))
			w.must(w.tool.Write(t.Context(), backDir+"/state", back))
			w.settle()
			w.frontState(xenbus.Initialising)
			w.settle()
			w.wantState("2")
			w.plugIn()
			w.rings(1, false)
			w.frontState(xenbus.Connected)
			w.settle()
			w.wantState("4")
			w.wantHeld("2 pages, 1 handles, 1 ports")
		})
	}
}

// TestOnline: only 0 means that the toolstack does not want the device.
func TestOnline(t *testing.T) {
	for value, want := range map[string]bool{"-": true, "1": true, "": true, "2": true, "no": true, "0": false, " 0\n": false} {
		t.Run(value, func(t *testing.T) {
			w := newWorld(t)
			w.attach("online", value)
			w.settle()
			if got := w.status().Online; got != want {
				t.Errorf("online is %t", got)
			}
			if state := w.get(backDir + "/state"); (state == "2") != want {
				t.Errorf("shows %s", state)
			}
		})
	}
}

// TestFrontendElsewhere: a vif whose frontend directory is not named, or does not
// belong to its domain, is closed. It is served when that is corrected.
func TestFrontendElsewhere(t *testing.T) {
	for _, tt := range []struct{ frontend, error string }{
		{"-", "-"},
		{"", "-"},
		{"/local/domain/8/device/vif/0", `22 key "frontend" is "/local/domain/8/device/vif/0", want a directory below /local/domain/7`},
		{"/local/domain/70/device/vif/0", `22 key "frontend" is "/local/domain/70/device/vif/0", want a directory below /local/domain/7`},
		{"/local/domain/7", `22 key "frontend" is "/local/domain/7", want a directory below /local/domain/7`},
		{"device/vif/0", `22 key "frontend" is "device/vif/0", want a directory below /local/domain/7`},
		{frontDir + "/", `22 key "frontend" is "` + frontDir + `/", want a directory below /local/domain/7`},
		{"/local/domain/7/a b", `22 key "frontend" is "/local/domain/7/a b", want a directory below /local/domain/7`},
	} {
		t.Run(tt.frontend, func(t *testing.T) {
			w := newWorld(t)
			w.up(1)
			w.must(w.tool.Write(t.Context(), "/local/domain/8/device/vif/0/state", "4"))
			if tt.frontend == "-" {
				w.must(w.tool.Remove(t.Context(), backDir+"/frontend"))
			} else {
				w.must(w.tool.Write(t.Context(), backDir+"/frontend", tt.frontend))
			}
			w.wantSteps("disconnect closing closed unregister")
			w.wantError(tt.error)
			w.wantHeld(nothing)
			if !w.v.alarm.At().IsZero() {
				t.Error("the alarm is set, though nothing changes")
			}
			w.must(w.tool.Write(t.Context(), backDir+"/frontend", frontDir))
			w.frontState(xenbus.Initialising)
			w.wantSteps("publish init-wait")
			w.plugIn() // for another TAP
			w.rings(1, false)
			w.frontState(xenbus.Connected)
			w.wantSteps("connect plug connected")
			w.wantError("-")
		})
	}
}

// TestUnusualFrontends: in every state of the frontend the vif reaches a stable state, and
// it serves a frontend that starts again.
func TestUnusualFrontends(t *testing.T) {
	for _, tt := range []struct {
		state string // written by the guest; "-": removed
		error string
	}{
		{"2", `22 frontend key "state" is "2", want a state that a frontend of a vif can have`},
		{"8", `22 frontend key "state" is "8", want a state that a frontend of a vif can have`},
		{"3", "-"},
		{"7", "-"},
		{"5", "-"},
		{"0", `22 frontend key "state" is "0", want a state that a frontend of a vif can have`},
		{"banana", `22 frontend key "state" is "banana", want a number from 0 to 8`},
		{"", `22 frontend key "state" is "", want a number from 0 to 8`},
		{"-4", `22 frontend key "state" is "-4", want a number from 0 to 8`},
		{"-", "-"},
	} {
		for _, before := range []string{"waiting", "connected"} {
			t.Run(fmt.Sprintf("%s, state=%s", before, tt.state), func(t *testing.T) {
				w := newWorld(t)
				if before == "connected" {
					w.up(1)
				} else {
					w.attach("hotplug-status", "connected")
					w.settle()
				}
				if tt.state == "-" {
					w.must(w.guest.Remove(t.Context(), frontDir+"/state"))
				} else {
					w.must(w.guest.Write(t.Context(), frontDir+"/state", tt.state))
				}
				w.settle()
				w.wantError(tt.error)
				w.frontState(xenbus.Initialising)
				w.settle()
				w.wantState("2")
				w.plugIn() // after a device that was removed, the script has to run again
				w.rings(1, false)
				w.frontState(xenbus.Connected)
				w.settle()
				w.wantState("4")
				w.wantError("-")
			})
		}
	}
}

// TestRenamed: a script may rename the interface.
func TestRenamed(t *testing.T) {
	w := newWorld(t)
	w.attach("vifname", "guestnet")
	w.wantSteps("publish init-wait")
	index := w.iface(ifname).Index
	w.must(netns.Rename(ifname, "guestnet"))
	w.plugIn()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	if s := w.status(); s.Name != ifname || s.Interface != "guestnet" {
		t.Errorf("name %s, interface %s", s.Name, s.Interface)
	}
	// A successor finds it.
	w.v.suspend()
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	if l := w.iface("guestnet"); l == nil || l.Index != index || l.Queues != 2 {
		t.Errorf("interface %+v, want index %d with 2 queues", l, index)
	}
	if w.iface(ifname) != nil {
		t.Error("there is a second interface")
	}
	w.detach()
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closed unregister")
	if w.iface("guestnet") != nil {
		t.Error("the interface is still there")
	}
}

// TestStateRemoved: a guest that removes its state counts as Closed. It may come back,
// and cannot make TAPs come and go that way.
func TestStateRemoved(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	before := w.iface(ifname).Index
	for range 3 {
		w.must(w.guest.Remove(t.Context(), frontDir+"/state"))
		w.settle()
		w.wantState("6")
		w.frontState(xenbus.Initialising)
		w.wantSteps("publish init-wait")
		if l := w.iface(ifname); l == nil || l.Index != before {
			t.Fatalf("interface %+v, want the one with index %d", l, before)
		}
	}
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
}

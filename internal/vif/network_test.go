// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// moveTap moves the TAP to another network namespace, as a script or an administrator
// does.
func (w *world) moveTap() *netns.NS {
	w.t.Helper()
	ns, err := netns.New()
	w.must(err)
	w.t.Cleanup(func() { w.must(ns.Close()) })
	w.moveTo(ns)
	return ns
}

func (w *world) moveTo(ns *netns.NS) {
	w.t.Helper()
	f, err := os.Open(ns.Path())
	w.must(err)
	defer func() { w.must(f.Close()) }()
	w.must(netlink.LinkSetNsFd(w.iface(ifname), int(f.Fd())))
}

// tapIn returns the TAP that is in a namespace, nil if there is none.
func (w *world) tapIn(ns *netns.NS) (l *netlink.Tuntap) {
	w.t.Helper()
	w.must(ns.Do(func() error { l = w.iface(ifname); return nil }))
	return l
}

// goAway detaches the vif, and makes its guest follow.
func (w *world) goAway() {
	w.t.Helper()
	w.detach()
	w.settle()
	w.frontState(xenbus.Closing)
	w.settle()
	w.frontState(xenbus.Closed)
	w.settle()
}

// TestTapMovedByTheScript: the vif is served although its TAP is in another namespace, with
// all the queues that the guest wants, over several connections, and without the right to
// enter that namespace.
func TestTapMovedByTheScript(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	ns := w.moveTap()
	w.plugIn()
	w.settle()
	for _, n := range []int{3, 1, 8} {
		w.rings(n, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.wantState("4")
		if l := w.tapIn(ns); l == nil || l.Queues != n {
			t.Errorf("%d queues: the TAP is %+v", n, l)
		}
		s := w.status()
		if s.Interface != ifname || s.Network == "" || s.Error != "" {
			t.Errorf("it is shown as %q in network %q, error %q", s.Interface, s.Network, s.Error)
		}
		w.frontState(xenbus.Closing)
		w.settle()
		w.frontState(xenbus.Closed)
		w.settle()
		w.frontState(xenbus.Initialising)
		w.settle()
	}
	if w.iface(ifname) != nil {
		t.Error("there is a second TAP")
	}
	w.detach()
	w.settle()
	if w.tapIn(ns) != nil {
		t.Error("detached, and the TAP is still there")
	}
}

// TestTapMovedAndKept: the successor gets the kept queues although the TAP is in another
// namespace.
func TestTapMovedAndKept(t *testing.T) {
	w := newWorld(t)
	k := newKeeper(w)
	w.attach()
	w.wantSteps("publish init-wait")
	ns := w.moveTap()
	w.plugIn()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.v.suspend()
	k.successor(w)
	w.wantSteps("connect plug")
	if w.iface(ifname) != nil {
		t.Error("there is a second TAP")
	}
	if l := w.tapIn(ns); l == nil || l.Queues != 2 {
		t.Errorf("the TAP is %+v", l)
	}
	w.wantError("-")
	w.goAway()
	if w.tapIn(ns) != nil {
		t.Error("detached, and the TAP is still there")
	}
	if got := k.names(); got != "" {
		t.Errorf("still kept: %s", got)
	}
}

// TestTapMovedAndLost: without the queues a successor cannot serve the TAP. It reports
// that, makes no other TAP, and serves the vif when the TAP has been moved back.
func TestTapMovedAndLost(t *testing.T) {
	for what, back := range map[string]bool{"moved back": true, "detached": false} {
		t.Run(what, func(t *testing.T) { tapMovedAndLost(t, back) })
	}
}

func tapMovedAndLost(t *testing.T, back bool) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	ns := w.moveTap()
	w.plugIn()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.v.suspend()
	w.v = New(w.cfg)
	w.look()
	w.wantState("4")
	if e := w.get(errorKey); !strings.Contains(e, tap.ErrElsewhere.Error()) || !strings.Contains(e, "move it back") {
		t.Errorf("error node: %q", e)
	}
	if w.iface(ifname) != nil {
		t.Error("there is a second TAP")
	}
	if !back {
		w.goAway()
		if w.tapIn(ns) != nil {
			t.Error("detached, and the TAP is still there")
		}
		return
	}
	home, err := netns.OfPid(os.Getpid())
	w.must(err)
	w.must(ns.Do(func() error { w.moveTo(home); return nil }))
	w.must(home.Close())
	w.settle()
	w.wantError("-")
	w.wantTap(2)
}

// TestTapOfAVifThatIsGoneElsewhere: the vif was removed while no daemon served it, and
// its TAP is in another namespace.
func TestTapOfAVifThatIsGoneElsewhere(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	ns := w.moveTap()
	w.plugIn()
	w.settle()
	w.v.suspend()
	removed, _, err := RemoveLeftovers("", func(xenbus.VifID) bool { return false })
	w.must(err)
	if len(removed) != 1 || removed[0] != ifname || w.tapIn(ns) != nil {
		t.Errorf("removed %v", removed)
	}
}

// TestRenamedOntoAComingVif: the TAP of another vif that has this vif's name is not
// adopted, and the error names its vif.
func TestRenamedOntoAComingVif(t *testing.T) {
	w := newWorld(t)
	other, err := tap.Create(tap.Config{Name: "vif6.1", VnetHdr: true, Persist: true})
	w.must(err)
	w.must(other.AddAltName(altName(xenbus.VifID{Domid: 6, Devid: 1})))
	w.must(netns.Rename("vif6.1", ifname))
	w.must(other.CloseKeep())
	w.attach()
	w.settle()
	if e := w.get(errorKey); !strings.Contains(e, ifname+" is the TAP of vif6.1, which was renamed") {
		t.Errorf("error node: %q", e)
	}
	if l := w.iface(ifname); l == nil || l.Queues != 0 {
		t.Errorf("the other's TAP is %+v", l)
	}
	w.detach()
	w.settle()
	if w.iface(ifname) == nil {
		t.Error("the other's TAP is gone")
	}
}

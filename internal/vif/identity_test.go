// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// sameRings initialises the guest's rings again in the same pages, with the same grefs and
// ports.
func (w *world) sameRings() {
	w.t.Helper()
	var err error
	for i, q := range w.conns {
		w.tx[i], err = netif.InitTx(w.host.Page(q.txGref))
		w.must(err)
		w.rx[i], err = netif.InitRx(w.host.Page(q.rxGref))
		w.must(err)
	}
}

// sameControl does what sameRings does, for a slot ring.
func (g *ctrlGuest) sameControl() {
	g.w.t.Helper()
	var err error
	g.ring, err = ctrlring.Init(g.page, ctrlring.Slot)
	g.w.must(err)
}

// sendList asks for a multicast address, and waits for the answer.
func (w *world) sendList(addr [6]byte) {
	w.t.Helper()
	i := 0
	// A multicast request is the extra of a packet, which may be refused. It is
	// enough that both slots are answered.
	w.tx[i].Put(netif.TxRequest{Gref: 4000, Size: 60, Flags: netif.TxExtraInfo, ID: 1})
	w.tx[i].PutExtra(netif.NewMcast(true, addr))
	w.tx[i].Push()
	w.host.kick(w.conns[i].txPort)
	w.eventually("an answer", func() bool { n, err := w.tx[i].Responses(); return err == nil && n == 2 })
	w.tx[i].Take(2)
}

// lists returns the multicast list of the vif.
func (w *world) lists() []string { return w.status().Mcast }

// killed ends the vif as a kill of the daemon does, and makes a successor.
func (w *world) killed() {
	w.t.Helper()
	w.v.suspend()
	w.wantHeld(nothing)
	w.v = New(w.cfg)
}

// everything makes a connection that has all that a successor adopts: a multicast list,
// hash settings, static grants.
func everything(t *testing.T) (*world, *ctrlGuest) {
	t.Helper()
	w := ctrlWorld(t, ctrlserver.Slot)
	w.attach()
	w.settle()
	w.plugIn()
	g := w.control(ctrlring.Slot)
	w.rings(2, false, append(g.names(), "request-multicast-control", "1")...)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.sendList([6]byte{1, 0, 0x5e, 0, 0, 9})
	g.configure()
	w.configured()
	if len(w.lists()) != 1 {
		t.Fatalf("multicast list %v", w.lists())
	}
	return w, g
}

// blank checks that the connection has no settings of an earlier one.
func (w *world) blank() {
	w.t.Helper()
	s := w.status()
	if s.State != xenbus.Connected || len(s.Mcast) != 0 {
		w.t.Errorf("state %v, multicast list %v", s.State, s.Mcast)
	}
	if c := s.Control; c == nil || c.Error != "" || c.Algorithm != "none" || len(c.Types) != 0 || c.KeyBytes != 0 || c.Steering != "host" {
		w.t.Errorf("control ring %+v", c)
	}
	for i, q := range s.Queues {
		if q.Static != 0 {
			w.t.Errorf("queue %d has %d static grants", i, q.Static)
		}
	}
	w.wantHeld("5 pages, 4 handles, 3 ports")
}

// TestConnectionsWithTheSameNames: the settings of a connection are valid in every daemon
// that serves it, and never for the next connection, which may have the same grefs, ports
// and domain id.
func TestConnectionsWithTheSameNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		while func(w *world, anew func()) // the guest reconnects
		steps string
	}{
		{"while no daemon runs", func(w *world, anew func()) { w.killed(); anew() }, "connect plug"},
		{"between two looks", func(_ *world, anew func()) { anew() }, "disconnect connect plug"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, g := everything(t)
			tt.while(w, func() {
				w.sameRings()
				g.sameControl()
				w.frontState(xenbus.Initialising) // the vif does not see it
				w.frontState(xenbus.Connected)
			})
			w.wantSteps(tt.steps)
			w.blank()
			g.configure() // the control ring is served, in its protocol
			w.configured()
			if w.v.conn.Known || w.v.conn.Served {
				t.Errorf("taken for one that was served before: %+v", w.v.conn)
			}
		})
	}
	t.Run("it goes on", func(t *testing.T) {
		w, g := everything(t)
		stamp := w.v.conn.Stamp
		for range 3 {
			w.killed()
			w.wantSteps("connect plug")
			w.configured()
			if l := w.lists(); len(l) != 1 || w.v.conn.Stamp != stamp {
				t.Errorf("multicast list %v, stamp %v, before %v", l, w.v.conn.Stamp, stamp)
			}
			g.want(0, netif.CtrlGetHashFlags)
			w.wantSteps("")
		}
	})
}

// TestFrontendThatKeepsTheStamp: rings that the frontend has initialised again without
// clearing the field pad of ring.h are recognised by their indices.
func TestFrontendThatKeepsTheStamp(t *testing.T) {
	w, g := everything(t)
	stamp := w.v.conn.Stamp
	w.sendList([6]byte{1, 0, 0x5e, 0, 0, 10}) // a second batch
	w.killed()
	w.sameRings()
	g.sameControl()
	for _, q := range w.conns {
		for _, ref := range []xen.Gref{q.txGref, q.rxGref} {
			w.must(netif.WriteStamp(w.host.Page(ref), stamp))
		}
	}
	w.wantSteps("connect plug")
	if w.v.conn.Known || w.v.conn.Stamp == stamp {
		t.Error("taken for the connection before")
	}
	if l := w.lists(); len(l) != 0 {
		t.Errorf("multicast list %v", l)
	}
}

// TestForgedStamp: a guest that writes a stamp of its choice gets a new connection without
// settings.
func TestForgedStamp(t *testing.T) {
	w, _ := everything(t)
	forged := netif.NewStamp()
	w.killed()
	for _, q := range w.conns {
		for _, ref := range []xen.Gref{q.txGref, q.rxGref} {
			w.must(netif.WriteStamp(w.host.Page(ref), forged))
		}
	}
	w.wantSteps("connect plug")
	l := w.v.conn
	if l.Known || !l.Served || l.Stamp == forged || w.v.link.RingsRenewed() {
		t.Errorf("%+v", l)
	}
	if m := w.lists(); len(m) != 0 {
		t.Errorf("multicast list %v", m)
	}
	w.blank()
}

// old rewrites journals and records in the form of a daemon without stamps, and removes the
// stamps from the rings.
func (w *world) old() {
	w.t.Helper()
	for _, q := range w.conns {
		for _, ref := range []xen.Gref{q.txGref, q.rxGref} {
			w.must(netif.WriteStamp(w.host.Page(ref), netif.Stamp{}))
		}
	}
	journals, err := filepath.Glob(w.cfg.RunDir + "/ring-*")
	w.must(err)
	for _, path := range journals {
		b, err := os.ReadFile(path)
		w.must(err)
		binary.NativeEndian.PutUint32(b, 0x6e626a31) // "nbj1"
		clear(b[3640:])
		w.must(os.WriteFile(path, b, 0o600))
	}
	b, err := os.ReadFile(w.v.ctrlPath())
	w.must(err)
	b = slices.Delete(b, 4, 20)
	copy(b, "nbc1")
	w.must(os.WriteFile(w.v.ctrlPath(), b, 0o600))
}

// TestUpgradeFromADaemonWithoutStamps: after an upgrade from a daemon that made no stamps
// the connection keeps all its settings, and has a stamp from then on.
func TestUpgradeFromADaemonWithoutStamps(t *testing.T) {
	w, _ := everything(t)
	w.killed()
	w.old()
	for range 2 {
		w.wantSteps("connect plug")
		w.configured()
		l := w.v.conn
		if len(w.lists()) != 1 || !l.Known || l.Stamp.IsZero() || w.v.link.RingsRenewed() {
			t.Errorf("multicast list %v, %+v", w.lists(), l)
		}
		w.killed()
	}
}

// TestUpgradeUnderAGuestThatConnectsAnew: the same upgrade, but the guest has initialised
// its rings again meanwhile. They have no responses.
func TestUpgradeUnderAGuestThatConnectsAnew(t *testing.T) {
	w, g := everything(t)
	w.killed()
	w.old()
	w.sameRings()
	g.sameControl()
	w.wantSteps("connect plug")
	w.blank()
}

// TestNothingIsKeptOfAClosedConnection: journals and records are removed with their
// connection.
func TestNothingIsKeptOfAClosedConnection(t *testing.T) {
	w, g := everything(t)
	page := w.host.Page(w.conns[0].txGref)
	w.frontState(xenbus.Closing)
	w.settle()
	if got := w.journals(); got != "" {
		t.Errorf("in the run directory: %s", got)
	}
	if h, err := netif.ReadHeader(page); err != nil || !h.Stamp.IsZero() {
		t.Errorf("header %+v, %v", h, err)
	}
	for _, s := range []xenbus.State{xenbus.Closed, xenbus.Initialising} {
		w.frontState(s)
		w.settle()
	}
	w.sameRings()
	g.sameControl()
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.blank()
}

// TestResetKeepsWhatTheGuestSaidOnce: a guest that uses its rings again after a quarantine
// has lost none of the settings that it sends only once.
func TestResetKeepsWhatTheGuestSaidOnce(t *testing.T) {
	w, _ := everything(t)
	w.v.guard(t.Context(), func() { panic("oops") })
	w.wantHeld(nothing)
	w.reset()
	w.wantSteps("connect plug")
	w.configured()
	if l := w.lists(); len(l) != 1 {
		t.Errorf("multicast list %v", l)
	}
}

// TestFailedAttemptLeavesNoStamp: a failed connection leaves no stamp in the rings.
func TestFailedAttemptLeavesNoStamp(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.settle()
	w.rings(1, false)
	w.closePool()
	w.frontState(xenbus.Connected)
	w.wantSteps("connect closing closed")
	if h, err := netif.ReadHeader(w.host.Page(w.conns[0].txGref)); err != nil || !h.Stamp.IsZero() {
		t.Errorf("header %+v, %v", h, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// ctrlGuest is the frontend's end of a control ring.
type ctrlGuest struct {
	w    *world
	keys ctrlKeys
	page []byte
	ring ctrlring.Front
}

// ctrlWorld makes a world whose vif offers control rings and static grants.
func ctrlWorld(t *testing.T, offer ctrlserver.Protocols) *world {
	t.Helper()
	w := newWorld(t)
	w.cfg.ControlRings, w.cfg.NoBPF = offer, steer.Probe()
	w.cfg.StaticGrants, w.cfg.GrantBudget = 8, staticgrant.NewBudget(12, nil)
	w.v = New(w.cfg)
	return w
}

// page grants a page of the guest with b in it.
func (w *world) page(b []byte) xen.Gref {
	ref := w.next
	w.next++
	copy(w.host.GrantAt(ref, gntdev.ReadWrite), b)
	return ref
}

// upWithControl attaches a vif and connects it with n queues and a control ring.
func (w *world) upWithControl(n int, p ctrlring.Protocol) *ctrlGuest {
	w.t.Helper()
	w.attach()
	w.settle()
	w.plugIn()
	g := w.control(p)
	w.rings(n, false, g.names()...)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	return g
}

// control makes a control ring and its channel in the guest.
func (w *world) control(p ctrlring.Protocol) *ctrlGuest {
	w.t.Helper()
	g := &ctrlGuest{w: w}
	g.keys.gref = w.page(nil)
	g.page = w.host.Page(g.keys.gref)
	var err error
	g.ring, err = ctrlring.Init(g.page, p)
	w.must(err)
	g.keys.port = evtchn.Port(w.next)
	w.host.OfferAt(g.keys.port)
	w.next++
	return g
}

// names returns the keys of the control ring, for rings.
func (g *ctrlGuest) names() []string {
	return []string{"ctrl-ring-ref", fmt.Sprint(g.keys.gref), "event-channel-ctrl", fmt.Sprint(g.keys.port)}
}

// breach breaks the protocol of a slot ring, and sends an event.
func (g *ctrlGuest) breach() {
	if f, ok := g.ring.(*ctrlring.SlotFront); ok {
		f.Ring().SetReqProd(5000)
		g.w.host.kick(g.keys.port)
	}
}

// send begins to send a message.
func (g *ctrlGuest) send(q ctrlring.Request) {
	g.w.t.Helper()
	g.w.must(g.ring.Send(q))
	g.turn()
}

func (g *ctrlGuest) turn() {
	g.w.t.Helper()
	notify, err := g.ring.Turn()
	g.w.must(err)
	if notify {
		g.w.host.kick(g.keys.port)
	}
}

// answer waits for the response.
func (g *ctrlGuest) answer() (r ctrlring.Response) {
	g.w.t.Helper()
	there := func() (ok bool) {
		g.turn()
		r, ok = g.ring.Response()
		return ok
	}
	for range 100 { // most responses are there soon
		if there() {
			return r
		}
		runtime.Gosched()
	}
	g.w.eventually("a response", there)
	return r
}

// ask sends a message and waits for its response.
func (g *ctrlGuest) ask(typ netif.CtrlType, data ...uint32) ctrlring.Response {
	g.w.t.Helper()
	q := ctrlring.Request{Type: typ}
	copy(q.Data[:], data)
	g.send(q)
	return g.answer()
}

// want asks and checks the status.
func (g *ctrlGuest) want(status netif.CtrlStatus, typ netif.CtrlType, data ...uint32) (rsp uint32) {
	g.w.t.Helper()
	r := g.ask(typ, data...)
	if r.Status != status {
		g.w.t.Errorf("%v %v: %v, want %v", typ, data, r.Status, status)
	}
	return r.Data
}

func gref(list ...netif.GrefEntry) (b []byte) {
	for _, e := range list {
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Ref))
		b = binary.LittleEndian.AppendUint16(b, e.Flags)
		b = binary.LittleEndian.AppendUint16(b, e.Status)
	}
	return b
}

// configure makes some hash settings and static grants.
func (g *ctrlGuest) configure() (refs []xen.Gref) {
	g.w.t.Helper()
	g.want(0, netif.CtrlSetHashAlgorithm, 1)
	g.want(0, netif.CtrlSetHashFlags, 5)
	g.want(0, netif.CtrlSetHashKey, uint32(g.w.page([]byte("key"))), 3)
	g.want(0, netif.CtrlSetHashMappingSize, 3)
	g.want(0, netif.CtrlSetHashMapping, uint32(g.w.page([]byte{1, 0, 0, 0})), 1, 2)
	refs = []xen.Gref{g.w.page(nil), g.w.page(nil)}
	g.want(0, netif.CtrlAddGrefMapping, 1, uint32(g.w.page(gref(netif.GrefEntry{Ref: refs[0]}, netif.GrefEntry{Ref: refs[1], Flags: 1}))), 2)
	return refs
}

// configured checks that the settings of configure are in force.
func (w *world) configured() {
	w.t.Helper()
	var s Status
	w.eventually("the configuration is in force", func() bool {
		s = w.status()
		return s.Control != nil && len(s.Control.Mapping) == 3
	})
	c := *s.Control
	c.Messages, c.Refused, c.Steering = 0, 0, ""
	want := ctrlserver.Status{
		Protocol: "slot", Algorithm: "toeplitz", Types: []string{"ipv4", "ipv6"},
		KeyBytes: 3, Key: "6b6579", Mapping: []uint16{0, 0, 1},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		w.t.Errorf("control ring (-want +got):\n%s", diff)
	}
	if s.Queues[0].Static != 0 || s.Queues[1].Static != 2 || s.Queues[1].StaticMax != 8 {
		w.t.Errorf("static grants %+v", s.Queues)
	}
}

// successor replaces the daemon.
func (w *world) successor() {
	w.t.Helper()
	w.v.suspend()
	w.wantHeld(nothing)
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
}

// TestControlOfAVif: a control ring is served beside the queues. A successor has its
// settings, and a disconnect removes them.
func TestControlOfAVif(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(2, ctrlring.Slot)
	w.wantHeld("5 pages, 4 handles, 3 ports")
	refs := g.configure()
	w.configured()
	w.wantHeld("7 pages, 4 handles, 3 ports")
	if got, want := w.journals(), "ctrl-7.0 ring-7.0-0 ring-7.0-1"; got != want {
		t.Errorf("run directory: %s, want %s", got, want)
	}

	w.successor()
	w.configured()
	w.wantHeld("7 pages, 4 handles, 3 ports")
	g.want(2, netif.CtrlAddGrefMapping, 1, uint32(w.page(gref(netif.GrefEntry{Ref: refs[0]}))), 1)
	list := w.page(gref(netif.GrefEntry{Ref: refs[0]}, netif.GrefEntry{Ref: 9999}))
	if n := g.want(0, netif.CtrlDelGrefMapping, 1, uint32(list), 2); n != 1 {
		t.Errorf("%d removed", n)
	}
	if got := w.host.Page(list)[:16]; !bytes.Equal(got[6:8], []byte{0, 0}) || !bytes.Equal(got[14:16], []byte{2, 0}) {
		t.Errorf("statuses in the list: % x", got)
	}
	w.wantHeld("6 pages, 4 handles, 3 ports")

	w.frontState(xenbus.Closing)
	w.settle()
	w.wantHeld(nothing)
	if w.journals() != "" {
		t.Errorf("left in the run directory: %s", w.journals())
	}
	if n := w.cfg.GrantBudget.Used(); n != 0 {
		t.Errorf("%d pages counted as the guest's", n)
	}
	if s := w.status(); s.Control != nil {
		t.Errorf("control ring of no connection: %+v", s.Control)
	}
}

// TestControlBudget: the vifs of a guest share the budget of pages to map.
func TestControlBudget(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(2, ctrlring.Slot)
	pages := func(n int) (list []netif.GrefEntry) {
		for range n {
			list = append(list, netif.GrefEntry{Ref: w.page(nil)})
		}
		return list
	}
	g.want(0, netif.CtrlAddGrefMapping, 0, uint32(w.page(gref(pages(8)...))), 8)
	g.want(2, netif.CtrlAddGrefMapping, 1, uint32(w.page(gref(pages(5)...))), 5)
	g.want(0, netif.CtrlAddGrefMapping, 1, uint32(w.page(gref(pages(4)...))), 4)
	w.wantHeld("17 pages, 4 handles, 3 ports")
}

// TestControlRingBreach: after a breach the ring is not served any more, packets are not
// affected, and a guest that reconnects has a ring again.
func TestControlRingBreach(t *testing.T) {
	for _, tt := range []struct {
		name   string
		breach func(g *ctrlGuest)
		want   string
	}{
		{"req_prod far ahead", func(g *ctrlGuest) { g.ring.(*ctrlring.SlotFront).Ring().SetReqProd(1000) }, "ctrlring: slot ring"},
		{"req_prod behind", func(g *ctrlGuest) { g.ring.(*ctrlring.SlotFront).Ring().SetReqProd(0xfffffff0) }, "ctrlring: slot ring"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ctrlWorld(t, ctrlserver.Slot)
			g := w.upWithControl(2, ctrlring.Slot)
			g.configure()
			tt.breach(g)
			w.host.kick(g.keys.port)
			w.eventually("the ring is out of use", func() bool { return strings.HasPrefix(w.status().Control.Error, tt.want) })
			w.wantState("4")
			if s := w.status(); len(s.Queues) != 2 || s.Quarantine != "" || s.Queues[1].Static != 2 {
				t.Errorf("%+v", s)
			}
			w.wantSteps("")
			// Earlier settings outlive the ring and the daemon.
			w.successor()
			w.eventually("the successor to steer", func() bool { return w.status().Control.Steering != "host" })
			s := w.status()
			if c := s.Control; s.Queues[1].Static != 2 || c.Algorithm != "toeplitz" || len(c.Mapping) != 3 || !strings.HasPrefix(c.Error, tt.want) {
				t.Errorf("%+v, %d static grants", c, s.Queues[1].Static)
			}
		})
	}
}

// comeAgain closes the frontend and begins again.
func (w *world) comeAgain() {
	w.t.Helper()
	for _, s := range []xenbus.State{xenbus.Closing, xenbus.Closed, xenbus.Initialising} {
		w.frontState(s)
		w.settle()
	}
}

// TestControlRingOfUnknownProtocol: if the page belongs to neither protocol, the vif
// connects without a control ring.
func TestControlRingOfUnknownProtocol(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot|ctrlserver.Stream)
	g := w.upWithControl(1, ctrlring.Slot)
	g.want(0, netif.CtrlSetHashAlgorithm, 1)
	w.comeAgain()
	// The page is as it is after use.
	w.rings(1, false, "ctrl-ring-ref", fmt.Sprint(g.keys.gref), "event-channel-ctrl", fmt.Sprint(g.keys.port))
	w.frontState(xenbus.Connected)
	w.settle()
	w.wantState("4")
	s := w.status()
	if s.Control == nil || !strings.Contains(s.Control.Error, "neither") || len(s.Queues) != 1 {
		t.Errorf("%+v", s.Control)
	}
}

// TestBothProtocols: the back end finds out the protocol from the ring, and a successor from
// the record.
func TestBothProtocols(t *testing.T) {
	for _, p := range []ctrlring.Protocol{ctrlring.Slot, ctrlring.Stream} {
		t.Run(p.String(), func(t *testing.T) {
			w := ctrlWorld(t, ctrlserver.Slot|ctrlserver.Stream)
			g := w.upWithControl(1, p)
			w.wantNode("feature-ctrl-ring", "1")
			w.wantNode("feature-control-ring", "1")
			if p == ctrlring.Slot {
				g.want(0, netif.CtrlSetHashAlgorithm, 1)
			}
			g.want(0, netif.CtrlSetHashFlags, 3)
			for range 2 {
				if c := w.status().Control; c.Protocol != p.String() || c.Error != "" || len(c.Types) != 2 {
					t.Errorf("control ring: %+v", c)
				}
				w.successor()
			}
			if n := g.want(0, netif.CtrlGetHashFlags); n != 15 {
				t.Errorf("flags %d", n)
			}
		})
	}
}

func (w *world) wantNode(key, want string) {
	w.t.Helper()
	if got := w.get(backDir + "/" + key); got != want {
		w.t.Errorf("%s is %q, want %q", key, got, want)
	}
}

// TestControlRingOfOneVif: the toolstack may choose the protocols for one vif.
func TestControlRingOfOneVif(t *testing.T) {
	for _, tt := range []struct{ key, slot, stream, err string }{
		{"none", "0", "0", "-"}, {"stream", "0", "1", "-"}, {"both", "1", "1", "-"}, {"-", "1", "0", "-"},
		{"yes", "1", "0", `22 key "control-ring" is "yes", want slot, stream, both or none`},
	} {
		w := ctrlWorld(t, ctrlserver.Slot)
		w.attach("control-ring", tt.key)
		w.settle()
		w.wantNode("feature-ctrl-ring", tt.slot)
		w.wantNode("feature-control-ring", tt.stream)
		w.wantError(tt.err)
		w.v.suspend()
		_ = removeTapNamed(ifname)
	}
}

// TestLostControlRecord: if only one protocol was offered, the ring is still served, and
// its settings are lost. Otherwise the ring is not served any more.
func TestLostControlRecord(t *testing.T) {
	for _, offer := range []ctrlserver.Protocols{ctrlserver.Slot, ctrlserver.Slot | ctrlserver.Stream} {
		for _, how := range []string{"removed", "cut", "of another connection"} {
			t.Run(fmt.Sprintf("%v, %s", offer, how), func(t *testing.T) {
				w := ctrlWorld(t, offer)
				g := w.upWithControl(2, ctrlring.Slot)
				g.configure()
				path := w.v.ctrlPath()
				b, err := os.ReadFile(path)
				w.must(err)
				w.v.suspend()
				switch how {
				case "removed":
					w.must(os.Remove(path))
				case "cut":
					w.must(os.WriteFile(path, b[:len(b)-3], 0o600))
				default:
					b[8]++
					w.must(os.WriteFile(path, b, 0o600))
				}
				w.v = New(w.cfg)
				w.wantSteps("connect plug")
				c := w.status().Control
				if offer != ctrlserver.Slot {
					if c.Error == "" {
						t.Errorf("served on: %+v", c)
					}
					return
				}
				if c.Error != "" || c.Algorithm != "none" || c.Protocol != "slot" {
					t.Errorf("control ring: %+v", c)
				}
				g.want(0, netif.CtrlSetHashAlgorithm, 1)
			})
		}
	}
}

// TestLostControlRecordOfAStream: the ring is served with the default settings of its
// protocol, which has no message for the algorithm.
func TestLostControlRecordOfAStream(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Stream)
	g := w.upWithControl(2, ctrlring.Stream)
	g.want(0, netif.CtrlSetHashFlags, 3)
	w.v.suspend()
	w.must(os.Remove(w.v.ctrlPath()))
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	g.want(0, netif.CtrlSetHashFlags, 5)
	if c := w.status().Control; c.Algorithm != "toeplitz" || len(c.Types) != 2 || len(c.Mapping) != 1 {
		t.Errorf("control ring: %+v", c)
	}
}

// TestControlRecordOfAnotherGuest: while no daemon ran, the guest was replaced by another
// one with the same domain id, rings and ports. The new guest has no settings.
func TestControlRecordOfAnotherGuest(t *testing.T) {
	for _, found := range []bool{false, true} { // a daemon ran while there was no guest
		w := ctrlWorld(t, ctrlserver.Slot)
		w.upWithControl(2, ctrlring.Slot).configure()
		w.v.suspend()
		if found {
			w.must(w.tool.Remove(t.Context(), frontDir))
			w.v = New(w.cfg)
			w.settle()
			w.v.suspend()
		}
		w.must(w.tool.Remove(t.Context(), backDir))
		if !found {
			w.must(w.tool.Remove(t.Context(), frontDir))
		}
		w.host, w.next = newFakeHost(t, domid), 8
		w.cfg.Engine = &netengine.Local{Pool: w.pool, Host: w.host}
		w.v = New(w.cfg)
		g := w.upWithControl(2, ctrlring.Slot)
		if s := w.status(); s.Control.Algorithm != "none" || len(s.Control.Mapping) != 0 || s.Queues[1].Static != 0 {
			t.Errorf("found %t: %+v, %d static grants", found, s.Control, s.Queues[1].Static)
		}
		g.want(1, netif.CtrlGetHashFlags)
		w.v.suspend()
		_ = removeTapNamed(ifname)
	}
}

// TestControlRecordCannotBeWritten: the guest gets its response once the record is
// written, and not before.
func TestControlRecordCannotBeWritten(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(1, ctrlring.Slot)
	blocker := w.v.ctrlPath() + ".new"
	w.must(os.Mkdir(blocker, 0o700))
	q := ctrlring.Request{Type: netif.CtrlSetHashAlgorithm, Data: [3]uint32{1}}
	g.send(q)
	w.eventually("the failure shows", func() bool { return w.log.FilterMessage("control ring record not written").Len() > 0 })
	g.turn()
	if _, ok := g.ring.Response(); ok {
		t.Error("answered before the record was written")
	}
	w.must(os.Remove(blocker))
	if r := g.answer(); r.Status != 0 {
		t.Errorf("answer %v", r.Status)
	}
}

// TestControlRecordThatCannotBeRewritten: the record of a predecessor is used, and the
// guest is served.
func TestControlRecordThatCannotBeRewritten(t *testing.T) {
	for _, p := range []ctrlring.Protocol{ctrlring.Slot, ctrlring.Stream} {
		w := ctrlWorld(t, ctrlserver.Slot|ctrlserver.Stream)
		g := w.upWithControl(2, p)
		if p == ctrlring.Slot {
			g.configure()
		} else {
			g.want(0, netif.CtrlSetHashFlags, 5)
		}
		blocker := w.v.ctrlPath() + ".new"
		w.must(os.Mkdir(blocker, 0o700))
		for range 2 {
			w.successor()
			if c := w.status().Control; c.Error != "" || len(c.Types) != 2 {
				t.Errorf("%v: %+v", p, c)
			}
		}
		w.must(os.Remove(blocker))
		g.want(0, netif.CtrlSetHashFlags, 1)
		w.v.suspend()
		_ = removeTapNamed(ifname)
	}
}

// TestControlMessageUnderWayAtTheEnd: a message that is being carried out when the
// daemon ends is carried out by the successor, once.
func TestControlMessageUnderWayAtTheEnd(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(1, ctrlring.Slot)
	var list []netif.GrefEntry
	for range 8 {
		list = append(list, netif.GrefEntry{Ref: w.page(nil)})
	}
	page := w.page(gref(list...))
	mapped, goOn := make(chan struct{}), make(chan struct{})
	n := 0
	w.host.Intercept(func(c xentest.Call) error {
		if c.Op == xentest.OpMap {
			if n++; n == 3 {
				close(mapped)
				<-goOn
			}
		}
		return nil
	})
	g.send(ctrlring.Request{Type: netif.CtrlAddGrefMapping, Data: [3]uint32{0, uint32(page), 8}})
	<-mapped
	ended := make(chan struct{})
	go func() { w.v.suspend(); close(ended) }()
	time.Sleep(5 * time.Millisecond) // usually the end has begun by then; if not, the test covers less
	close(goOn)
	<-ended
	w.wantHeld(nothing)
	w.host.Intercept(nil)
	g.turn()
	if r, ok := g.ring.Response(); ok {
		t.Logf("it was done in time: %v", r.Status)
		return
	}
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	if r := g.answer(); r.Status != 0 {
		t.Errorf("the successor answers %v", r.Status)
	}
	if n := w.status().Queues[0].Static; n != 8 {
		t.Errorf("%d static grants", n)
	}
}

// TestEndDuringResteer: if the guest takes no packets, a message waits for those of a
// resteering. The end of the connection does not wait with it.
func TestEndDuringResteer(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(2, ctrlring.Slot)
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	w.broadcast(8)
	w.eventually("packets wait", func() bool { return w.status().Queues[0].Held+w.status().Queues[1].Held > 0 })
	g.want(0, netif.CtrlSetHashAlgorithm, 1)
	g.want(0, netif.CtrlSetHashFlags, 15)
	g.send(ctrlring.Request{Type: netif.CtrlSetHashMappingSize, Data: [3]uint32{2}})
	time.Sleep(50 * time.Millisecond) // usually the message waits by then; if not, the test covers less
	began := time.Now()
	w.v.suspend()
	if took := time.Since(began); took > 700*time.Millisecond {
		t.Errorf("the end took %v", took)
	}
}

// TestQuarantineKeepsTheControlRing: a guest that uses its rings again after a quarantine
// has lost no settings.
func TestQuarantineKeepsTheControlRing(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(2, ctrlring.Slot)
	g.configure()
	w.v.quarantine(t.Context(), errors.New("a reason"))
	w.wantHeld(nothing)
	w.v.block = block{} // as Reset does
	w.settle()
	w.configured()
	g.want(0, netif.CtrlGetHashFlags)
}

// TestStaticGrantsLostByTheGuest: a successor restores all static grants except those that
// the guest has ended.
func TestStaticGrantsLostByTheGuest(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	g := w.upWithControl(2, ctrlring.Slot)
	refs := g.configure()
	w.v.suspend()
	w.must(w.host.Revoke(refs[0]))
	w.successor()
	if n := w.status().Queues[1].Static; n != 1 {
		t.Errorf("%d static grants restored, want 1", n)
	}
	if n := g.want(0, netif.CtrlDelGrefMapping, 1, uint32(w.page(gref(netif.GrefEntry{Ref: refs[0]}, netif.GrefEntry{Ref: refs[1]}))), 2); n != 1 {
		t.Errorf("%d removed, want 1", n)
	}
}

// TestControlRingFails: a frontend with a control ring that cannot be opened is
// refused.
func TestControlRingFails(t *testing.T) {
	for _, tt := range []struct{ name, ref, port, want string }{
		{"not granted", "9999", "-", "control ring: map"},
		{"no such port", "-", "9999", "bind"},
		{"no port", "-", "", `frontend key "event-channel-ctrl"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ctrlWorld(t, ctrlserver.Slot)
			w.attach()
			w.settle()
			w.plugIn()
			ref, port := tt.ref, tt.port
			if ref == "-" {
				ref = fmt.Sprint(w.page(nil))
			}
			if port == "-" {
				w.host.OfferAt(500)
				port = "500"
			}
			w.rings(1, false, "ctrl-ring-ref", ref, "event-channel-ctrl", port)
			w.frontState(xenbus.Connected)
			w.settle()
			if got := w.get(errorKey); !strings.Contains(got, tt.want) {
				t.Errorf("error node %q, want %q", got, tt.want)
			}
			w.wantHeld(nothing)
		})
	}
}

// TestHostFailsControlRing: a vif is closed if the host cannot open the control ring,
// and connects when the guest tries again.
func TestHostFailsControlRing(t *testing.T) {
	for _, op := range []xentest.Op{xentest.OpOpenGntdev, xentest.OpOpenEvtchn, xentest.OpMap} {
		w := ctrlWorld(t, ctrlserver.Slot)
		w.upWithControl(1, ctrlring.Slot)
		w.comeAgain()
		g := w.control(ctrlring.Slot)
		w.rings(1, false, g.names()...)
		w.host.Intercept(failNth(op, map[xentest.Op]int{xentest.OpOpenGntdev: 1, xentest.OpOpenEvtchn: 2, xentest.OpMap: 3}[op], unix.EMFILE))
		w.frontState(xenbus.Connected)
		w.wantSteps("connect closing closed")
		if got := w.get(errorKey); !strings.Contains(got, "control ring") {
			t.Errorf("%v: error node %q", op, got)
		}
		w.wantHeld(nothing)
		w.host.Intercept(nil)
		w.frontState(xenbus.Initialising)
		w.settle()
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.v.suspend()
		_ = removeTapNamed(ifname)
	}
}

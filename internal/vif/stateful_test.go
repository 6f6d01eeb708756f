// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestStateful drives a vif at random by all that its guest and its toolstack can do:
// xenstore, rings, grants, the control ring, detaching, and kills of the daemon. After each
// step answers, counters, states, settings, and what is mapped and bound are those of a
// model. A run that fails is made shorter, and printed with the seed that repeats it. `make
// model` makes a million steps.
func TestStateful(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot)
	for i := range modelPages {
		w.host.GrantAt(modelRef+xen.Gref(i), gntdev.ReadWrite)
	}
	w.host.GrantAt(modelList, gntdev.ReadWrite)
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		defer func() { w.must(f.Value.Set(f.DefValue)) }()
		w.must(f.Value.Set("15")) // a short run
	}
	steps := 0
	rapid.Check(t, func(rt *rapid.T) {
		m := newVifModel(rt, w)
		defer func() { m.leave() }()
		actions := map[string]func(*rapid.T){"": m.check}
		for _, a := range m.actions() {
			for i := range a.weight {
				actions[fmt.Sprintf("%s %d", a.name, i)] = func(rt *rapid.T) {
					m.rt = rt
					a.do(rt) // it does not return if the step is not possible now
					steps++
				}
			}
		}
		rt.Repeat(actions)
		m.dropped()
		m.ended = true
	})
	t.Logf("%d steps", steps)
}

const (
	modelRef   = 2000 // the first of the pages that the guest uses for packets
	modelPages = 16
	modelList  = 2100 // a page for lists
)

// pageModel tells the purpose of the grant of a guest's page.
type pageModel struct{ live, writable bool }

// vifModel models a vif and its guest.
type vifModel struct {
	rt *rapid.T
	w  *world

	pages     [modelPages]pageModel
	connected bool
	breach    bool // in quarantine
	queues    int
	split     bool
	ctrl      *ctrlGuest // nil: none

	mcast  map[[6]byte]bool
	alg    uint32
	types  uint32
	table  []uint32
	static []map[xen.Gref]bool // by queue: read-only or not
	drops  map[string]uint64
	id     uint16
	fd     int // a socket that sends to the guest

	ended bool // without a fault; otherwise leave checks nothing
}

func newVifModel(rt *rapid.T, w *world) *vifModel {
	m := &vifModel{rt: rt, w: w, fd: -1}
	for i := range m.pages {
		m.must(w.host.Revoke(modelRef + xen.Gref(i)))
		w.host.GrantAt(modelRef+xen.Gref(i), gntdev.ReadWrite)
		m.pages[i] = pageModel{live: true, writable: true}
	}
	m.attach()
	m.connect(1, false, true)
	return m
}

func (m *vifModel) must(err error) {
	if err != nil {
		m.rt.Fatal(err)
	}
}

// action is a step of a run. Its weight is its share of the steps.
type action struct {
	name   string
	weight int
	do     func(rt *rapid.T)
}

// actions returns what can happen. Most of it concerns a connection, because connecting
// takes a hundred times as long.
func (m *vifModel) actions() []action {
	return []action{
		{"tx", 24, m.sends}, {"rx", 16, m.receives}, {"grant", 12, m.grants}, {"events", 4, m.events},
		{"hash", 12, m.hashes}, {"static", 12, m.statics}, {"breach", 1, m.breaks},
		{"connect", 2, m.connects}, {"bad keys", 1, m.badKeys}, {"states", 1, m.wanders},
		{"kill", 1, m.kill}, {"detach", 1, m.detach},
	}
}

// open reports whether the rings are served.
func (m *vifModel) open() bool { return m.connected && !m.breach }

// attach has the toolstack make the vif, with its hotplug script.
func (m *vifModel) attach() {
	w := m.w
	w.v = New(w.cfg)
	w.attach()
	w.settle()
	w.plugIn()
	w.settle()
	link := w.iface(ifname)
	if link == nil {
		m.rt.Fatal("no interface")
	}
	m.must(netlink.LinkSetUp(link))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	m.must(err)
	m.fd = fd
	m.must(unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}))
	m.connected, m.breach, m.drops = false, false, map[string]uint64{}
}

// leave has the toolstack remove the vif, and checks that nothing is left.
func (m *vifModel) leave() {
	w := m.w
	_ = unix.Close(m.fd)
	w.detach()
	w.settle()
	w.frontState(xenbus.Closed)
	w.settle()
	for _, dir := range []string{backDir, frontDir} {
		w.must(w.tool.Remove(w.t.Context(), dir))
	}
	got := w.settle()
	m.freeRings()
	if !m.ended {
		return
	}
	if !strings.HasSuffix(got, "gone") {
		m.rt.Fatalf("the vif is removed: %s", got)
	}
	if u := w.host.Usage(); u.Pages != 0 || u.Ports != 0 || u.Devices != 0 {
		m.rt.Fatalf("left: %v", u)
	}
	if j := w.journals(); j != "" {
		m.rt.Fatalf("files are left: %s", j)
	}
	if e := w.get(errorKey); e != "-" {
		m.rt.Fatalf("the error node is left: %s", e)
	}
}

// freeRings has the guest free its rings and channels. Nothing of them may be in use.
func (m *vifModel) freeRings() {
	w := m.w
	for n := xen.Gref(8); n < w.next; n++ {
		if err := w.host.Revoke(n); err != nil && m.ended {
			m.rt.Fatalf("after the vif was closed: %v", err)
		}
		w.host.Withdraw(evtchn.Port(n))
	}
	w.next = 8
}

// connect offers new rings and goes to Connected. The frontend is in Initialising.
func (m *vifModel) connect(queues int, split, ctrl bool, keys ...string) {
	w := m.w
	m.ctrl = nil
	if ctrl {
		m.ctrl = w.control(ctrlring.Slot)
		keys = append(keys, m.ctrl.names()...)
	} else {
		keys = append(keys, "ctrl-ring-ref", "-", "event-channel-ctrl", "-")
	}
	w.rings(queues, split, append([]string{"request-multicast-control", "1"}, keys...)...)
	w.frontState(xenbus.Connected)
	w.settle()
	m.connected, m.breach, m.queues, m.split = true, false, queues, split
	m.mcast, m.alg, m.types, m.table = map[[6]byte]bool{}, 0, 0, nil
	m.static = make([]map[xen.Gref]bool, queues)
	for i := range m.static {
		m.static[i] = map[xen.Gref]bool{}
	}
}

// check compares the vif with the model.
func (m *vifModel) check(rt *rapid.T) {
	w := m.w
	want := "2"
	if m.connected {
		want = "4"
	}
	if got := w.get(backDir + "/state"); got != want {
		rt.Fatalf("state %s, want %s; error node: %s", got, want, w.get(errorKey))
	}
	pages, ports := 0, 0
	if m.open() {
		pages, ports = 2*m.queues, m.queues
		if m.split {
			ports *= 2
		}
		if m.ctrl != nil {
			pages, ports = pages+1, ports+1
		}
		for _, t := range m.static {
			pages += len(t)
		}
	}
	if u := w.host.Usage(); u.Pages != pages || u.Ports != ports {
		rt.Fatalf("%v, want %d pages and %d ports", u, pages, ports)
	}
	s := w.status()
	// The error of an earlier attempt may stay until the frontend is connected.
	if (s.Quarantine != "") != m.breach || m.connected && (s.Error != "") != m.breach {
		rt.Fatalf("quarantine %q, error %q; want %t", s.Quarantine, s.Error, m.breach)
	}
	if !m.open() {
		return
	}
	for i, q := range s.Queues {
		if q.Static != len(m.static[i]) {
			rt.Fatalf("%d static grants of queue %d, want %d", q.Static, i, len(m.static[i]))
		}
	}
	if len(s.Mcast) != len(m.mcast) {
		rt.Fatalf("%d multicast addresses, want %d", len(s.Mcast), len(m.mcast))
	}
	if m.ctrl == nil {
		return
	}
	var table []uint32
	for _, q := range s.Control.Mapping {
		table = append(table, uint32(q))
	}
	if !slices.Equal(table, m.table) || (s.Control.Algorithm != "none") != (m.alg != 0) {
		rt.Fatalf("hashing %q %v, want %d %v", s.Control.Algorithm, table, m.alg, m.table)
	}
}

// dropped checks the drop counters, which may be behind the answers.
func (m *vifModel) dropped() {
	var got map[string]uint64
	m.until("the drops to be counted", func() bool {
		got = map[string]uint64{}
		s := m.w.status()
		for c := range dataplane.NumCounters {
			if info := dataplane.Counters[c]; info.Kind == dataplane.Drop && s.Counters[info.Name] > 0 {
				got[info.Name] = s.Counters[info.Name]
			}
		}
		return maps.Equal(got, m.drops)
	}, func() string { return fmt.Sprintf("%v, want %v", got, m.drops) })
}

// until waits for another goroutine.
func (m *vifModel) until(what string, ok func() bool, said ...func() string) {
	for range 300 { // most are there soon
		if ok() {
			return
		}
		runtime.Gosched()
	}
	for begin := time.Now(); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Since(begin) > 20*time.Second {
			for _, f := range said {
				what += ": " + f()
			}
			m.rt.Fatalf("not in time: %s", what)
		}
	}
}

// grants takes a page away from the backend, grants it again, or changes its rights. A page
// that the backend has mapped stays as it is.
func (m *vifModel) grants(rt *rapid.T) {
	i := rapid.IntRange(0, modelPages-1).Draw(rt, "page")
	ref := modelRef + xen.Gref(i)
	p := &m.pages[i]
	inUse := m.open() && slices.ContainsFunc(m.static, func(t map[xen.Gref]bool) bool { _, is := t[ref]; return is })
	if m.w.host.InUse(ref) != inUse {
		rt.Fatalf("page %d in use: %t, want %t", i, !inUse, inUse)
	}
	var err error
	switch rapid.IntRange(0, 2).Draw(rt, "change") {
	case 0:
		if err = m.w.host.Revoke(ref); err == nil {
			*p = pageModel{}
		}
	case 1:
		if p.live {
			if err = m.w.host.SetProt(ref, gntdev.ReadOnly); err == nil {
				p.writable = false
			}
		}
	default:
		if !p.live {
			m.w.host.GrantAt(ref, gntdev.ReadWrite)
		} else {
			err = m.w.host.SetProt(ref, gntdev.ReadWrite)
		}
		if err == nil {
			*p = pageModel{live: true, writable: true}
		}
	}
	if (err != nil) != inUse {
		rt.Fatalf("page %d: %v", i, err)
	}
}

// events sends events without work.
func (m *vifModel) events(rt *rapid.T) {
	if !m.open() {
		rt.Skip()
	}
	for range rapid.IntRange(1, 20).Draw(rt, "events") {
		for _, q := range m.w.conns {
			m.w.host.kick(q.txPort)
			m.w.host.kick(q.rxPort)
		}
		if m.ctrl != nil {
			m.w.host.kick(m.ctrl.keys.port)
		}
	}
}

// connects closes the connection, in one of the ways that frontends have, and makes another.
func (m *vifModel) connects(rt *rapid.T) {
	w := m.w
	for _, s := range rapid.SampledFrom([][]xenbus.State{
		{xenbus.Closing, xenbus.Closed, xenbus.Initialising}, {xenbus.Closed, xenbus.Initialising}, {xenbus.Initialising},
	}).Draw(rt, "states") {
		w.frontState(s)
		w.settle()
	}
	m.connected, m.breach = false, false
	m.freeRings()
	m.check(rt)
	m.connect(rapid.IntRange(1, 3).Draw(rt, "queues"), rapid.Bool().Draw(rt, "split"), rapid.Bool().Draw(rt, "control"))
}

// badKeys offers a key that is refused: the vif closes, with an error and nothing of the
// guest's in use, and takes the next offer.
func (m *vifModel) badKeys(rt *rapid.T) {
	w := m.w
	w.frontState(xenbus.Initialising)
	w.settle()
	m.freeRings()
	key := rapid.SampledFrom([]string{"queue-1/tx-ring-ref", "queue-0/event-channel-tx", "multi-queue-num-queues", "request-rx-copy", "queue-1/rx-ring-ref"}).Draw(rt, "key")
	value := rapid.SampledFrom([]string{"", "0x1", "-1", "4294967296", "99999999999999999999", "x"}).Draw(rt, "value")
	m.connect(2, true, false, key, value)
	if s, e := w.get(backDir+"/state"), w.get(errorKey); s != "6" || e == "-" {
		rt.Fatalf("%s=%q: state %s, error node %s", key, value, s, e)
	}
	if u := w.host.Usage(); u.Pages != 0 || u.Ports != 0 {
		rt.Fatalf("after %s=%q in use: %v", key, value, u)
	}
	w.frontState(xenbus.Closed)
	w.settle()
	w.frontState(xenbus.Initialising)
	w.settle()
	m.freeRings()
	m.connect(1, false, false)
}

// wanders writes states that no frontend writes, in any order, and connects anew.
func (m *vifModel) wanders(rt *rapid.T) {
	w := m.w
	for range rapid.IntRange(1, 8).Draw(rt, "changes") {
		m.must(w.guest.Write(w.t.Context(), frontDir+"/state", rapid.SampledFrom([]string{
			"1", "2", "3", "4", "5", "6", "7", "8", "0", "9", "-1", "x", "", "4294967300",
		}).Draw(rt, "state")))
		if rapid.Bool().Draw(rt, "seen") {
			w.settle()
		}
	}
	w.settle()
	w.frontState(xenbus.Closed)
	w.settle()
	w.frontState(xenbus.Initialising)
	w.settle()
	m.connected, m.breach = false, false
	m.freeRings()
	m.check(rt)
	m.connect(1, rapid.Bool().Draw(rt, "split"), true)
}

// kill replaces the daemon. The connection, its settings and a quarantine stay.
func (m *vifModel) kill(rt *rapid.T) {
	w := m.w
	w.v.suspend()
	if u := w.host.Usage(); u.Pages != 0 || u.Ports != 0 {
		rt.Fatalf("the daemon has ended and holds %v", u)
	}
	w.v = New(w.cfg)
	w.settle()
	m.dropped()
}

// detach removes the vif, and attaches another.
func (m *vifModel) detach(rt *rapid.T) {
	m.dropped()
	m.ended = true
	m.leave()
	m.ended = false
	m.attach()
	m.connect(rapid.IntRange(1, 2).Draw(rt, "queues"), false, true)
}

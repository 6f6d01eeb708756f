// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"slices"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/netif"
)

// withControl returns a guest with a control ring.
func withControl(more ...func(*netfront.Config)) option {
	return front(func(c *netfront.Config) {
		c.Control = true
		for _, f := range more {
			f(c)
		}
	})
}

// hashKey is the key of Microsoft's verification suite.
var hashKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
	0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
	0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// allStatic has the backend keep all buffers of all the guest's queues mapped.
func (g *testGuest) allStatic(queues int) (n int) {
	g.w.t.Helper()
	for q := range queues {
		k, err := g.StaticGrants(g.w.ctx, "", q)
		g.w.must(err)
		n += k
	}
	return n
}

// TestStaticGrantsEndGrantOperations: if all buffers of a guest are static grants, its
// packets cost no grant operation in either direction, at any size.
func TestStaticGrantsEndGrantOperations(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withControl())
	g.pings(3)
	if g.counter(dataplane.GrantOps) == 0 {
		t.Error("no grant operations without static grants")
	}
	if n := g.allStatic(1); n != 512 {
		t.Errorf("%d grants are static, want 512", n)
	}
	s := g.status()
	before := s.Counters["grant_ops"]
	if q := s.Queues[0]; q.Static != 512 || q.StaticMax != 512 {
		t.Errorf("%d static grants of %d, want 512", q.Static, q.StaticMax)
	}
	g.pings(20)
	g.tcpToHost(32 << 20)
	g.tcpToGuest(g.ip, 32<<20)
	s = g.status()
	if n := s.Counters["grant_ops"] - before; n != 0 {
		t.Errorf("%d grant operations with static grants", n)
	}
	if s.Counters["static_hits"] == 0 || s.Counters["static_misses"] != 0 {
		t.Errorf("%d hits, %d misses", s.Counters["static_hits"], s.Counters["static_misses"])
	}
	if s.Counters["tx_gso"] == 0 || s.Counters["rx_gso"] == 0 {
		t.Error("no large packet came")
	}
	n, err := g.EndStaticGrants(w.ctx, "", 0)
	w.must(err)
	if left := g.status().Queues[0].Static; n != 512 || left != 0 {
		t.Errorf("%d grants were let go, %d are left", n, left)
	}
	g.pings(5)
	if g.counter(dataplane.GrantOps) == before {
		t.Error("no grant operations after static grants were let go")
	}
	g.innocent()
	_, err = w.Detach(w.ctx, g.Domid, g.Devid)
	w.must(err)
	w.vifGone(g.Domid, g.Devid)
	w.unpinned(g.Domid)
}

// TestControlRingOutlivesTheDaemon: static grants and the hash configuration survive a
// restart of the daemon. The guest does not notice it.
func TestControlRingOutlivesTheDaemon(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), withControl())
	g.allStatic(2)
	w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey, Mapping: []uint32{1, 0, 1}}))
	want := *g.status().Control
	there, back := g.streaming(48<<20), g.streamed(48<<20)
	for range 3 {
		g.waitCounter(dataplane.TxBytes, 1<<20)
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		s := g.serving()
		c := *s.Control
		want.Messages, want.Refused = c.Messages, c.Refused
		if !slices.Equal(c.Mapping, want.Mapping) || c.Key != want.Key || c.Algorithm != want.Algorithm || !slices.Equal(c.Types, want.Types) || c.Protocol != want.Protocol {
			t.Errorf("control ring after: %+v, before: %+v", c, want)
		}
		for i, q := range s.Queues {
			if q.Static == 0 {
				t.Errorf("queue %d has no static grants any more", i)
			}
		}
	}
	there()
	back()
	if s := g.status(); s.Counters["grant_ops"] != 0 {
		t.Errorf("%d grant operations since the last start", s.Counters["grant_ops"])
	}
	r, err := g.Control(w.ctx, guest.ControlArgs{Type: netif.CtrlGetHashFlags})
	w.must(err)
	if r.Status != netif.CtrlSuccess || r.Data != 15 {
		t.Errorf("the successor answers %+v", r)
	}
	g.innocentAfterKill()
}

// TestPacketsCarryHashes: with hashing on, every packet of a hashed type carries its hash;
// with hashing off, none does. The guest checks that it asked for them.
func TestPacketsCarryHashes(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), withControl())
	hashed := func() uint64 {
		s, err := g.Stats(w.ctx, "")
		w.must(err)
		return s.Total.RxHash
	}
	g.pings(3)
	if n := hashed(); n != 0 {
		t.Errorf("%d packets with a hash, but none was asked for", n)
	}
	w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey}))
	g.tcpToGuest(g.ip, 4<<20)
	g.tcpToGuest("fd98::10", 4<<20)
	if n, m := hashed(), g.counter(dataplane.RxHash); n == 0 || n > m {
		t.Errorf("%d packets with a hash, the daemon says %d", n, m)
	}
	r, err := g.Control(w.ctx, guest.ControlArgs{Type: netif.CtrlSetHashAlgorithm, Data: []uint32{netif.HashAlgorithmNone}})
	w.must(err)
	if r.Status != netif.CtrlSuccess {
		t.Errorf("hashing off: %v", r.Status)
	}
	n := hashed()
	g.pings(10)
	if hashed() != n {
		t.Errorf("%d packets with a hash after hashing was turned off", hashed()-n)
	}
	g.innocent()
}

// TestFlowsComeWhereTheTableSays: with hashing on, all packets of a flow arrive on the queue
// in the guest's table, and follow changes of the table, also after a restart.
func TestFlowsComeWhereTheTableSays(t *testing.T) {
	for _, by := range []string{"kernel", "netbackd"} {
		t.Run("chosen in "+by, func(t *testing.T) {
			daemon := []string{"--bpf=true"}
			if by == "netbackd" {
				daemon = []string{"--bpf=false", "--static-grants=100"}
			}
			w := newWorld(t, daemon...)
			flowsCome(w, by)
		})
	}
}

func flowsCome(w *world, by string) {
	t := w.t
	g := w.guest(queues(4), withControl())
	if by == "netbackd" {
		g.allStatic(4)
	}
	steered := func(s *vif.Status) bool { return s.Control != nil && strings.Contains(s.Control.Steering, by) }
	arrived := func() (n []uint64) {
		for _, q := range g.status().Queues {
			n = append(n, q.Counters["rx_packets"])
		}
		return n
	}
	astray := func() uint64 {
		s, err := g.Stats(w.ctx, "")
		w.must(err)
		return s.Total.RxAstray
	}
	unsteered := uint64(0) // packets sent while netbackd was not running or did not steer yet
	g.pings(5)
	for _, q := range []uint32{2, 0, 3} {
		w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey, Mapping: []uint32{q, q, q}}))
		if s := g.status(); !steered(s) {
			t.Skipf("queues are chosen by %s", s.Control.Steering)
		}
		if q == 3 {
			before := astray()
			w.Daemon().Kill()
			w.must(w.StartDaemon(w.ctx))
			g.serving()
			g.waitStatus("the successor to steer", steered)
			g.pings(5)
			unsteered = astray() - before
		}
		before := arrived()
		for range 3 { // three flows
			g.tcpToGuest(g.ip, 1<<20)
			g.tcpToHost(1 << 20)
		}
		for i, n := range arrived() {
			if n -= before[i]; (n != 0) != (uint32(i) == q) {
				t.Errorf("table says queue %d: %d packets on queue %d", q, n, i)
			}
		}
	}
	// A table that spreads: the packets of each flow on one queue.
	w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey}))
	before := arrived()
	for range 16 {
		g.tcpToGuest(g.ip, 64<<10)
	}
	used := 0
	for i, n := range arrived() {
		if n > before[i] {
			used++
		}
	}
	if used < 2 {
		t.Errorf("16 flows on %d queues", used)
	}
	if n := astray() - unsteered; n != 0 {
		t.Errorf("%d packets came on another queue than the guest expects", n)
	}
	g.innocentAfterKill()
}

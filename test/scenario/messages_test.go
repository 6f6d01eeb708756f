// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

const (
	done         = netif.CtrlSuccess
	notSupported = netif.CtrlNotSupported
	invalid      = netif.CtrlInvalidParameter
)

// grefList returns the page of an ADD or DEL message.
func grefList(entries ...netif.GrefEntry) (b []byte) {
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Ref))
		b = binary.LittleEndian.AppendUint16(b, e.Flags)
		b = binary.LittleEndian.AppendUint16(b, e.Status)
	}
	return b
}

// message returns a message that names no page.
func message(typ netif.CtrlType, data ...uint32) guest.ControlArgs {
	return guest.ControlArgs{Type: typ, Data: data}
}

func listOf(typ netif.CtrlType, queue, n uint32, entries ...netif.GrefEntry) guest.ControlArgs {
	return guest.ControlArgs{Type: typ, Data: []uint32{queue, 0, n}, Page: grefList(entries...), PageAt: 1}
}

// pagesOf returns n pages that the guest has granted for reading.
func (g *testGuest) pagesOf(p *prober, n int) (refs []xen.Gref) {
	g.w.t.Helper()
	for range n {
		r := p.raw(data(0, plainFrame(64)), guest.RawOp{Op: "flush"})
		p.answers([]uint16{0}, r)
		p.c.next()
		refs = append(refs, r.Grefs[0])
	}
	return refs
}

// TestGuestThatOnlyAsks: a guest that maps and unmaps pages without end is slowed down, and
// other guests are not.
func TestGuestThatOnlyAsks(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withControl())
	var all []netif.GrefEntry
	for _, r := range g.pagesOf(g.prober(), 128) {
		all = append(all, netif.GrefEntry{Ref: r, Flags: netif.GrefReadOnly})
	}
	// A message costs 1 ms, and 1 ms more for each 8 entries.
	const rounds, burst, cost = 60, 1024, 2 * (1 + 128/8)
	began := time.Now()
	w.undisturbed(func() {
		for range rounds {
			for _, typ := range []netif.CtrlType{netif.CtrlAddGrefMapping, netif.CtrlDelGrefMapping} {
				r, err := g.Control(w.ctx, listOf(typ, 0, uint32(len(all)), all...))
				w.must(err)
				if r.Status != done {
					t.Fatalf("%v: %v", typ, r.Status)
				}
			}
		}
	})
	if took, least := time.Since(began), (rounds*cost-burst)*time.Millisecond; took < least {
		t.Errorf("%d pages were mapped and unmapped %d times in %v, want no less than %v", len(all), rounds, took, least)
	}
	g.pings(3)
	g.innocent()
}

// TestNoStaticGrants: with --static-grants=0 the control ring supports hashing and no static
// grants.
func TestNoStaticGrants(t *testing.T) {
	w := newWorld(t, "--static-grants=0")
	g := w.guest(withControl())
	for typ := netif.CtrlGetGrefMappingSize; typ <= netif.CtrlDelGrefMapping; typ++ {
		r, err := g.Control(w.ctx, message(typ))
		w.must(err)
		if r.Status != notSupported || r.Data != 0 {
			t.Errorf("%v: %+v", typ, r)
		}
	}
	w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey}))
	g.innocent()
}

// TestByteStreamControlRing: a control ring of byte streams supports hashing and steering.
// Packets carry no hashes.
func TestByteStreamControlRing(t *testing.T) {
	for _, setting := range []string{"stream", "both"} {
		t.Run(setting, func(t *testing.T) {
			w := newWorld(t, "--control-ring="+setting)
			g := w.guest(queues(2), withControl(func(c *netfront.Config) { c.Stream = true }))
			if c := g.status().Control; c == nil || c.Protocol != "stream" {
				t.Fatalf("control ring %+v", c)
			}
			r, err := g.Control(w.ctx, message(netif.CtrlGetHashFlags))
			w.must(err)
			if r.Status != done || r.Data != 15 {
				t.Errorf("flags: %+v", r)
			}
			if m := g.status().Control.Mapping; !slices.Equal(m, []uint16{0}) {
				t.Errorf("mapping before there is one: %v", m)
			}
			mapping := make([]uint32, 128) // more than the ring holds
			for i := range mapping {
				mapping[i] = uint32(i % 2)
			}
			w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey, Mapping: mapping}))
			w.Daemon().Kill()
			w.must(w.StartDaemon(w.ctx))
			c := g.serving().Control
			if c.Protocol != "stream" || len(c.Mapping) != 128 || c.KeyBytes != 40 {
				t.Errorf("after a restart: %+v", c)
			}
			for _, bad := range [][]uint32{{0, 1, 0}, {0, 2}} {
				err := g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey, Mapping: bad})
				if want := "invalid"; err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
					t.Errorf("mapping %v: %v", bad, err)
				}
			}
			if c := g.status().Control; len(c.Mapping) != 128 {
				t.Errorf("what was refused is in force: %v", c.Mapping)
			}
			g.tcpToGuest(g.ip, 1<<20)
			s, err := g.Stats(w.ctx, "")
			w.must(err)
			if s.Total.RxHash != 0 {
				t.Errorf("%d packets carry a hash", s.Total.RxHash)
			}
			g.innocentAfterKill()
			// The other protocol, if it is offered too.
			if setting == "both" {
				g.reconnectWith(func(c *netfront.Config) { c.Queues, c.Control = 2, true })
				if c := g.status().Control; c == nil || c.Protocol != "slot" || len(c.Mapping) != 0 {
					t.Errorf("after a reconnect with slots: %+v", c)
				}
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

const (
	done         = netif.CtrlSuccess
	notSupported = netif.CtrlNotSupported
	invalid      = netif.CtrlInvalidParameter
	overflow     = netif.CtrlBufferOverflow
)

// grefList is the page of an ADD or DEL message.
func grefList(entries ...netif.GrefEntry) (b []byte) {
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, e.Ref)
		b = binary.LittleEndian.AppendUint16(b, e.Flags)
		b = binary.LittleEndian.AppendUint16(b, e.Status)
	}
	return b
}

// queueTable is the page of a SET_HASH_MAPPING message.
func queueTable(queues ...uint32) (b []byte) {
	for _, q := range queues {
		b = binary.LittleEndian.AppendUint32(b, q)
	}
	return b
}

// message is one that names no page.
func message(typ netif.CtrlType, data ...uint32) guest.ControlArgs {
	return guest.ControlArgs{Type: typ, Data: data}
}

// keyOf sends a key in a page.
func keyOf(key []byte, size uint32) guest.ControlArgs {
	return guest.ControlArgs{Type: netif.CtrlSetHashKey, Data: []uint32{0, size}, Page: key, PageAt: 0, ReadOnly: true}
}

func tableOf(n, offset uint32, queues ...uint32) guest.ControlArgs {
	return guest.ControlArgs{Type: netif.CtrlSetHashMapping, Data: []uint32{0, n, offset}, Page: queueTable(queues...), PageAt: 0, ReadOnly: true}
}

func listOf(typ netif.CtrlType, queue, n uint32, entries ...netif.GrefEntry) guest.ControlArgs {
	return guest.ControlArgs{Type: typ, Data: []uint32{queue, 0, n}, Page: grefList(entries...), PageAt: 1}
}

// pagesOf are n pages that the guest has granted for reading.
func (g *testGuest) pagesOf(p *prober, n int) (refs []netif.Gref) {
	g.w.t.Helper()
	for range n {
		r := p.raw(data(0, plainFrame(64)), guest.RawOp{Op: "flush"})
		p.answers([]uint16{0}, r)
		p.c.next()
		refs = append(refs, r.Grefs[0])
	}
	return refs
}

// Every message of the slot ring, every status it can be answered with, and every
// doubt about it. What is refused leaves in force what was, and a neighbour
// notices nothing.
func TestControlMessages(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), withControl())
	ref := g.pagesOf(g.prober(), 4)
	const bogus = 4000000000
	add, del := netif.CtrlAddGrefMapping, netif.CtrlDelGrefMapping
	ro := func(ref netif.Gref) netif.GrefEntry {
		return netif.GrefEntry{Ref: ref, Flags: netif.GrefReadOnly, Status: 7}
	}
	tests := []struct {
		name   string
		msg    guest.ControlArgs
		status netif.CtrlStatus
		data   uint32
		page   []netif.CtrlStatus // statuses in the list afterwards
	}{
		{"type 0", message(0), notSupported, 0, nil},
		{"type 11", message(11, 1, 2, 3), notSupported, 0, nil},
		{"type 65535", message(math.MaxUint16), notSupported, 0, nil},

		{"flags asked without algorithm", message(netif.CtrlGetHashFlags), notSupported, 0, nil},
		{"flags set without algorithm", message(netif.CtrlSetHashFlags, 15), invalid, 0, nil},
		{"unknown algorithm", message(netif.CtrlSetHashAlgorithm, 2), invalid, 0, nil},
		{"algorithm", message(netif.CtrlSetHashAlgorithm, 1), done, 0, nil},
		{"flags asked", message(netif.CtrlGetHashFlags), done, 15, nil},
		{"flags set", message(netif.CtrlSetHashFlags, 15), done, 0, nil},
		{"unknown flags", message(netif.CtrlSetHashFlags, 16), invalid, 0, nil},
		{"unknown flags among others", message(netif.CtrlSetHashFlags, 0x8000000f), invalid, 0, nil},
		{"unknown algorithm, with one in force", message(netif.CtrlSetHashAlgorithm, math.MaxUint32), invalid, 0, nil},

		{"key", keyOf(hashKey, 40), done, 0, nil},
		{"key one octet too long", keyOf(append(bytes.Clone(hashKey), 1), 41), overflow, 0, nil},
		{"key of a page", keyOf(hashKey, 4096), overflow, 0, nil},
		{"key longer than a page", keyOf(hashKey, 4097), invalid, 0, nil},
		{"key whose gref is bogus", message(netif.CtrlSetHashKey, bogus, 40), invalid, 0, nil},

		{"mapping size asked", message(netif.CtrlGetHashMappingSize), done, 128, nil},
		{"mapping size", message(netif.CtrlSetHashMappingSize, 8), done, 0, nil},
		{"mapping size too large", message(netif.CtrlSetHashMappingSize, 129), invalid, 0, nil},
		{"mapping size that wraps", message(netif.CtrlSetHashMappingSize, math.MaxUint32), invalid, 0, nil},
		{"mapping", tableOf(4, 2, 1, 0, 1, 1), done, 0, nil},
		{"mapping of nothing", tableOf(0, 8, 1), done, 0, nil},
		{"mapping to a queue there is not", tableOf(2, 0, 0, 2), invalid, 0, nil},
		{"mapping beyond the table", tableOf(2, 7, 0, 0), invalid, 0, nil},
		{"mapping whose offset and length wrap", tableOf(2, math.MaxUint32, 0, 0), invalid, 0, nil},
		{"mapping whose length in octets wraps 16 bits", tableOf(0x4001, 0, 0), invalid, 0, nil},
		{"mapping of more entries than a page has", tableOf(1025, 0, 0), invalid, 0, nil},
		{"mapping whose gref is bogus", message(netif.CtrlSetHashMapping, bogus, 2, 0), invalid, 0, nil},

		{"static grants asked", message(netif.CtrlGetGrefMappingSize, 0), done, 512, nil},
		{"static grants asked of a queue there is not", message(netif.CtrlGetGrefMappingSize, 2), invalid, 0, nil},
		{"static grants asked of the last queue of all", message(netif.CtrlGetGrefMappingSize, math.MaxUint32), invalid, 0, nil},
		{"add to a queue there is not", listOf(add, 2, 1, ro(ref[0])), invalid, 0, nil},
		{"add with a list that is bogus", message(add, 0, bogus, 1), invalid, 0, nil},
		{"add more than a page has", listOf(add, 0, 513, ro(ref[0])), invalid, 0, nil},
		{"add as many as wrap", listOf(add, 0, math.MaxUint32, ro(ref[0])), invalid, 0, nil},
		{"add nothing", listOf(add, 0, 0, ro(ref[0])), done, 0, nil},
		{"add unknown flags", listOf(add, 0, 1, netif.GrefEntry{Ref: ref[0], Flags: 3}), invalid, 0, nil},
		{"add one that is bogus among others", listOf(add, 0, 3, ro(ref[0]), ro(bogus), ro(ref[1])), invalid, 0, []netif.CtrlStatus{7, 7, 7}},
		{"add one twice", listOf(add, 0, 2, ro(ref[0]), ro(ref[0])), invalid, 0, nil},
		{"add one for writing that may only be read", listOf(add, 0, 1, netif.GrefEntry{Ref: ref[0]}), invalid, 0, nil},
		{"add, and the statuses are left alone", listOf(add, 0, 3, ro(ref[0]), ro(ref[1]), ro(ref[2])), done, 0, []netif.CtrlStatus{7, 7, 7}},
		{"add one that is there", listOf(add, 0, 2, ro(ref[3]), ro(ref[1])), invalid, 0, nil},
		{"add the same to another queue", listOf(add, 1, 1, ro(ref[0])), done, 0, nil},

		{"delete from a queue there is not", listOf(del, 2, 1, ro(ref[0])), invalid, 0, []netif.CtrlStatus{7}},
		{"delete with a list that is bogus", message(del, 0, bogus, 1), invalid, 0, nil},
		{"delete with a list that may only be read", func() guest.ControlArgs {
			m := listOf(del, 0, 1, ro(ref[0]))
			m.ReadOnly = true
			return m
		}(), invalid, 0, []netif.CtrlStatus{7}},
		{"delete more than a page has", listOf(del, 0, 513, ro(ref[0])), invalid, 0, []netif.CtrlStatus{7}},
		{"delete nothing", listOf(del, 0, 0, ro(ref[0])), done, 0, []netif.CtrlStatus{7}},
		{"delete some, and some that are not there", listOf(del, 0, 5, ro(ref[0]), ro(ref[3]), ro(bogus), ro(ref[1]), ro(ref[0])), done, 2,
			[]netif.CtrlStatus{done, invalid, invalid, done, invalid}},
		{"delete with flags that nobody knows", listOf(del, 0, 1, netif.GrefEntry{Ref: ref[2], Flags: 0xffff}), done, 1, []netif.CtrlStatus{done}},
		{"delete what is not there any more", listOf(del, 0, 1, ro(ref[2])), done, 0, []netif.CtrlStatus{invalid}},
		{"delete of the other queue", listOf(del, 1, 1, ro(ref[0])), done, 1, []netif.CtrlStatus{done}},

		{"mapping size 0", message(netif.CtrlSetHashMappingSize, 0), done, 0, nil},
		{"key cleared, gref not looked at", message(netif.CtrlSetHashKey, bogus, 0), done, 0, nil},
		{"no flags", message(netif.CtrlSetHashFlags, 0), done, 0, nil},
		{"no algorithm", message(netif.CtrlSetHashAlgorithm, 0), done, 0, nil},
	}
	// what is in force
	force := func() (ctrlserver.Status, []int) {
		s := g.status()
		c := *s.Control
		c.Messages, c.Refused = 0, 0
		var static []int
		for _, q := range s.Queues {
			static = append(static, q.Static)
		}
		return c, static
	}
	w.undisturbed(func() {
		for i, tt := range tests {
			w.situation(tt.name, func() {
				before, static := force()
				r, err := g.Control(w.ctx, tt.msg)
				w.must(err)
				if r.Status != tt.status || r.Data != tt.data {
					w.t.Errorf("message %d: %v, %d, want %v, %d", i, r.Status, r.Data, tt.status, tt.data)
				}
				for k, want := range tt.page {
					if got := netif.CtrlStatus(binary.LittleEndian.Uint16(r.Page[8*k+6:])); got != want {
						w.t.Errorf("entry %d: %v, want %v", k, got, want)
					}
				}
				after, staticAfter := force()
				if tt.status != done && (cmp.Diff(before, after) != "" || !slices.Equal(static, staticAfter)) {
					w.t.Errorf("it was refused, but in force is now\n%+v %v, before\n%+v %v", after, staticAfter, before, static)
				}
			})
		}
	})
	c, static := force()
	want := ctrlserver.Status{Protocol: "slot", Algorithm: "none", Steering: "host", Types: []string{}, Mapping: []uint16{}}
	if diff := cmp.Diff(want, c); diff != "" || !slices.Equal(static, []int{0, 0}) {
		t.Errorf("in the end (-want +got):\n%s%v", diff, static)
	}
	if n := g.status().Control; int(n.Messages) != len(tests) {
		t.Errorf("%d messages counted, want %d", n.Messages, len(tests))
	}
	g.pings(3)
	g.innocent()
}

// Static grants are bounded, for a queue and for all vifs of a guest.
func TestStaticGrantsAreBounded(t *testing.T) {
	w := newWorld(t, "--static-grants=3")
	g := w.guest(withControl())
	ref := g.pagesOf(g.prober(), 4)
	var all []netif.GrefEntry
	for _, r := range ref {
		all = append(all, netif.GrefEntry{Ref: r, Flags: netif.GrefReadOnly})
	}
	send := func(m guest.ControlArgs) guest.ControlResult {
		r, err := g.Control(w.ctx, m)
		w.must(err)
		return r
	}
	if r := send(message(netif.CtrlGetGrefMappingSize, 0)); r.Data != 3 {
		t.Errorf("room for %d", r.Data)
	}
	if r := send(listOf(netif.CtrlAddGrefMapping, 0, 4, all...)); r.Status != invalid {
		t.Errorf("4 grants: %v", r.Status)
	}
	if r := send(listOf(netif.CtrlAddGrefMapping, 0, 3, all...)); r.Status != done {
		t.Errorf("3 grants: %v", r.Status)
	}
	if r := send(listOf(netif.CtrlAddGrefMapping, 0, 1, all[3])); r.Status != invalid {
		t.Errorf("one more: %v", r.Status)
	}
	g.innocent()
}

// A guest that has pages mapped and unmapped without end gets slower and slower, and
// nobody else does.
func TestGuestThatOnlyAsks(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withControl())
	var all []netif.GrefEntry
	for _, r := range g.pagesOf(g.prober(), 128) {
		all = append(all, netif.GrefEntry{Ref: r, Flags: netif.GrefReadOnly})
	}
	// A message is worth a millisecond, and one more for each 8 entries.
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

// With --static-grants=0 they are not supported, and hashing is.
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

// A buffer that is a static grant for reading only is no place for packets: the
// slot is answered with an error, and what comes next goes where it can.
func TestReadOnlyStaticGrantIsNoRxBuffer(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withControl(), front(func(c *netfront.Config) { c.RxPages = 40 }))
	p := g.prober()
	p.raw(guest.RawOp{Op: "rx-target"})
	for range 20 { // so that the guest has buffers it has not posted
		p.c.send(tap.VnetHdr{}, plainFrame(64))
	}
	g.waitCounter(dataplane.RxPackets, 20)
	r := p.raw(guest.RawOp{Op: "rx", Ref: "rx", RingID: 77})
	a, err := g.Control(w.ctx, listOf(netif.CtrlAddGrefMapping, 0, 1, netif.GrefEntry{Ref: r.Grefs[0], Flags: netif.GrefReadOnly}))
	w.must(err)
	if a.Status != done {
		t.Fatalf("add: %v", a.Status)
	}
	before := g.drops()
	p.raw(guest.RawOp{Op: "flush"})
	for range 21 { // past what is posted before it
		p.c.send(tap.VnetHdr{}, plainFrame(64))
	}
	w.wait("the drop", func() bool { return g.counter(dataplane.DropRxReadOnly) > 0 })
	g.dropped(before, drops{dataplane.DropRxReadOnly: 1})
}

// A control ring of byte streams does hashing, steers, and tells no hashes.
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

// What one connection configured is not there in the next.
func TestReconnectForgetsTheControlRing(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), withControl())
	fresh := *g.status().Control
	g.allStatic(2)
	w.must(g.SetHash(w.ctx, "", netfront.Hash{Types: 15, Key: hashKey, Mapping: []uint32{1}}))
	g.reconnect()
	s := g.serving()
	if diff := cmp.Diff(fresh, *s.Control); diff != "" {
		t.Errorf("after a reconnect (-before +after):\n%s", diff)
	}
	for i, q := range s.Queues {
		if q.Static != 0 {
			t.Errorf("queue %d has %d static grants", i, q.Static)
		}
	}
	g.pings(5)
	g.innocent()
}

// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// walkPacked reads a chain of a packed ring whose descriptors follow each other.
func (w *rules) walkPacked(descs []desc) Reason {
	for _, d := range descs {
		if d.flags&descIndirect != 0 {
			in, reason := w.table(d, packedDesc)
			if reason != ReasonNone {
				return reason
			}
			for _, e := range in {
				if e.flags&descIndirect != 0 {
					return ReasonIndirectNested
				}
				if reason := w.add(e); reason != ReasonNone {
					return reason
				}
			}
		} else if reason := w.add(d); reason != ReasonNone {
			return reason
		}
		if d.flags&descNext == 0 {
			return ReasonNone
		}
	}
	return ReasonLoop
}

// TestPackedModel drives packed rings of random descriptors, and compares each chain with
// a plain reading of the rules.
func TestPackedModel(t *testing.T) {
	m := newModel(t)
	rapid.Check(t, func(t *rapid.T) {
		clear(m.ring)
		m.fillTables(t, func(length uint32, flags, next uint16) uint64 {
			return desc{len: length, flags: flags, next: next}.rest()
		})
		const size = 6
		r := PackedRingsIn(m.ring, size)
		start := positionOf(rapid.SampledFrom([]uint16{0x8000, 0x8005, 3, 0x8002}).Draw(t, "base"))
		base := uint32(start.encode())
		indir := rapid.Bool().Draw(t, "indirect")
		// Descriptors that look used as seen from start.
		for p, i := start, 0; i < size; i++ {
			old := position{p.slot, !p.wrap}
			PutDesc(r.Desc, int(p.slot), 0, old.usedFlags())
			p = p.move(1, size)
		}
		q, err := NewPacked(Config{Size: size, Memory: m.memory, Base: base, Indirect: indir}, r)
		if err != nil {
			t.Fatal(err)
		}
		batch := NewBatch(size)
		at := start
		for range 20 {
			n := rapid.IntRange(1, size).Draw(t, "descriptors")
			descs := make([]desc, n)
			for i := range descs {
				d := &descs[i]
				d.addr, d.len, d.flags, d.next = drawDesc(t, "ring")
				if i+1 < n {
					d.flags |= descNext
				} else if n < size || rapid.IntRange(0, 3).Draw(t, "ends") > 0 {
					d.flags &^= descNext
				}
			}
			for i, d := range descs {
				p := at.move(i, size)
				if p.wrap {
					d.flags |= descAvail
				} else {
					d.flags |= descUsed
				}
				PutDesc(r.Desc, int(p.slot), d.addr, d.rest())
			}
			w := &rules{m: m, indir: indir}
			want := w.walkPacked(descs)
			got, err := q.Take(batch, 1)
			w.check(t, batch, got, err, want)
			if err != nil {
				return
			}
			if id := batch.Chain(batch.Len() - 1).ID; id != descs[n-1].next {
				t.Fatalf("id %d, want %d", id, descs[n-1].next)
			}
			at = at.move(n, size)
			q.Publish(batch)
			if want := uint32(at.encode()) * 0x10001; q.Base() != want {
				t.Fatalf("base %#x, want %#x", q.Base(), want)
			}
			if more, err := q.Arm(); more || err != nil {
				t.Fatalf("more: %t, %v", more, err)
			}
		}
	})
}

// FuzzPacked runs a device on a packed ring of arbitrary bytes, as FuzzSplit does.
func FuzzPacked(f *testing.F) {
	m := newModel(f)
	seed := make([]byte, 256)
	r := PackedRingsIn(seed, 4)
	PutDesc(r.Desc, 0, modelBase, 64|(descNext|descAvail)<<48)
	PutDesc(r.Desc, 1, modelBase+0xff0, 64|(descWrite|descAvail)<<48)
	f.Add(seed, []byte{}, uint32(newBase), byte(4), byte(0))
	PutDesc(r.Desc, 0, modelBase+8, 32|(descIndirect|descAvail)<<48)
	f.Add(seed, seed, uint32(newBase), byte(5), byte(255))
	fuzzloop.Fuzz(f, func(t *testing.T, ring, later []byte, base uint32, size, bits byte) {
		clear(m.ring)
		clear(m.mem)
		copy(m.ring, ring)
		copy(m.mem[8:], later)
		c := Config{Size: 1 + int(size&7), Memory: m.memory, Base: base,
			EventIdx: bits&4 != 0, Indirect: bits&8 != 0, InOrder: bits&16 != 0}
		if bits&32 != 0 {
			c.Inflight = m.ring[0x1000:]
			copy(c.Inflight, later)
		}
		q, err := NewPacked(c, PackedRingsIn(m.ring, c.Size))
		if err != nil {
			return
		}
		batch := NewBatch(4)
		for i := range 8 {
			n, err := q.Take(batch, 3)
			touch(batch)
			if bits&64 != 0 && batch.Len() > 1 {
				q.Return(batch, batch.Len()/2)
			}
			if bits&128 != 0 {
				_, _ = q.TakeFor(batch, 100, 2)
				touch(batch)
			}
			q.Publish(batch)
			if more, armErr := q.Arm(); armErr == nil && more && n == 0 && bits&192 == 0 && i > 0 && err == nil {
				t.Fatal("chains are available and cannot be taken")
			}
			if i%2 == 0 && len(later) > 0 {
				copy(m.ring[int(later[0])%200:], later)
			}
		}
	})
}

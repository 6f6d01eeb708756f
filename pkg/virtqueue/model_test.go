// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

const (
	modelSize = 8
	modelMem  = 0x2000 // two regions of a page, next to each other
	modelBase = 0x1000
)

// model is guest memory between pages that nothing may touch, and rings beside it.
type model struct {
	mem, ring []byte
	memory    *Memory
}

func newModel(t testing.TB) *model {
	all, err := unix.Mmap(-1, 0, 7*0x1000, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(all) })
	m := &model{mem: all[0x1000:0x3000], ring: all[0x4000:0x6000]}
	for _, mem := range [][]byte{m.mem, m.ring} {
		if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Fatal(err)
		}
	}
	m.memory, err = NewMemory(Region{Addr: modelBase, Size: 0x1000, Mem: m.mem[:0x1000]},
		Region{Addr: modelBase + 0x1000, Size: 0x1000, Mem: m.mem[0x1000:]})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rules reads a chain in the plain way: every test of a descriptor stands where virtio's
// text has it.
type rules struct {
	m       *model
	read    uint64
	written uint64
	pieces  []Piece // without Mem
	indir   bool
}

func (w *rules) add(d desc) Reason {
	write := d.flags&descWrite != 0
	switch {
	case d.len == 0:
		return ReasonZeroLength
	case d.addr > math.MaxUint64-uint64(d.len)+1:
		return ReasonAddress
	case !write && w.written > 0:
		return ReasonOrder
	case w.read+w.written+uint64(d.len) > math.MaxUint32:
		return ReasonTooLong
	case d.addr < modelBase || d.addr >= modelBase+modelMem || uint64(d.len) > modelBase+modelMem-d.addr:
		return ReasonAddress
	}
	if write {
		w.written += uint64(d.len)
	} else {
		w.read += uint64(d.len)
	}
	first := uint64(d.len)
	if d.addr < modelBase+0x1000 {
		first = min(first, modelBase+0x1000-d.addr)
	}
	w.pieces = append(w.pieces, Piece{Addr: d.addr, Len: uint32(first)})
	if rest := uint64(d.len) - first; rest > 0 {
		w.pieces = append(w.pieces, Piece{Addr: d.addr + first, Len: uint32(rest)})
	}
	return ReasonNone
}

// table reads an indirect table.
func (w *rules) table(d desc, decode func(a, b uint64) desc) ([]desc, Reason) {
	switch {
	case !w.indir:
		return nil, ReasonIndirect
	case d.flags&descNext != 0:
		return nil, ReasonIndirectNext
	case d.len == 0 || d.len%16 != 0:
		return nil, ReasonIndirectLength
	case d.len > 16*MaxPieces:
		return nil, ReasonTooLong
	case d.addr < modelBase || d.addr > modelBase+modelMem || d.addr+uint64(d.len) > modelBase+modelMem:
		return nil, ReasonAddress
	}
	var out []desc
	for off := d.addr - modelBase; len(out) < int(d.len)/16; off += 16 {
		out = append(out, decode(binary.LittleEndian.Uint64(w.m.mem[off:]), binary.LittleEndian.Uint64(w.m.mem[off+8:])))
	}
	return out, ReasonNone
}

// walk follows next through descs from head. top says that they are the ring's.
func (w *rules) walk(descs []desc, head int, top bool) Reason {
	at := head
	for range descs {
		d := descs[at]
		if d.flags&descIndirect != 0 {
			if !top {
				return ReasonIndirectNested
			}
			in, reason := w.table(d, splitDesc)
			if reason != ReasonNone {
				return reason
			}
			return w.walk(in, 0, false)
		}
		if reason := w.add(d); reason != ReasonNone {
			return reason
		}
		if d.flags&descNext == 0 {
			return ReasonNone
		}
		if int(d.next) >= len(descs) {
			return ReasonNext
		}
		at = int(d.next)
	}
	return ReasonLoop
}

// drawDesc draws a descriptor that is often good.
func drawDesc(t *rapid.T, label string) (addr uint64, length uint32, flags, next uint16) {
	addr = rapid.OneOf(
		rapid.Uint64Range(modelBase, modelBase+modelMem-1),
		rapid.SampledFrom([]uint64{modelBase, modelBase + 0x100, modelBase + 0xff8, modelBase + modelMem - 16, modelBase - 1,
			modelBase + modelMem, 0, math.MaxUint64, math.MaxUint64 - 15}),
	).Draw(t, label+" addr")
	length = rapid.OneOf(rapid.Uint32Range(1, 40),
		rapid.SampledFrom([]uint32{16, 32, 48, 16, 32, 0, 0x1000, modelMem, math.MaxUint32})).Draw(t, label+" len")
	flags = rapid.SampledFrom([]uint16{0, descNext, descWrite, descNext | descWrite, descIndirect, descNext,
		descIndirect | descWrite, descIndirect | descNext}).Draw(t, label+" flags")
	next = rapid.Uint16Range(0, modelSize).Draw(t, label+" next")
	return
}

// fillTables puts descriptors into guest memory, for indirect tables.
func (m *model) fillTables(t *rapid.T, encode func(length uint32, flags, next uint16) uint64) {
	clear(m.mem)
	for _, off := range []int{0, 0x100, 0xff8} {
		for i := range 3 {
			addr, length, flags, next := drawDesc(t, "table")
			PutDesc(m.mem[off:], i, addr, encode(length, flags, next%4))
		}
	}
}

// check compares what was taken with what the rules say.
func (w *rules) check(t *rapid.T, batch *Batch, n int, err error, want Reason) {
	if err != nil {
		if got := err.(*Error).Reason; got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
		return
	}
	if want != ReasonNone || n != 1 {
		t.Fatalf("took %d chains, want %v", n, want)
	}
	c := batch.Chain(batch.Len() - 1)
	var got []Piece
	for _, pieces := range [][]Piece{batch.Readable(batch.Len() - 1), batch.Writable(batch.Len() - 1)} {
		for _, p := range pieces {
			if len(p.Mem) != int(p.Len) || &p.Mem[0] != &w.m.mem[p.Addr-modelBase] {
				t.Fatalf("piece at %#x has other memory", p.Addr)
			}
			p.Mem = nil
			got = append(got, p)
		}
	}
	if diff := cmp.Diff(w.pieces, got); diff != "" || uint64(c.ReadLen) != w.read || uint64(c.WriteLen) != w.written {
		t.Fatalf("%d and %d bytes, want %d and %d; pieces (-want +got):\n%s", c.ReadLen, c.WriteLen, w.read, w.written, diff)
	}
}

// TestSplitModel drives rings of random descriptors, and compares each chain with a plain
// reading of the rules.
func TestSplitModel(t *testing.T) {
	m := newModel(t)
	rapid.Check(t, func(t *rapid.T) {
		clear(m.ring)
		m.fillTables(t, func(length uint32, flags, next uint16) uint64 {
			return uint64(length) | uint64(flags)<<32 | uint64(next)<<48
		})
		r := SplitRingsIn(m.ring, modelSize)
		descs := make([]desc, modelSize)
		for i := range descs {
			addr, length, flags, next := drawDesc(t, "ring")
			rest := uint64(length) | uint64(flags)<<32 | uint64(next)<<48
			PutDesc(r.Desc, i, addr, rest)
			descs[i] = splitDesc(addr, rest)
		}
		base := rapid.SampledFrom([]uint16{0, 5, math.MaxUint16 - 3}).Draw(t, "base")
		binary.LittleEndian.PutUint16(r.Used[2:], base)
		indir := rapid.Bool().Draw(t, "indirect")
		q, err := NewSplit(Config{Size: modelSize, Memory: m.memory, Base: uint32(base), Indirect: indir}, r)
		if err != nil {
			t.Fatal(err)
		}
		batch := NewBatch(modelSize)
		for i := range uint16(20) {
			head := rapid.Uint16Range(0, modelSize).Draw(t, "head")
			ahead := rapid.SampledFrom([]uint16{1, 1, 1, 1, 1, 1, 1, modelSize + 1, math.MaxUint16}).Draw(t, "ahead")
			binary.LittleEndian.PutUint16(r.Avail[4+2*((base+i)%modelSize):], head)
			binary.LittleEndian.PutUint16(r.Avail[2:], base+i+ahead)
			w := &rules{m: m, indir: indir}
			var want Reason
			switch {
			case ahead != 1:
				want = ReasonAvailIndex
			case head >= modelSize:
				want = ReasonHead
			default:
				want = w.walk(descs, int(head), true)
			}
			n, err := q.Take(batch, 1)
			w.check(t, batch, n, err, want)
			if err != nil {
				return
			}
			if rapid.Bool().Draw(t, "publish") || batch.Len() == modelSize {
				q.Publish(batch)
				if got := binary.LittleEndian.Uint16(r.Used[2:]); got != base+i+1 {
					t.Fatalf("used index %d, want %d", got, base+i+1)
				}
			}
			if more, err := q.Arm(); more || err != nil {
				t.Fatalf("more: %t, %v", more, err)
			}
		}
	})
}

// FuzzSplit runs a device on a ring of arbitrary bytes that change meanwhile. What it takes
// is read and written: a piece outside of the table would be a fault.
func FuzzSplit(f *testing.F) {
	m := newModel(f)
	seed := make([]byte, 256)
	r := SplitRingsIn(seed, 4)
	PutDesc(r.Desc, 0, modelBase, 64|descNext<<32|1<<48)
	PutDesc(r.Desc, 1, modelBase+0xff0, 64|descWrite<<32)
	binary.LittleEndian.PutUint16(r.Avail[2:], 3)
	f.Add(seed, []byte{}, uint16(0), byte(0))
	PutDesc(r.Desc, 0, modelBase+8, 32|descIndirect<<32)
	f.Add(seed, seed, uint16(2), byte(255))
	fuzzloop.Fuzz(f, func(t *testing.T, ring, later []byte, base uint16, bits byte) {
		clear(m.ring)
		clear(m.mem)
		copy(m.ring, ring)
		copy(m.mem[8:], later)
		c := Config{Size: 1 << (bits & 3), Memory: m.memory, Base: uint32(base),
			EventIdx: bits&4 != 0, Indirect: bits&8 != 0, InOrder: bits&16 != 0}
		if bits&32 != 0 {
			c.Inflight = m.ring[0x1000:]
			copy(c.Inflight, later)
		}
		q, err := NewSplit(c, SplitRingsIn(m.ring, c.Size))
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
			if more, armErr := q.Arm(); armErr == nil && more && n == 0 && bits&64 == 0 && i > 0 && err == nil && bits&128 == 0 {
				t.Fatal("chains are available and cannot be taken")
			}
			if i%2 == 0 && len(later) > 0 {
				copy(m.ring[int(later[0])%200:], later)
			}
		}
	})
}

// touch reads and writes all that a batch refers to.
func touch(b *Batch) (sum byte) {
	for i := range b.Len() {
		for _, p := range b.Readable(i) {
			for _, v := range p.Mem {
				sum += v
			}
		}
		for _, p := range b.Writable(i) {
			for k := range p.Mem {
				p.Mem[k]++
			}
		}
		b.Chain(i).Written = b.Chain(i).WriteLen
	}
	return sum
}

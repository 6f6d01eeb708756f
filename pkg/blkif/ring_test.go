// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xen"
)

func newMem(order int) []byte { return make([]byte, PageSize<<order) }

func word(mem []byte, i int) uint32       { return binary.LittleEndian.Uint32(mem[4*i:]) }
func setWord(mem []byte, i int, v uint32) { binary.LittleEndian.PutUint32(mem[4*i:], v) }

// move puts a new ring to another start, as if that many slots had passed.
func (f *Front) move(start Index) {
	f.ring.w[wReqProd] = uint32(start)
	f.ring.w[wReqEvent] = uint32(start + 1)
	f.ring.w[wRspProd] = uint32(start)
	f.ring.w[wRspEvent] = uint32(start + 1)
	f.reqProd, f.pushed, f.rspCons = start, start, start
}

func pair(t testing.TB, p Protocol, order int, start Index) (*Front, *Back, []byte) {
	t.Helper()
	mem := newMem(order)
	f, err := InitFront(mem, p)
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	f.move(start)
	b, err := AttachBack(mem, p)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return f, b, mem
}

// requests are one of each kind, with the largest values where they fit.
func requests() []Request {
	direct := Request{Op: OpWrite, Handle: 51712, NrSegments: MaxDirect, ID: 0x1122334455667788, Sector: 0x99aabbccddeeff00}
	for i := range direct.Segs {
		direct.Segs[i] = RawSegment{Gref: xen.Gref(0x80000000 + i), First: uint8(i % 8), Last: 7}
	}
	indirect := Request{Op: OpIndirect, Inner: OpWrite, NrSegments: MaxIndirect, Handle: 51728, ID: 1<<63 + 5, Sector: 1 << 40}
	for i := range indirect.Grefs {
		indirect.Grefs[i] = xen.Gref(0xfffffff0 + i)
	}
	one := Request{Op: OpRead, NrSegments: 1, ID: 1, Sector: 8}
	one.Segs[0] = RawSegment{Gref: 9, First: 2, Last: 3}
	return []Request{
		direct, indirect, one,
		{Op: OpFlush, ID: 7},
		{Op: OpBarrier, ID: 8},
		{Op: OpDiscard, Flag: DiscardSecure, ID: 10, Sector: 1 << 50, NrSectors: 1<<32 - 1},
	}
}

// TestRoundTrip sends one request of each kind over rings of each protocol and order, round
// the wrap of the indices.
func TestRoundTrip(t *testing.T) {
	for _, p := range Protocols() {
		for order := range MaxOrder + 1 {
			f, b, _ := pair(t, p, order, 0xfffffff0)
			if f.Size() != RingSize(order) || b.Size() != RingSize(order) {
				t.Fatalf("%v, order %d: %d and %d slots, want %d", p, order, f.Size(), b.Size(), RingSize(order))
			}
			for range 2 * RingSize(order) / 6 {
				roundTrip(t, f, b)
			}
		}
	}
}

func roundTrip(t *testing.T, f *Front, b *Back) {
	t.Helper()
	want := requests()
	for i := range want {
		f.Put(&want[i])
	}
	f.Push()
	n, err := b.Available()
	if err != nil || int(n) != len(want) {
		t.Fatalf("available = %d, %v", n, err)
	}
	var rsp []Response
	for i := range want {
		var s Slot
		var got Request
		b.Copy(b.ReqCons(), &s)
		b.Consume(1)
		s.Decode(b.Protocol(), &got)
		if diff := cmp.Diff(want[i], got, cmp.AllowUnexported(RawSegment{})); diff != "" {
			t.Fatalf("%v: request (-want +got):\n%s", b.Protocol(), diff)
		}
		if s.ID(b.Protocol()) != got.ID || s.Op() != got.Op {
			t.Fatalf("%v: id %#x, op %v of the slot", b.Protocol(), s.ID(b.Protocol()), s.Op())
		}
		rsp = append(rsp, got.Response(Status(-i)))
	}
	if b.InFlight() != uint32(len(want)) {
		t.Fatalf("%d in flight", b.InFlight())
	}
	b.Commit(rsp)
	if n, err := f.Responses(); err != nil || int(n) != len(rsp) {
		t.Fatalf("responses = %d, %v", n, err)
	}
	for i := range rsp {
		if got := f.Response(f.RspCons()); got != rsp[i] {
			t.Fatalf("response %+v, want %+v", got, rsp[i])
		}
		f.Take(1)
	}
}

// TestOverrunIsForGood: a req_prod out of bounds stops the ring even if the frontend
// mends it.
func TestOverrunIsForGood(t *testing.T) {
	f, b, mem := pair(t, X8664, 1, 100)
	f.SetReqProd(100 + 65)
	if n, err := b.Available(); n != 0 || !errors.Is(err, ErrOverrun) {
		t.Fatalf("available = %d, %v", n, err)
	}
	setWord(mem, wReqProd, 101)
	if n, err := b.Available(); n != 0 || !errors.Is(err, ErrOverrun) {
		t.Fatalf("available = %d, %v after it was mended", n, err)
	}
}

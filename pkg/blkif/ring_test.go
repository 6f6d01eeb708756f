// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
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
		if diff := cmp.Diff(want[i], got, ignoreBlank); diff != "" {
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

func TestInitWritesSharedRingInit(t *testing.T) {
	for order := range MaxOrder + 1 {
		mem := newMem(order)
		for i := range mem {
			mem[i] = 0xff
		}
		if _, err := InitFront(mem, X8664); err != nil {
			t.Fatal(err)
		}
		want := newMem(order)
		want[4], want[12] = 1, 1
		if diff := cmp.Diff(want, mem); diff != "" {
			t.Errorf("order %d (-want +got):\n%s", order, diff)
		}
	}
}

func TestMemoryThatIsNoRing(t *testing.T) {
	whole := make([]byte, 33*PageSize)
	for name, mem := range map[string][]byte{
		"nothing":   nil,
		"short":     whole[:PageSize-4],
		"long":      whole[:PageSize+4],
		"3 pages":   whole[:3*PageSize],
		"32 pages":  whole[:32*PageSize],
		"unaligned": whole[2 : PageSize+2],
	} {
		if _, err := InitFront(mem, X8664); err == nil {
			t.Errorf("%s: a frontend took it", name)
		}
		if _, err := AttachBack(mem, X8664); err == nil {
			t.Errorf("%s: a backend took it", name)
		}
	}
	for _, p := range []Protocol{0, 4} {
		if _, err := AttachBack(newMem(0), p); err == nil {
			t.Errorf("%v was taken", p)
		}
	}
}

func TestAttach(t *testing.T) {
	const top = math.MaxUint32
	for _, c := range []struct {
		name          string
		order         int
		reqProd, rsp  Index
		wantErr       error
		wantAvailable uint32
	}{
		{name: "new ring"},
		{name: "live ring", reqProd: 1000, rsp: 990, wantAvailable: 10},
		{name: "full ring", reqProd: 32 + 77, rsp: 77, wantAvailable: 32},
		{name: "full ring of 16 pages across the wrap", order: 4, reqProd: 411, rsp: top - 100, wantAvailable: 512},
		{name: "one slot too many", reqProd: 33, wantErr: ErrOverrun},
		{name: "one slot too many in 16 pages", order: 4, reqProd: 412, rsp: top - 100, wantErr: ErrOverrun},
		{name: "req_prod behind rsp_prod", reqProd: 9, rsp: 10, wantErr: ErrOverrun},
		{name: "req_prod far away", reqProd: 1 << 31, wantErr: ErrOverrun},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := newMem(c.order)
			setWord(mem, wReqProd, uint32(c.reqProd))
			setWord(mem, wRspProd, uint32(c.rsp))
			b, err := AttachBack(mem, X8632)
			if !errors.Is(err, c.wantErr) {
				t.Fatalf("error %v, want %v", err, c.wantErr)
			}
			if err != nil {
				return
			}
			if n, err := b.Available(); err != nil || n != c.wantAvailable {
				t.Errorf("available = %d, %v, want %d", n, err, c.wantAvailable)
			}
			if b.ReqCons() != c.rsp || b.RspProd() != c.rsp {
				t.Errorf("starts at %d and %d, want %d", b.ReqCons(), b.RspProd(), c.rsp)
			}
		})
	}
}

// TestAvailable moves req_prod under a backend that has consumed 3 of 5 requests and
// answered 1 of them.
func TestAvailable(t *testing.T) {
	for _, start := range []Index{0, 1 << 31, math.MaxUint32, math.MaxUint32 - 2, math.MaxUint32 - 63} {
		for _, c := range []struct {
			name string
			prod uint32 // req_prod, from start
			want uint32
			err  error
		}{
			{name: "as it was", prod: 5, want: 2},
			{name: "full", prod: 1 + 64, want: 62},
			{name: "over", prod: 2 + 64, err: ErrOverrun},
			{name: "far over", prod: 1 << 31, err: ErrOverrun},
			{name: "taken back to what was consumed", prod: 3, want: 0},
			{name: "taken back behind what was consumed", prod: 2, err: ErrOverrun},
			{name: "taken back behind what was answered", prod: 0, err: ErrOverrun},
			{name: "taken back far", prod: 1<<32 - 300, err: ErrOverrun},
		} {
			f, b, mem := pair(t, X8664, 1, start)
			for range 5 {
				f.Put(&Request{})
			}
			f.Push()
			b.Consume(3)
			b.Commit([]Response{{}})
			setWord(mem, wReqProd, uint32(start.Add(c.prod)))
			got, err := b.Available()
			if !errors.Is(err, c.err) || got != c.want {
				t.Errorf("start %d, %s: available = %d, %v, want %d, %v", start, c.name, got, err, c.want, c.err)
			}
			if _, err := b.Arm(); !errors.Is(err, c.err) {
				t.Errorf("start %d, %s: arm: %v, want %v", start, c.name, err, c.err)
			}
		}
	}
}

func TestResponsesOutOfBounds(t *testing.T) {
	for _, c := range []struct {
		prod uint32 // rsp_prod, from start
		want uint32
		err  error
	}{
		{prod: 2, want: 0}, {prod: 3, want: 1}, {prod: 6, want: 4},
		{prod: 7, err: ErrRspOverrun}, {prod: 1, err: ErrRspOverrun}, {prod: 1 << 31, err: ErrRspOverrun},
	} {
		f, _, mem := pair(t, X8664, 0, math.MaxUint32-3)
		for range 6 {
			f.Put(&Request{})
		}
		f.Push()
		f.Put(&Request{}) // not pushed, so there can be no answer
		f.Take(2)
		setWord(mem, wRspProd, math.MaxUint32-3+c.prod)
		if got, err := f.Responses(); !errors.Is(err, c.err) || got != c.want {
			t.Errorf("rsp_prod %d ahead: %d, %v, want %d, %v", c.prod, got, err, c.want, c.err)
		}
	}
}

func TestState(t *testing.T) {
	f, b, mem := pair(t, X8664, 2, 10)
	for range 5 {
		f.Put(&Request{})
	}
	if f.Free() != 123 {
		t.Errorf("%d free, want 123", f.Free())
	}
	f.Push()
	b.Consume(4)
	b.Commit(make([]Response, 2))
	if _, err := b.Arm(); err != nil {
		t.Fatal(err)
	}
	f.Take(1)
	if _, err := f.Arm(); err != nil {
		t.Fatal(err)
	}
	want := RingState{ReqProd: 15, ReqEvent: 15, RspProd: 12, RspEvent: 12, Cons: 14}
	if diff := cmp.Diff(want, b.State()); diff != "" {
		t.Errorf("backend (-want +got):\n%s", diff)
	}
	want.Cons = 11
	if diff := cmp.Diff(want, f.State()); diff != "" {
		t.Errorf("frontend (-want +got):\n%s", diff)
	}
	before := bytes.Clone(mem)
	if f.Push() || b.Commit(nil) {
		t.Error("nothing was published, but it notifies")
	}
	if diff := cmp.Diff(before, mem); diff != "" {
		t.Errorf("ring after nothing (-want +got):\n%s", diff)
	}
	for i, want := range []uint32{15, 15, 12, 12} {
		if word(mem, i) != want {
			t.Errorf("word %d is %d, want %d", i, word(mem, i), want)
		}
	}
}

// TestNoAllocation: the calls of a data path do not allocate.
func TestNoAllocation(t *testing.T) {
	f, b, _ := pair(t, X8632, 4, 0)
	page := make([]byte, PageSize)
	raw := make([]RawSegment, SegmentsPerPage)
	for i := range raw {
		raw[i] = RawSegment{Gref: xen.Gref(i), Last: 7}
	}
	EncodeIndirect(page, raw)
	segs := make([]Segment, SegmentsPerPage)
	rsp := make([]Response, 1)
	limits := Limits{Sectors: 1 << 40, MaxSegments: 512, Discard: true}
	indirect := Request{Op: OpIndirect, NrSegments: 512}
	var slot Slot
	var req Request
	if n := testing.AllocsPerRun(100, func() {
		f.Put(&indirect)
		f.Push()
		if n, err := b.Available(); n != 1 || err != nil {
			t.Fatalf("available = %d, %v", n, err)
		}
		b.Copy(b.ReqCons(), &slot)
		b.Consume(1)
		slot.Decode(X8632, &req)
		reason := req.Check(&limits)
		_, direct := req.Direct(segs)
		decoded := DecodeIndirect(page, segs[:req.IndirectSegments(0)])
		_, placed := req.Place(&limits, segs)
		if reason|direct|decoded|placed != ReasonNone {
			t.Fatal(reason, direct, decoded, placed)
		}
		rsp[0] = req.Response(StatusOkay)
		b.Commit(rsp)
		if _, err := b.Arm(); err != nil {
			t.Fatal(err)
		}
		f.Take(1)
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// BenchmarkRequest measures a direct request of 11 segments and an indirect one of 256, from
// the ring to the last check.
func BenchmarkRequest(b *testing.B) {
	direct := requests()[0]
	direct.Sector = 0
	indirect := Request{Op: OpIndirect, NrSegments: 256}
	page := make([]byte, PageSize)
	for i := range 256 {
		putSegment(page[8*i:], RawSegment{Gref: xen.Gref(i), Last: 7})
	}
	segs := make([]Segment, 256)
	limits := Limits{Sectors: 1 << 40, MaxSegments: 256}
	for _, q := range []Request{direct, indirect} {
		b.Run(q.Op.String(), func(b *testing.B) {
			f, back, _ := pair(b, X8664, 0, 0)
			f.Put(&q)
			var slot Slot
			var req Request
			for b.Loop() {
				back.Copy(0, &slot)
				slot.Decode(X8664, &req)
				reason := req.Check(&limits)
				n, r := req.Direct(segs)
				reason |= r
				if req.Op == OpIndirect {
					n = req.IndirectSegments(0)
					reason |= DecodeIndirect(page, segs[:n])
				}
				_, r = req.Place(&limits, segs[:n])
				if reason|r != ReasonNone {
					b.Fatal(reason | r)
				}
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// fuzzLimits makes limits of any kind from two numbers.
func fuzzLimits(sectors uint64, kind uint16) Limits {
	return Limits{
		Sectors:     sectors % (1 << 54),
		BlockSize:   SectorSize << (kind % 4),
		MaxSegments: kind >> 3,
		ReadOnly:    kind&4 != 0,
		Discard:     kind&16 != 0,
		Secure:      kind&32 != 0,
	}
}

// checkAll runs all checks of a request, as a backend does, with the pages that are given.
func checkAll(r *Request, l *Limits, pages []byte) ([]Segment, Extent, Reason) {
	if reason := r.Check(l); reason != ReasonNone {
		return nil, Extent{}, reason
	}
	segs := make([]Segment, MaxIndirect)
	n, reason := r.Direct(segs)
	if reason != ReasonNone {
		return nil, Extent{}, reason
	}
	for i := range r.IndirectPages() {
		k := r.IndirectSegments(i)
		used := make([]byte, IndirectBytes(k)) // what a backend copies
		copy(used, pages[min(len(pages), i*PageSize):])
		if reason := DecodeIndirect(used, segs[n:n+k]); reason != ReasonNone {
			return nil, Extent{}, reason
		}
		n += k
	}
	e, reason := r.Place(l, segs[:n])
	return segs[:n], e, reason
}

// within fails unless what passed the checks keeps to the disk, to the pages and to the
// limits.
func within(t *testing.T, r *Request, l *Limits, segs []Segment, e Extent) {
	t.Helper()
	op := r.Operation()
	if op > OpDiscard || op == OpReserved || r.Op == OpIndirect && op > OpWrite {
		t.Fatalf("operation %v of %v passed", op, r.Op)
	}
	if l.ReadOnly && op != OpRead {
		t.Fatalf("%v passed on a read-only disk", op)
	}
	sum := int64(0)
	for _, s := range segs {
		if s.Len == 0 || int(s.Off)+int(s.Len) > PageSize || s.Off%SectorSize != 0 || s.Len%SectorSize != 0 {
			t.Fatalf("segment %+v passed", s)
		}
		sum += int64(s.Len)
	}
	limit := MaxDirect
	if r.Op == OpIndirect {
		limit = int(l.MaxSegments)
	}
	if len(segs) > limit || len(segs) > MaxIndirect {
		t.Fatalf("%d segments passed, the limit is %d", len(segs), limit)
	}
	if op == OpDiscard {
		if !l.Discard || len(segs) != 0 || e.Len == 0 || uint64(e.Len/SectorSize) != r.NrSectors {
			t.Fatalf("discard %+v with %d segments passed as %+v", r, len(segs), e)
		}
	} else if len(segs) != int(r.NrSegments) || e.Len != sum {
		t.Fatalf("%d of %d segments, %d of %d bytes", len(segs), r.NrSegments, e.Len, sum)
	}
	if e.Len == 0 && op != OpBarrier && op != OpFlush {
		t.Fatalf("an empty %v passed", op)
	}
	if e.Off < 0 || e.Len < 0 || e.End() < e.Off || uint64(e.End()) > l.Sectors*SectorSize {
		t.Fatalf("extent %+v passed on a disk of %d sectors", e, l.Sectors)
	}
	if b := int64(l.BlockSize); e.Off%b != 0 || e.Len%b != 0 {
		t.Fatalf("extent %+v passed with blocks of %d bytes", e, b)
	}
	if r.Secure(l) && (op != OpDiscard || !l.Secure) {
		t.Fatalf("%v is secure", op)
	}
}

// FuzzRequest: of any slot and indirect pages of a frontend, in each protocol, a request that
// passes the checks keeps within the disk, the pages and the limits. A slot goes through a
// ring as it is. Encoded again, a request is the same.
func FuzzRequest(f *testing.F) {
	page := make([]byte, PageSize)
	segs := make([]RawSegment, SegmentsPerPage)
	for i := range segs {
		segs[i].Last = 7
	}
	EncodeIndirect(page, segs)
	for _, r := range append(requests(), goldenRequest(OpRead), Request{Op: OpIndirect, NrSegments: 512}) {
		for _, p := range Protocols() {
			var s Slot
			r.Encode(p, &s)
			f.Add(s[:], page, uint8(p), uint64(1<<54-1), uint16(4096<<3|16|32))
			f.Add(s[:], page[:8], uint8(p), uint64(8), uint16(4|3))
		}
	}
	fuzzloop.Fuzz(f, func(t *testing.T, data, pages []byte, protocol uint8, sectors uint64, kind uint16) {
		p := Protocols()[protocol%3]
		l := fuzzLimits(sectors, kind)
		var s, again Slot
		copy(s[:p.SlotSize()], data)
		var r, back Request
		front, backend, _ := pair(t, p, int(kind)%(MaxOrder+1), Index(sectors))
		front.PutSlot(&s)
		backend.Copy(front.ReqProd()-1, &again)
		if again != s {
			t.Fatalf("the ring has %x, want %x", again, s)
		}
		s.Decode(p, &r)
		if s.ID(p) != r.ID || s.Op() != r.Op || r.Response(StatusOkay).ID != r.ID {
			t.Fatalf("id or op of the slot are not those of %+v", r)
		}
		r.Encode(p, &again)
		again.Decode(p, &back)
		if diff := cmp.Diff(r, back, ignoreBlank); diff != "" {
			t.Fatalf("request after encoding (-want +got):\n%s", diff)
		}
		segs, e, reason := checkAll(&r, &l, pages)
		if reason == ReasonNone {
			within(t, &r, &l, segs, e)
		} else if e != (Extent{}) || reason.Status() == StatusOkay || reason.Fatal() || int(reason) >= Reasons {
			t.Fatalf("refused with %v and extent %+v", reason, e)
		}
	})
}

// FuzzIndirect: the segments of an indirect page, as many as it has.
func FuzzIndirect(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 7, 0, 0, 9, 0, 0, 0x80, 3, 3, 0xff, 0xff}, uint16(2))
	f.Add([]byte{1, 0, 0, 0, 4, 3, 0, 0}, uint16(1))
	f.Add([]byte{1, 0, 0, 0, 0, 8, 0, 0}, uint16(512))
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, n uint16) {
		page := make([]byte, PageSize)
		copy(page, data)
		segs := make([]Segment, n%(SegmentsPerPage+1))
		reason := DecodeIndirect(page, segs)
		bad := false
		for i, s := range segs {
			b := page[8*i:]
			first, last := b[4], b[5]
			if last > 7 || first > last {
				bad = true
				break
			}
			if reason == ReasonNone && (uint32(s.Gref) != binary.LittleEndian.Uint32(b) ||
				int(s.Off) != int(first)*512 || int(s.Len) != (int(last)-int(first)+1)*512) {
				t.Fatalf("segment %d of %x is %+v", i, b[:8], s)
			}
		}
		if bad != (reason != ReasonNone) {
			t.Fatalf("bad is %v, the reason is %v", bad, reason)
		}
	})
}

// FuzzRing attaches a backend to memory that the fuzzer made and drains it, moving
// req_prod to later half way. Nothing may panic, and no more requests than a ring has may
// ever be found.
func FuzzRing(f *testing.F) {
	seed := func(reqProd, rspProd uint32) []byte {
		b := make([]byte, 64+112)
		setWord(b, wReqProd, reqProd)
		setWord(b, wRspProd, rspProd)
		setWord(b, wRspEvent, rspProd+1)
		r := goldenRequest(OpIndirect)
		r.Encode(X8664, (*Slot)(b[64:]))
		return b
	}
	for _, later := range []uint32{0, 3, 32, 33, 512, 1 << 31, math.MaxUint32} {
		f.Add(seed(3, 0), later, later, uint8(3))
		f.Add(seed(1, math.MaxUint32-1), later, uint32(math.MaxUint32), uint8(255))
	}
	f.Add([]byte{}, uint32(0), uint32(0), uint8(0))
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, later, cons uint32, step uint8) {
		p := Protocols()[step%3]
		mem := newMem(int(step/3) % (MaxOrder + 1))
		copy(mem, data)
		b, err := AttachBack(mem, p)
		if err != nil {
			if Index(word(mem, wReqProd)).Sub(Index(word(mem, wRspProd))) <= p.ringSize(len(mem)) {
				t.Fatalf("refused a ring within bounds: %v", err)
			}
			return
		}
		if b.Resume(Index(cons)) != nil {
			if _, err := b.Available(); err == nil {
				t.Fatal("a ring goes on at a req_cons that was refused")
			}
			return
		}
		drain(t, b, mem, step)
		setWord(mem, wReqProd, later)
		drain(t, b, mem, step)
		if more, err := b.Arm(); more && err == nil {
			t.Fatal("there is more after all was taken")
		}
	})
}

func drain(t *testing.T, b *Back, mem []byte, step uint8) {
	var rsp []Response
	for range 2 * b.Size() {
		n, err := b.Available()
		if err != nil || n == 0 {
			return
		}
		if n+b.InFlight() > b.Size() {
			t.Fatalf("%d available, %d in flight in a ring of %d", n, b.InFlight(), b.Size())
		}
		for range min(n, uint32(step)+1) {
			var s Slot
			var r Request
			b.Copy(b.ReqCons(), &s)
			s.Decode(b.Protocol(), &r)
			b.Consume(1)
			rsp = append(rsp, r.Response(StatusError))
		}
		k := min(len(rsp), int(step)%5+1) // some stay in flight
		before := b.RspProd()
		b.Commit(rsp[:k])
		rsp = rsp[k:]
		if b.RspProd().Sub(before) != uint32(k) || word(mem, wRspProd) != uint32(b.RspProd()) {
			t.Fatal("rsp_prod does not say what was answered")
		}
	}
	t.Fatal("a ring that does not change has no end")
}

// FuzzFront: a frontend whose backend writes anything finds no more responses than it has
// sent requests.
func FuzzFront(f *testing.F) {
	f.Add([]byte{}, uint32(1), uint8(3))
	f.Add([]byte{8: 2, 64: 1}, uint32(math.MaxUint32), uint8(32))
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, later uint32, sent uint8) {
		mem := newMem(0)
		front, err := InitFront(mem, Protocols()[sent%3])
		if err != nil {
			t.Fatal(err)
		}
		posted := uint32(sent) % 33
		for i := range posted {
			front.Put(&Request{ID: uint64(i)})
		}
		front.Push()
		copy(mem, data)
		for _, prod := range []uint32{word(mem, wRspProd), later} {
			setWord(mem, wRspProd, prod)
			n, err := front.Responses()
			if err != nil {
				continue
			}
			if n > posted {
				t.Fatalf("%d responses to %d requests", n, posted)
			}
			for range n {
				front.Response(front.RspCons())
				front.Take(1)
			}
			posted -= n
		}
	})
}

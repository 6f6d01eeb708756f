// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xen"
)

// ignoreBlank leaves out the fields that only pad a struct.
var ignoreBlank = cmp.FilterPath(func(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() == "_"
}, cmp.Ignore())

// TestSizes repeats what the compiler checks in sizes_unsafe.go. The numbers are those of
// Xen's blkif.h, compiled for each architecture.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		p              Protocol
		slot, response int
	}{
		{X8664, 112, 16},
		{X8632, 108, 12},
		{ARM, 112, 16},
	} {
		if got := c.p.SlotSize(); got != c.slot {
			t.Errorf("%v: a slot has %d bytes, want %d", c.p, got, c.slot)
		}
		if got := c.p.ResponseSize(); got != c.response {
			t.Errorf("%v: a response has %d bytes, want %d", c.p, got, c.response)
		}
		for order, want := range []uint32{32, 64, 128, 256, 512} {
			if got := c.p.ringSize(PageSize << order); got != want || RingSize(order) != want {
				t.Errorf("%v: a ring of order %d has %d slots, or %d, want %d", c.p, order, got, RingSize(order), want)
			}
		}
	}
	if got := reflect.TypeFor[RawSegment]().Size(); got != 8 {
		t.Errorf("a segment has %d bytes, want 8", got)
	}
	if MaxIndirect != 4096 || SegmentsPerPage != 512 {
		t.Errorf("%d segments, %d per page, want 4096 and 512", MaxIndirect, SegmentsPerPage)
	}
}

func TestIsBarrier(t *testing.T) {
	for r, want := range map[*Request]bool{
		{Op: OpBarrier}:                true,
		{Op: OpFlush}:                  false,
		{Op: OpFlush, NrSegments: 1}:   true,
		{Op: OpWrite, NrSegments: 1}:   false,
		{Op: OpDiscard, NrSegments: 1}: false,
	} {
		if r.IsBarrier() != want {
			t.Errorf("%v with %d segments is a barrier: %v", r.Op, r.NrSegments, !want)
		}
	}
}

func goldenRequest(op Op) Request {
	r := Request{Op: op, Handle: 0xca00, ID: 0x1122334455667788, Sector: 0x99aabbccddeeff01}
	switch op {
	case OpDiscard:
		r.Handle, r.Flag, r.NrSectors = 0, DiscardSecure, 0x0102030405060708
	case OpIndirect:
		r.Inner, r.NrSegments, r.Handle = OpWrite, 0x0fff, 0xca10
		r.Grefs = [MaxIndirectPages]xen.Gref{1, 2, 3, 4, 5, 6, 7, 0xfffffff8}
	default:
		r.NrSegments = 2
		r.Segs[0] = RawSegment{Gref: 0x80000001, First: 0, Last: 7}
		r.Segs[1] = RawSegment{Gref: 9, First: 2, Last: 3}
	}
	return r
}

// golden are the bytes of goldenRequest and of a response, as a C compiler for x86_64 and for
// i386 writes them with Xen's blkif.h. Zeros at the end are left out. Arm's compilers align
// as those of x86_64.
var golden = []struct {
	op         Op
	x64, x8632 string
}{
	{OpRead, "000200ca 00000000 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000",
		"000200ca 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000"},
	{OpWrite, "010200ca 00000000 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000",
		"010200ca 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000"},
	{OpBarrier, "020200ca 00000000 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000",
		"020200ca 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000"},
	{OpFlush, "030200ca 00000000 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000",
		"030200ca 8877665544332211 01ffeeddccbbaa99 0100008000070000 0900000002030000"},
	{OpDiscard, "05010000 00000000 8877665544332211 01ffeeddccbbaa99 0807060504030201",
		"05010000 8877665544332211 01ffeeddccbbaa99 0807060504030201"},
	{OpIndirect, "0601ff0f 00000000 8877665544332211 01ffeeddccbbaa99 10ca0000" +
		"01000000 02000000 03000000 04000000 05000000 06000000 07000000 f8ffffff",
		"0601ff0f 8877665544332211 01ffeeddccbbaa99 10ca0000" +
			"01000000 02000000 03000000 04000000 05000000 06000000 07000000 f8ffffff"},
}

func bytesOf(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenRequests holds both directions, and the slot in the ring, to these bytes.
func TestGoldenRequests(t *testing.T) {
	for _, c := range golden {
		for p, text := range map[Protocol]string{X8664: c.x64, ARM: c.x64, X8632: c.x8632} {
			t.Run(p.String()+"/"+c.op.String(), func(t *testing.T) {
				var want, got Slot
				copy(want[:], bytesOf(t, text))
				r := goldenRequest(c.op)
				r.Encode(p, &got)
				if diff := cmp.Diff(want[:], got[:]); diff != "" {
					t.Errorf("slot (-want +got):\n%s", diff)
				}
				var back Request
				want.Decode(p, &back)
				if diff := cmp.Diff(r, back, ignoreBlank); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
				f, b, mem := pair(t, p, 0, 31)
				f.Put(&r)
				at := 64 + 31*p.SlotSize()
				if diff := cmp.Diff(want[:p.SlotSize()], mem[at:at+p.SlotSize()]); diff != "" {
					t.Errorf("ring (-want +got):\n%s", diff)
				}
				got = Slot{1, 2, 3, 111: 4}
				b.Copy(31, &got)
				if got != want {
					t.Errorf("copy is %x, want %x", got, want)
				}
			})
		}
	}
}

// TestGoldenResponses: every byte of a response is written, and none after it.
func TestGoldenResponses(t *testing.T) {
	for p, text := range map[Protocol]string{
		X8664: "8877665544332211 0100feff00000000",
		ARM:   "8877665544332211 0100feff00000000",
		X8632: "8877665544332211 0100feff",
	} {
		f, b, mem := pair(t, p, 4, 511)
		dirt := Slot{}
		for i := range dirt {
			dirt[i] = 0xa5
		}
		f.PutSlot(&dirt)
		f.PutSlot(&dirt)
		f.Push()
		b.Consume(2)
		rsp := Response{ID: 0x1122334455667788, Op: OpWrite, Status: StatusNotSupported}
		b.Commit([]Response{rsp, rsp})
		want := append(bytesOf(t, text), dirt[:p.SlotSize()-p.ResponseSize()]...)
		for _, i := range []int{511, 0} {
			at := 64 + i*p.SlotSize()
			if diff := cmp.Diff(want, mem[at:at+p.SlotSize()]); diff != "" {
				t.Errorf("%v, slot %d (-want +got):\n%s", p, i, diff)
			}
		}
		if got := f.Response(511); got != rsp {
			t.Errorf("%v: the frontend reads %+v", p, got)
		}
	}
}

// TestGoldenIndirectPage holds the segments of an indirect page to their bytes.
func TestGoldenIndirectPage(t *testing.T) {
	page := make([]byte, PageSize)
	EncodeIndirect(page[PageSize-16:], []RawSegment{{Gref: 0x80000001, First: 0, Last: 7}, {Gref: 9, First: 2, Last: 3}})
	want := bytesOf(t, "0100008000070000 0900000002030000")
	if diff := cmp.Diff(want, page[PageSize-16:]); diff != "" {
		t.Errorf("page (-want +got):\n%s", diff)
	}
	segs := make([]Segment, 2)
	if r := DecodeIndirect(want, segs); r != ReasonNone {
		t.Fatal(r)
	}
	if diff := cmp.Diff([]Segment{{0x80000001, 0, 4096}, {9, 1024, 1024}}, segs); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	// The padding of a segment is not looked at.
	want[6], want[7] = 0xff, 0xff
	if r := DecodeIndirect(want, segs); r != ReasonNone {
		t.Error(r)
	}
}

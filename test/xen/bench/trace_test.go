// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// traceOf makes a trace of records without and with a time stamp.
func traceOf(records ...[]uint32) (b []byte) {
	for i, r := range records {
		head := r[0] | uint32(len(r)-1)<<28
		if i%2 == 1 {
			head |= recordCycles
		}
		b = binary.LittleEndian.AppendUint32(b, head)
		if i%2 == 1 {
			b = binary.LittleEndian.AppendUint64(b, 12345)
		}
		for _, w := range r[1:] {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
	}
	return b
}

func TestHypercallsOfATrace(t *testing.T) {
	const args = 0x1 << 20 // flags of the arguments that follow, above the number
	copy16 := []uint32{recordCall, callGrantTable | args, grantCopy, 16}
	for _, c := range []struct {
		what string
		in   []byte
		want hypercalls
		err  error
	}{
		{"nothing", nil, hypercalls{}, nil},
		{"two copies", traceOf(copy16, copy16), hypercalls{All: 2, CopyCalls: 2, CopyOps: 32}, nil},
		{"a copy within a multicall", traceOf([]uint32{recordSubcall, callGrantTable | args, grantCopy, 3}),
			hypercalls{All: 1, CopyCalls: 1, CopyOps: 3}, nil},
		{"a map", traceOf([]uint32{recordCall, callGrantTable | args, 0, 4}), hypercalls{All: 1, Maps: 4}, nil},
		{"an unmap", traceOf([]uint32{recordCall, callGrantTable | args, 1, 4}), hypercalls{All: 1, OtherOps: 4}, nil},
		{"an event", traceOf([]uint32{recordCall, callEvent}), hypercalls{All: 1, Events: 1}, nil},
		{"page faults and a change of processor", traceOf([]uint32{0x0020f104, 1, 2}, []uint32{0x0001f003, 0, 64}), hypercalls{}, nil},
		{"records lost", traceOf([]uint32{recordLost, 1, 2, 3, 4}), hypercalls{Lost: 1}, nil},
		{"a call without its number", traceOf([]uint32{recordCall}), hypercalls{}, nil},
		{"an end within a record", traceOf(copy16)[:12], hypercalls{}, errTraceShort},
		{"an end within a time stamp", traceOf([]uint32{recordCall, callEvent}, copy16)[:14], hypercalls{All: 1, Events: 1}, errTraceShort},
		{"an end within a word", []byte{1, 2}, hypercalls{}, errTraceShort},
	} {
		t.Run(c.what, func(t *testing.T) {
			got, err := parseTrace(c.in)
			if err != c.err {
				t.Errorf("error %v, want %v", err, c.err)
			}
			got.ByNumber = nil
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestHypercallsByNumber(t *testing.T) {
	got, err := parseTrace(traceOf([]uint32{recordCall, callEvent}, []uint32{recordSubcall, 3}, []uint32{recordCall, callEvent}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[uint32]uint64{callEvent: 2, 3: 1}, got.ByNumber); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add(traceOf([]uint32{recordCall, callGrantTable, grantCopy, 16}, []uint32{recordLost}))
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		h, err := parseTrace(b)
		if n := uint64(len(b) / 8); h.All > n {
			t.Errorf("%d calls of %d bytes, error %v", h.All, len(b), err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// frameOf returns a whole frame of that size.
func frameOf(size int) []byte {
	b := make([]byte, size)
	copy(b, dataHead(size))
	return b
}

func TestFramesAreWhatTheyClaim(t *testing.T) {
	for _, c := range []struct {
		what    string
		size    int
		meta    offload.TxMeta
		proto   uint8
		gsoSize uint16
	}{
		{"small", smallFrame, offload.TxMeta{CsumBlank: true}, 17, 0},
		{"MTU", mtuFrame, offload.TxMeta{CsumBlank: true}, 17, 0},
		{"GSO", gsoFrame, offload.TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: gsoSize}, 6, gsoSize},
	} {
		t.Run(c.what, func(t *testing.T) {
			b := frameOf(c.size)
			h, err := offload.Parse(b, len(b))
			if err != nil {
				t.Fatal(err)
			}
			plan, err := offload.PlanTx(c.meta, h, len(b))
			if err != nil {
				t.Fatal(err)
			}
			if h.Proto != c.proto || h.L4 != csumStart || plan.Header.GSOSize != c.gsoSize {
				t.Errorf("protocol %d at %d, segments of %d; want %d at %d, %d", h.Proto, h.L4, plan.Header.GSOSize, c.proto, csumStart, c.gsoSize)
			}
			if got := onesSum(b[etherLen:etherLen+20], 0); got != 0xffff {
				t.Errorf("sum of the IP header: %#x", got)
			}
			if _, _, _, ok := parseControl(b); ok {
				t.Error("taken for a control frame")
			}
		})
	}
}

func TestControlFrames(t *testing.T) {
	op, size, count, ok := parseControl(controlFrame(opSink, gsoFrame, 1<<40))
	if op != opSink || size != gsoFrame || count != 1<<40 || !ok {
		t.Errorf("got operation %d, size %d, count %d, %v", op, size, count, ok)
	}
	if _, _, _, ok := parseControl(controlFrame(opSink, 1, 1)[:controlLen-1]); ok {
		t.Error("a short one is taken")
	}
}

// TestWindowsFitTheRing: the ring of 256 slots holds the frames in flight: two windows,
// with an extra for each GSO frame.
func TestWindowsFitTheRing(t *testing.T) {
	for _, size := range []int{smallFrame, mtuFrame, gsoFrame} {
		slots := (size + 4095) / 4096
		if size == gsoFrame {
			slots++
		}
		if n := 2 * acksOf(size) * slots; n > 256 {
			t.Errorf("frames of %d bytes: %d slots", size, n)
		}
	}
	for _, it := range frameItems {
		if it.units(1) != it.count {
			t.Errorf("%s: %d units are rounded to %d", it.Name, it.count, it.units(1))
		}
	}
}

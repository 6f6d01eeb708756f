// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// TestHoldIsAQueue compares a hold with a slice that has a bound, filled and
// emptied as the rx pass does it: from empty, and emptied before it is filled
// again.
func TestHoldIsAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.SampledFrom([]int{0, 2 * holdBytes}).Draw(t, "room")
		h := hold{room: room}
		defer h.close()
		type packet struct {
			at    int
			frame []byte
			plan  offload.RxPlan
			since time.Time
		}
		var model []packet
		for range rapid.IntRange(1, 10).Draw(t, "rounds") {
			end := 0
			for range rapid.IntRange(0, 30).Draw(t, "packets") {
				n := rapid.OneOf(rapid.IntRange(14, 1514), rapid.IntRange(14, maxFrame)).Draw(t, "octets")
				p := packet{
					frame: bytes.Repeat([]byte{byte(n)}, n),
					plan:  offload.RxPlan{GSOSize: uint16(n)},
					since: time.Unix(int64(n), 0),
				}
				at := alignUp(end, headroom)
				if at/netif.PageSize != (at+n-1)/netif.PageSize {
					at = alignUp(end, netif.PageSize)
				}
				fits := at+n <= max(room, holdBytes)
				if (h.push(p.frame, &p.plan, p.since) == kept) != fits {
					t.Fatalf("%d octets at %d: taken %v", n, at, !fits)
				}
				if fits {
					end = at + n
					p.at = at
					model = append(model, p)
				}
			}
			for {
				left := 0
				if n := len(model); n > 0 {
					left = model[n-1].at + len(model[n-1].frame) - model[0].at
				}
				if h.len() != len(model) || h.empty() != (len(model) == 0) || h.bytes() != left {
					t.Fatalf("%d packets of %d octets, want %d of %d", h.len(), h.bytes(), len(model), left)
				}
				if len(model) == 0 {
					break
				}
				p := h.head()
				if p.at != model[0].at || !bytes.Equal(h.frame(p), model[0].frame) || p.plan != model[0].plan || p.since != model[0].since {
					t.Fatalf("head %+v, want %d octets, %+v", p, len(model[0].frame), model[0].plan)
				}
				if rapid.IntRange(0, 30).Draw(t, "clear") == 0 {
					h.clear()
					model = nil
					continue
				}
				h.pop()
				model = model[1:]
			}
		}
	})
	if most := max(holdFrames, rxReads) * maxFramePages * netif.PageSize; most > holdBytes {
		t.Error("the hold does not take what one read may bring")
	}
}

// TestHoldGivesBack what it needed once, when it is empty and not before, and goes
// on to work.
func TestHoldGivesBack(t *testing.T) {
	var h hold
	defer h.close()
	frame := bytes.Repeat([]byte{1}, maxFrame)
	for range 2 {
		for h.push(frame, &offload.RxPlan{}, time.Time{}) == kept {
		}
		h.trim()
		if h.mem.mem[holdBytes-netif.PageSize] != 1 {
			t.Fatal("what is held is gone")
		}
		for !h.empty() {
			h.pop()
		}
		if h.mem.mem[holdBytes-netif.PageSize] != 1 {
			t.Error("a packet is gone before it may have been copied")
		}
		h.trim()
		if h.mem.mem[keepBytes] != 0 || h.mem.mem[0] != 1 {
			t.Error("it keeps all its memory, or none")
		}
	}
}

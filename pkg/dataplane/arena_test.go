// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/netif"
)

// TestPlacesInTheArena: whatever a ring asks for fits, nothing overlaps or
// crosses a page end, every packet has its headroom and every large slot keeps
// its offset.
func TestPlacesInTheArena(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var place frameAlloc
		end := 0 // of what is taken
		take := func(what string, at, n, room int) {
			if at-room < end || at+n > txArenaBytes {
				t.Fatalf("%s: %d octets at %d, with %d before, after %d", what, n, at, room, end)
			}
			if n > 0 && at/netif.PageSize != (at+n-1)/netif.PageSize {
				t.Fatalf("%s: %d octets at %d cross a page end", what, n, at)
			}
			end = at + n
		}
		slots := netif.TxRingSize
		worst := rapid.Bool().Draw(t, "worst")
		for range batchPackets {
			if slots == 0 {
				break
			}
			n := min(rapid.IntRange(1, 19).Draw(t, "slots"), slots)
			slots -= n
			if n < 3 && rapid.Bool().Draw(t, "small") {
				size := rapid.IntRange(14, smallPacket).Draw(t, "size")
				take("small packet", place.packed(size), size, 12)
				continue
			}
			for k := range n {
				off := rapid.IntRange(0, netif.PageSize-14).Draw(t, "offset")
				size := rapid.IntRange(14, netif.PageSize-off).Draw(t, "size")
				if worst {
					off, size = 0, netif.PageSize
				}
				var at, room int
				if k == 0 {
					at, room = place.first(off, size), 12
				} else {
					at = place.later(off, size)
				}
				if at%netif.PageSize != off {
					t.Fatalf("slot at offset %d placed at %d", off, at)
				}
				take("slot", at, size, room)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/netif"
)

// TestPlacesInTheArena: the packets of any ring fit the arena, nothing overlaps or
// crosses a page end, every packet has its headroom and every large slot keeps its
// offset.
func TestPlacesInTheArena(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var place frameAlloc
		end := 0 // end of the allocated part
		take := func(what string, at, n, room int) {
			if at-room < end || at+n > txArenaBytes {
				t.Fatalf("%s: %d bytes at %d, with %d before, after %d", what, n, at, room, end)
			}
			if n > 0 && at/netif.PageSize != (at+n-1)/netif.PageSize {
				t.Fatalf("%s: %d bytes at %d cross a page end", what, n, at)
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

func TestPiecesThatLieSideBySideAreOne(t *testing.T) {
	const page = netif.PageSize
	mem, err := newArenaMem(2 * page)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.close()
	iov, err := iouring.NewIovecs(8)
	if err != nil {
		t.Fatal(err)
	}
	defer iov.Close()
	w := &worker{txMem: mem, uring: ringIO{iov: iov}}
	type slot struct {
		addr uintptr
		size uint16
	}
	far := mem.addr(0) + 1<<20
	for _, tt := range []struct {
		name   string
		linear int32 // at 64
		slots  []slot
		want   int
	}{
		{"pages in a row behind a head of its own", 300, []slot{{far, page}, {far + page, page}, {far + 2*page, 10}}, 2},
		{"pages in another order", 300, []slot{{far + page, page}, {far, page}, {far + 2*page, 10}}, 4},
		{"a hole between pages", 300, []slot{{far, page}, {far + 2*page, page}}, 3},
		{"a first page that is not full", 300, []slot{{far, page - 1}, {far + page, page}}, 3},
		{"first slots within the head", 300, []slot{{far, 100}, {far + page, 200}, {far + 2*page, page}, {far + 3*page, 1}}, 2},
		{"a slot of no size between", 300, []slot{{far, page}, {0, 0}, {far + page, page}}, 2},
		{"behind the head itself", 100, []slot{{mem.addr(64), 100}, {mem.addr(164), page}}, 1},
		{"behind the head itself, the rest elsewhere", 100, []slot{{mem.addr(64), 100}, {mem.addr(164), page}, {far, 1}}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := new(txBatch)
			p := &b.pkts[0]
			p.at, p.linear, p.n = 64, tt.linear, uint16(len(tt.slots))
			for i, s := range tt.slots {
				b.slot[i] = txSlot{addr: s.addr, size: s.size}
			}
			if n := w.pieces(b, p, 0, 12); n != tt.want {
				t.Errorf("%d pieces, want %d", n, tt.want)
			}
		})
	}
}

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

// TestBacklogIsAQueue compares a backlog with a bounded slice. It fills and empties both
// as the rx pass does: the backlog is filled only when it is empty.
func TestBacklogIsAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.SampledFrom([]int{0, 2 * backlogBytes}).Draw(t, "room")
		l := backlog{room: room}
		defer l.close()
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
				n := rapid.OneOf(rapid.IntRange(14, 1514), rapid.IntRange(14, maxFrame)).Draw(t, "bytes")
				p := packet{
					frame: bytes.Repeat([]byte{byte(n)}, n),
					plan:  offload.RxPlan{GSOSize: uint16(n)},
					since: time.Unix(int64(n), 0),
				}
				at := alignUp(end, headroom)
				if at/netif.PageSize != (at+n-1)/netif.PageSize {
					at = alignUp(end, netif.PageSize)
				}
				fits := at+n <= max(room, backlogBytes)
				if (l.push(p.frame, &p.plan, p.since) == notDropped) != fits {
					t.Fatalf("%d bytes at %d: taken %v", n, at, !fits)
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
				if l.len() != len(model) || l.empty() != (len(model) == 0) || l.bytes() != left {
					t.Fatalf("%d packets of %d bytes, want %d of %d", l.len(), l.bytes(), len(model), left)
				}
				if len(model) == 0 {
					break
				}
				p := l.head()
				if p.at != model[0].at || !bytes.Equal(l.frame(p), model[0].frame) || p.plan != model[0].plan || p.since != model[0].since {
					t.Fatalf("head %+v, want %d bytes, %+v", p, len(model[0].frame), model[0].plan)
				}
				if rapid.IntRange(0, 30).Draw(t, "clear") == 0 {
					l.clear()
					model = nil
					continue
				}
				l.pop()
				model = model[1:]
			}
		}
	})
	if most := max(backlogFrames, rxReads) * maxFramePages * netif.PageSize; most > backlogBytes {
		t.Error("the backlog does not take what one read may bring")
	}
}

// TestBacklogGivesBack: trim returns memory when the backlog is empty and not before, and
// the backlog still works afterwards.
func TestBacklogGivesBack(t *testing.T) {
	var l backlog
	defer l.close()
	frame := bytes.Repeat([]byte{1}, maxFrame)
	for range 2 {
		for l.push(frame, &offload.RxPlan{}, time.Time{}) == notDropped {
		}
		l.trim()
		if l.mem.mem[backlogBytes-netif.PageSize] != 1 {
			t.Fatal("what is held is gone")
		}
		for !l.empty() {
			l.pop()
		}
		if l.mem.mem[backlogBytes-netif.PageSize] != 1 {
			t.Error("a packet is gone before it may have been copied")
		}
		l.trim()
		if l.mem.mem[keepBytes] != 0 || l.mem.mem[0] != 1 {
			t.Error("it keeps all its memory, or none")
		}
	}
}

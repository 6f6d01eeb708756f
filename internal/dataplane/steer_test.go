// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// TestSteering: the host may put a packet on any TAP queue. The guest gets it on the queue
// of its hash, and the packets of a flow in order. Changes of the mapping lose none.
func TestSteering(t *testing.T) {
	const queues = 4
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, queues: queues})
		for i, f := range b.fronts {
			if i%2 == 0 {
				f.allStatic()
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			c := &steer.Config{Types: toeplitz.Types(rapid.Uint32Range(1, 15).Draw(t, "types")), Hasher: hasher(b.tb), Mapping: toeplitz.NewMapping(queues)}
			if n := rapid.Uint32Range(0, 8).Draw(t, "entries"); n > 0 {
				table := rapid.SliceOfN(rapid.Uint32Range(0, queues-1), int(n), int(n)).Draw(t, "table")
				if err := c.Mapping.SetSize(n); err != nil {
					t.Fatal(err)
				}
				if err := c.Mapping.Set(0, table); err != nil {
					t.Fatal(err)
				}
			}
			for _, q := range b.conn.queues {
				q.steer = c
			}
			for _, f := range b.fronts {
				f.post(int(f.rx.Free()))
			}
			var want [queues][][]byte
			for range rapid.IntRange(1, 24).Draw(t, "packets") {
				frame := packettest.Frame{Payload: packettest.Pattern(rapid.IntRange(18, 5000).Draw(t, "bytes"))}
				if rapid.Bool().Draw(t, "IPv6") {
					frame.IPv6 = &packettest.IPv6{}
				} else {
					frame.IPv4 = &packettest.IPv4{}
				}
				if port := rapid.Uint16Range(1, 50).Draw(t, "port"); rapid.Bool().Draw(t, "TCP") {
					frame.TCP = &packettest.TCP{SrcPort: port, Flags: packettest.ACK}
				} else {
					frame.UDP = &packettest.UDP{SrcPort: port}
				}
				raw := frame.Bytes()
				q := c.Choose(raw).Queue
				want[q] = append(want[q], raw)
				b.host.sendPlain(raw)
			}
			b.settle()
			for i, f := range b.fronts {
				got := framesOf(f.received())
				if len(got) != len(want[i]) {
					t.Fatalf("%d packets on queue %d, want %d", len(got), i, len(want[i]))
				}
				// The host spreads flows over TAP queues, so packets have an order
				// only within a flow.
				for _, w := range want[i] {
					n := len(got)
					for k := range got {
						if bytes.Equal(got[k], w) {
							got = append(got[:k:k], got[k+1:]...)
							break
						}
					}
					if len(got) == n {
						t.Fatalf("a packet of %d bytes is not on queue %d", len(w), i)
					}
				}
			}
		})
		for i, q := range b.conn.queues {
			n := q.stats.Snapshot()
			for c, info := range Counters {
				if info.Kind == Drop && n[c] != 0 {
					t.Errorf("queue %d: %s %d", i, info.Name, n[c])
				}
			}
		}
	})
}

// TestSteeredToAQueueWithoutSlots: a steered packet waits for slots of its queue like a
// packet that was read from that TAP queue.
func TestSteeredToAQueueWithoutSlots(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, queues: 2})
		b.settle()
		for _, q := range b.conn.queues {
			q.steer = table(t, 1)
		}
		// The host chooses the queue of the TAP.
		var want [][]byte
		for i := range 16 {
			f := packettest.Frame{
				IPv4:    &packettest.IPv4{},
				UDP:     &packettest.UDP{SrcPort: uint16(1000 + i)},
				Payload: packettest.Pattern(i),
			}
			want = append(want, f.Bytes())
			b.host.sendPlain(want[i])
			b.settle()
		}
		b.fronts[1].post(100)
		b.settle()
		got := framesOf(b.fronts[1].received())
		slices.SortFunc(want, bytes.Compare) // flows have no order
		slices.SortFunc(got, bytes.Compare)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		for i := range b.conn.queues {
			if n := b.conn.Stats(i).Load(DropRxStalled); n != 0 {
				t.Errorf("queue %d: %d packets dropped", i, n)
			}
		}
	})
}

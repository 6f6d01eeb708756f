// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netfront"
)

// TestFlowsMoveInOrder: while streams run to the guest, it repeatedly changes its table,
// its key and hashing. Flows move from queue to queue without reordering: packets that
// could overtake wait.
func TestFlowsMoveInOrder(t *testing.T) {
	for _, by := range []string{"kernel", "netbackd"} {
		t.Run("chosen in "+by, func(t *testing.T) {
			const queueCount, changes = 4, 10
			w := newWorld(t, map[string]string{"kernel": "--bpf=true", "netbackd": "--bpf=false"}[by])
			g := w.guest(queues(queueCount), withControl())
			for i := range changes {
				h := netfront.Hash{Types: 15, Key: slices.Clone(hashKey)}
				h.Key[i] ^= 0xff
				for k := range 8 + i {
					h.Mapping = append(h.Mapping, uint32((i+k)%queueCount))
				}
				switch {
				case i%5 == 4:
					h.Types = 0
				case i%3 == 1:
					h.Mapping = nil
				}
				back := g.streamed(8 << 20)
				w.must(g.SetHash(w.ctx, "", h))
				back()
			}
			moved, unordered := g.counter(dataplane.RxMoved), g.counter(dataplane.RxUnordered)
			t.Logf("%d packets had to wait", moved)
			if moved == 0 {
				t.Error("no packet had to wait for another")
			}
			if unordered != 0 {
				t.Errorf("%d packets may have overtaken others", unordered)
			}
			for i, q := range g.status().Queues {
				if q.Held != 0 {
					t.Errorf("queue %d: %d packets still wait", i, q.Held)
				}
			}
			g.innocent()
		})
	}
}

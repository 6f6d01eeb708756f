// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestHeldMemory: queues that are never idle do not hold more memory together than the
// guest's budget and one chunk each.
func TestHeldMemory(t *testing.T) {
	const limit, queues, slow = 2 << 20, 3, 4096 * 8
	const bound = limit + queues*(ownBytes+metaBytes)
	gate := make(chan struct{})
	g := NewGuest(limit)
	b := newBed(t, bedConfig{pages: 2048, sectors: 1 << 16, config: func(c *Config) { c.Guest = g },
		store: func() *powercut.Disk {
			d := powercut.New(1<<25, 1)
			d.Hook = func(o powercut.Op) powercut.Fault {
				if o.Off == slow*blkif.SectorSize {
					<-gate
				}
				return powercut.Fault{}
			}
			return d
		}()})
	front := []*bed{b}
	for i := 1; i < queues; i++ {
		other := *b
		ref := xen.Gref(200 + i)
		other.ring = b.guest.GrantRun(ref, 1, gntdev.ReadWrite)
		other.port = b.guest.Offer()
		other.newRing(blkif.X8664)
		b.cfg.Queues = append(b.cfg.Queues, QueueConfig{Refs: []xen.Gref{ref}, Port: other.port})
		front = append(front, &other)
	}
	b.connect()
	for i, f := range front {
		f.conn = b.conn
		if st := f.do(f.request(blkif.OpRead, 0, 0, 1000, i)); st != blkif.StatusOkay {
			t.Fatal(st)
		}
		f.put(f.request(blkif.OpRead, slow, i, 1, 0)) // stays under way, so the queue is not idle
		f.push()
	}
	for deadline := time.Now().Add(patience); ; {
		held := int64(0)
		for i, f := range front {
			f.do(f.request(blkif.OpRead, 0, i, 1, 0))
			held += b.conn.Status(i).Held
		}
		if held <= bound {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are held: want at most %d", held, bound)
		}
	}
	close(gate)
	for _, f := range front {
		f.take(1)
	}
	b.drain()
	b.disconnect()
	if n := g.held.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

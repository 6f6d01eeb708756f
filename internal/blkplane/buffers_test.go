// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestBuffers: blocks do not overlap, are aligned, and all memory is one again at the end.
func TestBuffers(t *testing.T) {
	b, err := newBuffers(4<<20, maxChunk)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	random := rand.New(rand.NewPCG(1, 1))
	held := map[int32]int{} // order by first page
	owner := make([]int32, len(b.state))
	for range 20000 {
		if random.IntN(2) == 0 {
			order := random.IntN(b.top + 1)
			p := b.alloc(order)
			if p == none {
				continue
			}
			if p&(1<<order-1) != 0 {
				t.Fatalf("block of order %d at page %d", order, p)
			}
			for i := p; i < p+1<<order; i++ {
				if owner[i] != 0 {
					t.Fatalf("page %d is in two blocks", i)
				}
				owner[i] = p + 1
			}
			held[p] = order
			continue
		}
		for p, order := range held {
			b.free(p)
			delete(held, p)
			for i := p; i < p+1<<order; i++ {
				owner[i] = 0
			}
			break
		}
	}
	for p := range held {
		b.free(p)
	}
	if b.used != 0 || !b.idle() {
		t.Errorf("%d bytes in use", b.used)
	}
	for range 4 << 20 / maxChunk {
		if b.alloc(b.top) == none {
			t.Fatal("the blocks were not merged")
		}
	}
}

// TestPersistentTable: the table finds exactly the pages that are in it, however grefs
// collide, and the list by use is complete.
func TestPersistentTable(t *testing.T) {
	b := newBed(t, bedConfig{pages: 4096, config: func(c *Config) { c.Persistent = true }})
	if err := b.tryConnect(); err != nil {
		t.Fatal(err)
	}
	q := b.conn.queues[0]
	p := q.persistent
	random := rand.New(rand.NewPCG(5, 5))
	model := map[xen.Gref]bool{}
	for range 8000 {
		ref := dataRef + xen.Gref(random.IntN(400)*9)
		at := p.table[p.find(ref)]
		switch {
		case random.IntN(6) > 0:
			segs := make([]blkif.Segment, 1+random.IntN(4))
			for i := range segs {
				segs[i].Gref = ref + xen.Gref(random.IntN(6)) // some twice
			}
			p.prepare(q, segs)
			for i := range segs {
				if p.index(q, segs[i].Gref) != none {
					model[segs[i].Gref] = true
				} else if len(model) < MaxPersistent-len(segs) {
					t.Fatalf("gref %d is not mapped", segs[i].Gref)
				}
			}
		case at != 0:
			g := p.pages[at-1].group
			for i := p.groups[g].first; i != none; i = p.pages[i].next {
				delete(model, p.pages[i].ref)
			}
			p.remove(q, g)
		case model[ref]:
			t.Fatalf("gref %d is lost", ref)
		}
	}
	n := 0
	for g := p.newest; g != none; g = p.groups[g].older {
		for i := p.groups[g].first; i != none; i = p.pages[i].next {
			if !model[p.pages[i].ref] || p.table[p.find(p.pages[i].ref)] != i+1 {
				t.Fatalf("gref %d is in the list", p.pages[i].ref)
			}
			n++
		}
	}
	if n != len(model) || n != p.count || b.guest.Usage().Pages != n+1 {
		t.Errorf("%d pages in the list, %d counted, want %d", n, p.count, len(model))
	}
	for range persistentIdle/sweepEvery + 1 {
		p.expire(q)
	}
	if p.count != 0 || b.guest.Usage().Pages != 1 {
		t.Errorf("%d pages stay mapped", p.count)
	}
}

// TestBudget: a share takes its own memory first and gives the budget's back first.
func TestBudget(t *testing.T) {
	g := NewGuest(2 * maxChunk)
	a, b := newShare(g), newShare(g)
	for range 3 {
		if !a.take(maxChunk) {
			t.Fatal("a has not its own chunk and the two of the budget")
		}
	}
	if a.take(4096) || !b.take(maxChunk) || b.take(4096) {
		t.Error("the budget is not kept")
	}
	a.give(maxChunk)
	if !b.take(maxChunk) || g.Used() != 2*maxChunk {
		t.Error("what a gave back is not b's to take")
	}
	a.give(2 * maxChunk)
	b.give(2 * maxChunk)
	if g.Used() != 0 || a.own != maxChunk || b.own != maxChunk {
		t.Errorf("used %d, own %d and %d", g.Used(), a.own, b.own)
	}
}

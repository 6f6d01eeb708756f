// SPDX-License-Identifier: Apache-2.0

package blkplane_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// TestRandomRequests makes random requests, good and bad, to each kind of disk.
func TestRandomRequests(t *testing.T) {
	for i, kind := range []blkcases.Disk{blkcases.Plain, blkcases.ReadOnly, blkcases.Blocks4K, blkcases.Bare, blkcases.Plain} {
		persist := i == 4
		protocol := blkif.Protocols()[i%3].String()
		t.Run(fmt.Sprintf("%v, persistent %v, %s", kind, persist, protocol), func(t *testing.T) {
			pool := blkplane.NewPool(blkplane.Options{NoUring: i == 1})
			g := newGuest(t, pool, 5, guestConfig{kind: kind, protocol: protocol, persist: persist, order: i})
			p := g.player(t, persist)
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 1))
			ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
			defer cancel()
			want := map[string]uint64{}
			for range 150 {
				c := blkcases.Random(rnd, p.World())
				if err := p.Play(ctx, &c); err != nil {
					t.Fatalf("seed %d: %s (%v): %v", seed, c.Name, c.Want.Error(), err)
				}
				if c.Want != blkif.ReasonNone {
					want[c.Want.String()]++
				}
			}
			if got := g.failures(); !maps.Equal(got, want) {
				t.Errorf("seed %d: failures %v, want %v", seed, got, want)
			}
			if !bytes.Equal(g.content(), p.Disk()) {
				t.Errorf("seed %d: the host's disk is not what the guest reads", seed)
			}
		})
	}
}

// TestRandomBatches makes random requests many at a time: each gets the status that it has
// alone, and no sector of the disk changes that none of them names.
func TestRandomBatches(t *testing.T) {
	for _, persist := range []bool{false, true} {
		t.Run(fmt.Sprintf("persistent %v", persist), func(t *testing.T) {
			pool := blkplane.NewPool(blkplane.Options{})
			n := newNeighbour(t, pool)
			g := newGuest(t, pool, 5, guestConfig{protocol: "x86_32-abi", persist: persist, order: 1})
			p := g.player(t, persist)
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 1))
			for batch := range 60 {
				if err := g.batch(t.Context(), rnd, p); err != nil {
					t.Fatalf("seed %d, batch %d: %v", seed, batch, err)
				}
			}
			n.moves(t)
		})
	}
}

// batch fills half of the ring with random requests. One of them at most is indirect, since
// all have the same indirect pages.
func (g *guest) batch(ctx context.Context, rnd *rand.Rand, p *blkcases.Player) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before := g.content()
	may := make([]bool, g.limits.Sectors) // change
	want := map[uint64]blkcases.Case{}
	var indirect func(*blkcases.World) blkcases.Shot
	for len(want) < g.queue.Size()/2 {
		c := blkcases.Random(rnd, p.World())
		shot := c.Make(p.World())
		if shot.Request.Op == blkif.OpIndirect {
			if indirect != nil {
				continue
			}
			indirect = c.Make
		}
		if (c.Want == blkif.ReasonNone || c.Want == blkif.ReasonGrant) && shot.Request.Operation() != blkif.OpRead {
			for k := range shot.Sectors() {
				may[shot.Request.Sector+k] = true
			}
		}
		var slot blkif.Slot
		shot.Request.Encode(g.queue.Protocol(), &slot)
		id, err := g.queue.PutSlot(slot, shot.Request.Operation(), 0)
		if err != nil {
			return err
		}
		want[id] = c
	}
	if indirect != nil {
		indirect(p.World()) // cases that were left out have written the pages, too
	}
	if err := g.queue.Push(); err != nil {
		return err
	}
	for range len(want) {
		a, err := await(ctx, g.queue)
		if err != nil {
			return err
		}
		if c := want[a.ID]; a.Status != c.Want.Status() {
			return fmt.Errorf("%s: %v, want %v: %w", c.Name, a.Status, c.Want.Status(), c.Want)
		}
	}
	if v := g.queue.Violations(); len(v) > 0 {
		return v[0]
	}
	for i, b := range g.content() {
		if b != before[i] && !may[i/blkif.SectorSize] {
			return fmt.Errorf("sector %d has changed", i/blkif.SectorSize)
		}
	}
	return nil
}

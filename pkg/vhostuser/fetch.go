// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
)

// fetchPages bounds the pages that an indirect table touches.
const fetchPages = 16*virtqueue.MaxPieces/pageSize + 1

// Fetcher reads indirect tables out of regions of KindGrantCopy with one grant copy each: a
// [virtqueue.Fetcher]. It belongs to the goroutine of one queue.
type Fetcher struct {
	table *Table
	arena *gntdev.Arena
	segs  [fetchPages]gntdev.Segment
}

var _ virtqueue.Fetcher = (*Fetcher)(nil)

// NewFetcher makes a fetcher for the regions of a table.
func NewFetcher(t *Table) (*Fetcher, error) {
	a, err := gntdev.NewArena(fetchPages * pageSize)
	if err != nil {
		return nil, err
	}
	return &Fetcher{table: t, arena: a}, nil
}

// SetTable changes the table, with that of the queue.
func (f *Fetcher) SetTable(t *Table) { f.table = t }

// Close frees the memory.
func (f *Fetcher) Close() error { return f.arena.Close() }

// Fetch copies len(dst) bytes, at most those of the longest table, at a guest address of r.
// It allocates nothing unless it fails.
func (f *Fetcher) Fetch(dst []byte, r virtqueue.Region, addr uint64) error {
	region := f.table.regions[r.Tag]
	if region.grants == nil {
		return ErrRegionGref
	}
	n := 0
	for done := 0; done < len(dst); n++ {
		at := addr + uint64(done)
		in := at & pageMask
		size := min(len(dst)-done, pageSize-int(in))
		// Each segment stays in one local page too, since gntdev splits copies there.
		f.segs[n].FromGuest(xen.Domid(region.Domid), Gref(at), uint16(in), f.arena.Bytes()[n*pageSize:][:size])
		done += size
	}
	if err := region.grants.Copy(f.segs[:n]); err != nil {
		return fmt.Errorf("vhostuser: indirect table: %w", err)
	}
	for i := range n {
		if err := f.segs[i].Status().Err(); err != nil {
			_, ref, _ := f.segs[i].Foreign()
			return fmt.Errorf("vhostuser: indirect table: gref %d: %w", ref, err)
		}
		dst = dst[copy(dst, f.arena.Bytes()[i*pageSize:][:f.segs[i].Len()]):]
	}
	return nil
}

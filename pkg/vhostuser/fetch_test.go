// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"bytes"
	"errors"
	"testing"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// TestFetch copies the longest table, which crosses pages.
func TestFetch(t *testing.T) {
	b, m := newXenBed(t)
	const first = 100
	pages := m.guest.GrantRun(first, 5, gntdev.ReadOnly)
	for i := range pages {
		pages[i] = byte(i / 7)
	}
	base := uint64(grantBit | first*pageSize)
	b.must(b.f.SetMemory([]Region{{Guest: base, Size: 8 * pageSize, Flags: RegionGrant | RegionNoAdvance, Domid: 5}}, []int{memfd(t, 1)}))
	f, err := NewFetcher(b.rec.memory())
	b.must(err)
	dst := make([]byte, 16*virtqueue.MaxPieces)
	region := virtqueue.Region{Addr: base, Size: 8 * pageSize}
	b.must(f.Fetch(dst, region, base+100))
	if !bytes.Equal(dst, pages[100:][:len(dst)]) {
		t.Error("other bytes")
	}
	if n := testing.AllocsPerRun(10, func() { _ = f.Fetch(dst, region, base+100) }); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
	if err := f.Fetch(dst[:32], region, base+5*pageSize-16); !errors.Is(err, gntdev.StatusBadGntref.Err()) {
		t.Errorf("a page that was not granted: %v", err)
	}
	f.SetTable(&Table{regions: []*mapped{{}}})
	if err := f.Fetch(dst, region, base); !errors.Is(err, ErrRegionGref) {
		t.Errorf("a region without grants: %v", err)
	}
	b.must(f.Close())
	b.stop()
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// ownPager is the device with which a worker of a test grants pages to itself.
type ownPager struct{ *xentest.Own }

func (p ownPager) AllocOwn(mem []byte) (*gntalloc.Pages, error) {
	return p.AllocAt(mem, xen.Dom0, true)
}

// startOwn opens the device for a test. It has as many pages as several workers want.
func startOwn(tb testing.TB) ownPager { return ownPager{xentest.StartOwn(tb, 1<<16)} }

func TestOwnSegmentsAreCounted(t *testing.T) {
	mem := make([]byte, 64)
	segs := make([]gntdev.Segment, 4)
	segs[0].FromGuest(1, 2, 3, mem)
	segs[1].FromGuestToOwn(1, 2, 3, 4, 5, 6)
	segs[2].ToGuest(1, 2, 3, mem)
	segs[3].ToGuestFromOwn(1, 2, 3, 4, 5, 6)
	if n := ownSegments(segs); n != 2 {
		t.Errorf("%d own segments, want 2", n)
	}
}

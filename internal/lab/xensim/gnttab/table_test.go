// SPDX-License-Identifier: Apache-2.0

package gnttab

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/netbackd/netbackd/pkg/xen"
)

func TestLayout(t *testing.T) {
	table := make(Table, FrameSize)
	if table.Len() != 512 {
		t.Errorf("%d references in a frame, want 512", table.Len())
	}
	want := Entry{Flags: 0x1112, Domid: 0x2122, Frame: 0x31323334}
	table.Set(3, want)
	b := table[3*8:]
	if got := binary.LittleEndian.Uint16(b[0:]); got != want.Flags {
		t.Errorf("flags at 0 are %#x, want %#x", got, want.Flags)
	}
	if got := xen.Domid(binary.LittleEndian.Uint16(b[2:])); got != want.Domid {
		t.Errorf("domid at 2 is %#x, want %#x", got, want.Domid)
	}
	if got := binary.LittleEndian.Uint32(b[4:]); got != want.Frame {
		t.Errorf("frame at 4 is %#x, want %#x", got, want.Frame)
	}
	if got := table.Entry(3); got != want {
		t.Errorf("read back %+v, want %+v", got, want)
	}
	if h := table.Head(3); h.Flags() != want.Flags || h.Domid() != want.Domid || h.With(1).Flags() != want.Flags|1 {
		t.Errorf("head is %#x", h)
	}
}

func TestRevokeLeavesWhatIsInUse(t *testing.T) {
	table := make(Table, FrameSize)
	for flags, want := range map[uint16]bool{
		PermitAccess:                     true,
		PermitAccess | ReadOnly:          true,
		PermitAccess | Reading:           false,
		PermitAccess | Writing:           false,
		PermitAccess | Reading | Writing: false,
	} {
		e := Entry{Flags: flags, Domid: 5, Frame: 6}
		table.Set(0, e)
		if got := table.Revoke(0); got != want {
			t.Errorf("flags %#x: revoked %v, want %v", flags, got, want)
		}
		if want {
			e.Flags = 0
		}
		if got := table.Entry(0); got != e {
			t.Errorf("flags %#x: entry is %+v afterwards, want %+v", flags, got, e)
		}
	}
}

// TestRevokeRacesUse: either the domain revokes the grant or the hypervisor uses it, never
// both.
func TestRevokeRacesUse(t *testing.T) {
	table := make(Table, FrameSize)
	for range 2000 {
		table.Set(0, Entry{Flags: PermitAccess})
		var used, revoked bool
		var wg sync.WaitGroup
		wg.Go(func() {
			h := table.Head(0)
			used = h.Flags() == PermitAccess && table.Swap(0, h, h.With(Reading))
		})
		wg.Go(func() { revoked = table.Revoke(0) })
		wg.Wait()
		if used == revoked {
			t.Fatalf("used %v, revoked %v", used, revoked)
		}
	}
}

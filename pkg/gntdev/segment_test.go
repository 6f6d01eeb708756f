// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
)

// side is a segment taken apart.
type side struct {
	Direction Direction
	Domid     xen.Domid
	Ref       xen.Gref
	Off       uint16
	Local     uintptr
	Len       int
	Status    Status
}

func takeApart(s *Segment) side {
	domid, ref, off := s.Foreign()
	return side{s.Direction(), domid, ref, off, s.Local(), s.Len(), s.Status()}
}

// TestSegmentWords pins where the kernel finds the two sides.
func TestSegmentWords(t *testing.T) {
	const foreign = 0x7fee_0fff_deadbeef // domid, offset, ref
	var s Segment
	s.fromGuest(0x7fee, 0xdeadbeef, 0xfff, 0x1000, 1)
	if s.source != foreign || s.dest != 0x1000 || s.flags != 1 || s.len != 1 {
		t.Errorf("from the guest: source %#x, dest %#x, flags %d, len %d", s.source, s.dest, s.flags, s.len)
	}
	s.toGuest(0x7fee, 0xdeadbeef, 0xfff, 0x1000, 1)
	if s.source != 0x1000 || s.dest != foreign || s.flags != 2 || s.len != 1 {
		t.Errorf("to the guest: source %#x, dest %#x, flags %d, len %d", s.source, s.dest, s.flags, s.len)
	}
}

// TestSegmentBytes pins the 24 bytes of each kind of copy, as uapi/xen/gntdev.h lays them
// out. The last two are padding there.
func TestSegmentBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(s *Segment)
		want string
	}{
		{"from the guest to an address", func(s *Segment) { s.fromGuest(0x1234, 0xa1b2c3d4, 0x0506, 0x7f00_1122_3344, 0x0708) },
			"d4c3b2a1 0605 3412  44332211007f0000  0807 0100 ffff 0100"},
		{"from an address to the guest", func(s *Segment) { s.toGuest(0x1234, 0xa1b2c3d4, 0x0506, 0x7f00_1122_3344, 0x0708) },
			"44332211007f0000  d4c3b2a1 0605 3412  0807 0200 ffff 0200"},
		{"from the guest to an own page", func(s *Segment) { s.FromGuestToOwn(0x1234, 0xa1b2c3d4, 0x0506, 0x11223344, 0x090a, 0x0708) },
			"d4c3b2a1 0605 3412  44332211 0a09 f07f  0807 0300 ffff 0100"},
		{"from an own page to the guest", func(s *Segment) { s.ToGuestFromOwn(0x1234, 0xa1b2c3d4, 0x0506, 0x11223344, 0x090a, 0x0708) },
			"44332211 0a09 f07f  d4c3b2a1 0605 3412  0807 0300 ffff 0200"},
	} {
		var s Segment
		c.fill(&s)
		if got, want := hex.EncodeToString(s.bytes()), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}
}

// TestSegmentToOwnPageKeepsWhatItWasGiven: a segment with grefs on both sides knows which
// one is the guest's, and a later use for an address leaves nothing of it.
func TestSegmentToOwnPageKeepsWhatItWasGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := rapid.SampledFrom([]Direction{GuestIsSource, GuestIsDest}).Draw(t, "direction")
		domid := xen.Domid(rapid.Uint16().Draw(t, "domid"))
		ref, own := xen.Gref(rapid.Uint32().Draw(t, "ref")), xen.Gref(rapid.Uint32().Draw(t, "own"))
		off, at := rapid.Uint16().Draw(t, "off"), rapid.Uint16().Draw(t, "at")
		n := rapid.Uint16().Draw(t, "len")
		var s Segment
		if dir == GuestIsSource {
			s.FromGuestToOwn(domid, ref, off, own, at, n)
		} else {
			s.ToGuestFromOwn(domid, ref, off, own, at, n)
		}
		want := side{Direction: dir, Domid: domid, Ref: ref, Off: off, Len: int(n), Status: StatusGeneralError}
		if diff := cmp.Diff(want, takeApart(&s)); diff != "" {
			t.Fatalf("segment (-want +got):\n%s", diff)
		}
		if gotRef, gotAt, ok := s.Own(); !ok || gotRef != own || gotAt != at {
			t.Fatalf("own side: gref %d at %d, %v; want %d at %d", gotRef, gotAt, ok, own, at)
		}
		good := int(off)+int(n) <= PageSize && int(at)+int(n) <= PageSize
		if err := Check([]Segment{s}); (err == nil) != good {
			t.Fatalf("Check: %v", err)
		}
		s.fromGuest(domid, ref, off, 4096, n)
		if _, _, ok := s.Own(); ok || s.Local() != 4096 {
			t.Fatal("a segment to an address still has an own page")
		}
	})
}

func TestSegmentKeepsWhatItWasGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := side{
			Direction: rapid.SampledFrom([]Direction{GuestIsSource, GuestIsDest}).Draw(t, "direction"),
			Domid:     xen.Domid(rapid.Uint16().Draw(t, "domid")),
			Ref:       xen.Gref(rapid.Uint32().Draw(t, "ref")),
			Off:       rapid.Uint16().Draw(t, "off"),
			Local:     uintptr(rapid.Uint64().Draw(t, "local")),
			Len:       int(rapid.Uint16().Draw(t, "len")),
			Status:    StatusGeneralError,
		}
		var s Segment
		fill := s.fromGuest
		if want.Direction == GuestIsDest {
			fill = s.toGuest
		}
		fill(want.Domid, want.Ref, want.Off, want.Local, uint16(want.Len))
		if diff := cmp.Diff(want, takeApart(&s)); diff != "" {
			t.Fatalf("segment (-want +got):\n%s", diff)
		}
		s.SetStatus(StatusOkay)
		want.Status = StatusOkay
		if diff := cmp.Diff(want, takeApart(&s)); diff != "" {
			t.Fatalf("after SetStatus (-want +got):\n%s", diff)
		}
	})
}

// FuzzCheck: what Check lets through is exactly what the kernel does not fail
// a whole batch for.
func FuzzCheck(f *testing.F) {
	f.Add(uint16(1), uint16(0), uint16(4096), uint64(4096))
	f.Add(uint16(2), uint16(1), uint16(4096), uint64(4096))
	f.Add(uint16(2), uint16(4096), uint16(0), uint64(1))
	f.Add(uint16(1), uint16(0xffff), uint16(0xffff), uint64(1))
	f.Add(uint16(1), uint16(0), uint16(1), uint64(0))
	f.Add(uint16(0), uint16(0), uint16(0), uint64(1))
	f.Add(uint16(3), uint16(0), uint16(0), uint64(1))
	f.Add(uint16(3), uint16(0), uint16(4096), uint64(0x7ff0_0000_00000009))
	f.Add(uint16(3), uint16(0), uint16(4096), uint64(0x7ff0_0001_00000009))
	f.Add(uint16(3), uint16(0), uint16(1), uint64(0x0000_0000_00000009))
	fuzzloop.Fuzz(f, func(t *testing.T, flags, off, n uint16, local uint64) {
		s := [2]Segment{}
		s[0].toGuest(1, 8, 0, 1, 1)
		s[1].fromGuest(7, 9, off, uintptr(local), n)
		if flags == uint16(GuestIsDest) {
			s[1].toGuest(7, 9, off, uintptr(local), n)
		}
		s[1].flags = flags
		good := (flags == 1 || flags == 2) && uint32(off)+uint32(n) <= PageSize && local != 0
		if flags == 3 { // local is a page of ours
			good = local>>48 == 0x7ff0 && uint32(off)+uint32(n) <= PageSize && uint32(uint16(local>>32))+uint32(n) <= PageSize
		}
		err := Check(s[:])
		if (err == nil) != good {
			t.Fatalf("Check: %v", err)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Index != 1 || !errors.Is(err, unix.EINVAL)) {
			t.Fatalf("Check: %#v", err)
		}
	})
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		s    Status
		want string
	}{
		{StatusOkay, "GNTST_okay"},
		{StatusGeneralError, "GNTST_general_error"},
		{StatusBadDomain, "GNTST_bad_domain"},
		{StatusBadGntref, "GNTST_bad_gntref"},
		{StatusBadHandle, "GNTST_bad_handle"},
		{StatusBadVirtAddr, "GNTST_bad_virt_addr"},
		{StatusBadDevAddr, "GNTST_bad_dev_addr"},
		{StatusNoDeviceSpace, "GNTST_no_device_space"},
		{StatusPermissionDenied, "GNTST_permission_denied"},
		{StatusBadPage, "GNTST_bad_page"},
		{StatusBadCopyArg, "GNTST_bad_copy_arg"},
		{StatusAddressTooBig, "GNTST_address_too_big"},
		{StatusEagain, "GNTST_eagain"},
		{StatusNoSpace, "GNTST_no_space"},
		{-14, "GNTST unknown(-14)"},
		{1, "GNTST unknown(1)"},
		{-32768, "GNTST unknown(-32768)"},
	} {
		if got := c.s.String(); got != c.want {
			t.Errorf("Status(%d) is %q, want %q", int16(c.s), got, c.want)
		}
		if got := c.s.Err(); (got == nil) != (c.s == 0) || got != nil && !errors.Is(got, c.s) {
			t.Errorf("Status(%d).Err() = %v", int16(c.s), got)
		}
	}
}

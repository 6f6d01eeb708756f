// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

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
	f.Fuzz(func(t *testing.T, flags, off, n uint16, local uint64) {
		s := [2]Segment{}
		s[0].toGuest(1, 8, 0, 1, 1)
		s[1].fromGuest(7, 9, off, uintptr(local), n)
		if flags == uint16(GuestIsDest) {
			s[1].toGuest(7, 9, off, uintptr(local), n)
		}
		s[1].flags = Direction(flags)
		good := (flags == 1 || flags == 2) && uint32(off)+uint32(n) <= PageSize && local != 0
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

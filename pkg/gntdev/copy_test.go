// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestCopyGivesEachSegmentItsStatus(t *testing.T) {
	f := newFake()
	f.bad = []xen.Gref{9}
	segs := make([]Segment, 3)
	segs[0].fromGuest(7, 8, 0, 1, PageSize)
	segs[1].toGuest(7, 9, PageSize, 1, 0)
	segs[2].fromGuest(6, 8, 1, 1, PageSize-1)
	if err := f.device().Copy(segs); err != nil {
		t.Fatal(err)
	}
	got := []Status{segs[0].Status(), segs[1].Status(), segs[2].Status()}
	if diff := cmp.Diff([]Status{StatusOkay, StatusBadGntref, StatusBadDomain}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	err := firstError(segs)
	if want := "gntdev: copy: domid 7 gref 9 (#1): GNTST_bad_gntref"; err == nil || err.Error() != want {
		t.Errorf("firstError: %v, want %s", err, want)
	}
	if !errors.Is(err, StatusBadGntref) {
		t.Errorf("%v is not GNTST_bad_gntref", err)
	}
	if err := firstError(segs[:1]); err != nil {
		t.Errorf("good segments: %v", err)
	}
}

func TestCopyOfNothingIsNoCall(t *testing.T) {
	f := newFake()
	d := f.device()
	for _, segs := range [][]Segment{nil, {}} {
		if err := d.Copy(segs); err != nil {
			t.Error(err)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("calls: %v", f.calls)
	}
}

func TestCopyRefusesWhatWouldFailTheBatch(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(s *Segment)
		want string
	}{
		{"one byte past the page", func(s *Segment) { s.fromGuest(7, 9, 1, 1, PageSize) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; offset 1 and length 4096 pass the end of the guest's page"},
		{"offset and length that wrap 16 bits", func(s *Segment) { s.toGuest(7, 9, 0xffff, 1, 0xffff) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; offset 65535 and length 65535 pass the end of the guest's page"},
		{"nothing, past the page", func(s *Segment) { s.toGuest(7, 9, PageSize+1, 1, 0) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; offset 4097 and length 0 pass the end of the guest's page"},
		{"no local memory", func(s *Segment) { s.toGuest(7, 9, 0, 0, 1) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; no local memory"},
		{"an own page, one byte past its end", func(s *Segment) { s.FromGuestToOwn(7, 9, 0, 8, 4095, 2) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; offset 4095 and length 2 pass the end of our page"},
		{"an own page, one byte past the guest's", func(s *Segment) { s.ToGuestFromOwn(7, 9, 4095, 8, 0, 2) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; offset 4095 and length 2 pass the end of the guest's page"},
		{"both pages of guests", func(s *Segment) { s.ToGuestFromOwn(7, 9, 0, 8, 0, 2); s.source = foreign(6, 8, 0) },
			"gntdev: copy: domid 7 gref 9 (#1): invalid argument; our side is a page of domain 6"},
		{"the zero segment", func(s *Segment) {},
			"gntdev: copy: domid 0 gref 0 (#1): invalid argument; flags 0x0: neither from the guest nor to it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			segs := make([]Segment, 3)
			segs[0].fromGuest(7, 8, 0, 1, 1)
			c.fill(&segs[1])
			segs[2].fromGuest(7, 8, 0, 1, 1)
			err := f.device().Copy(segs)
			if err == nil || err.Error() != c.want {
				t.Errorf("Copy: %v\nwant: %s", err, c.want)
			}
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("%v is not EINVAL", err)
			}
			if len(f.calls) != 0 {
				t.Errorf("calls: %v", f.calls)
			}
			if segs[0].Status() == StatusOkay {
				t.Error("a segment that was not copied reads as if it had been")
			}
		})
	}
}

func TestCopyFailedLeavesNoSuccess(t *testing.T) {
	f := newFake()
	f.copyErr = unix.EFAULT
	segs := make([]Segment, 2)
	segs[0].fromGuest(7, 8, 0, 1, 1)
	segs[1].fromGuest(7, 8, 0, 1, 1)
	err := f.device().Copy(segs)
	if !errors.Is(err, unix.EFAULT) {
		t.Errorf("Copy: %v, want EFAULT", err)
	}
	const want = "gntdev: copy: bad address; the local memory of a segment is not mapped, or not writable"
	if err.Error() != want {
		t.Errorf("Copy: %v\nwant: %s", err, want)
	}
	for i := range segs {
		if got := segs[i].Status(); got != StatusGeneralError {
			t.Errorf("segment %d reads %v", i, got)
		}
	}
}

func TestCopyAfterClose(t *testing.T) {
	f := newFake()
	d := f.device()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	segs := make([]Segment, 1)
	segs[0].fromGuest(7, 8, 0, 1, 1)
	err := d.Copy(segs)
	if !errors.Is(err, ErrClosed) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("Copy: %v, want ErrClosed", err)
	}
	if diff := cmp.Diff([]string{"close"}, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// TestCopyAllocatesNothing runs the real system call, on a file that has no
// such ioctl, and the way through a kernel that succeeds.
func TestCopyAllocatesNothing(t *testing.T) {
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	segs := filled(64)
	if n := testing.AllocsPerRun(100, func() {
		if err := (linux{}).grantCopy(fd, segs); err != unix.ENOTTY {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("the system call allocates %v times", n)
	}
	d := &Device{kernel: okay{}, fd: xendev.New(1 << 20)}
	if n := testing.AllocsPerRun(100, func() {
		if err := d.Copy(segs); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Copy allocates %v times", n)
	}
}

func BenchmarkCopy(b *testing.B) {
	d := &Device{kernel: okay{}, fd: xendev.New(1 << 20)}
	segs := filled(64)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Copy(segs); err != nil {
			b.Fatal(err)
		}
	}
}

// okay is a kernel that does nothing, well.
type okay struct{ *fake }

func (okay) grantCopy(int, []Segment) error { return nil }

func filled(n int) []Segment {
	segs := make([]Segment, n)
	for i := range segs {
		segs[i].fromGuest(7, xen.Gref(i), 0, 1, 1500)
	}
	return segs
}

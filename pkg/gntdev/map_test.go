// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMapAndUnmap(t *testing.T) {
	f := newFake()
	d := f.device()
	refs := []xen.Gref{8, 9}
	m, err := d.Map(7, refs, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	clear(refs) // the caller's to use again
	if len(m.Bytes()) != 2*PageSize {
		t.Errorf("%d bytes", len(m.Bytes()))
	}
	for range 2 {
		if err := m.Unmap(); err != nil {
			t.Error(err)
		}
	}
	if m.Bytes() != nil {
		t.Error("memory is left after Unmap")
	}
	want := []string{"copy 2", "map 7 [8 9]", "mmap 0x10000 8192 read-only", "munmap 8192", "unmap 0x10000 2"}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestMapCount(t *testing.T) {
	for _, n := range []int{0, MaxRefs + 1} {
		f := newFake()
		if _, err := f.device().Map(7, make([]xen.Gref, n), ReadOnly); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%d refs: %v, want EINVAL", n, err)
		}
		if len(f.calls) != 0 {
			t.Errorf("%d refs: calls: %v", n, f.calls)
		}
	}
	f := newFake()
	m, err := f.device().Map(7, make([]xen.Gref, MaxRefs), ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmap(); err != nil {
		t.Error(err)
	}
}

func TestMapFailureIsExplained(t *testing.T) {
	many := make([]xen.Gref, maxProbes+1)
	for i := range many {
		many[i] = xen.Gref(100 + i)
	}
	for _, c := range []struct {
		name   string
		change func(f *fake)
		domid  xen.Domid
		refs   []xen.Gref
		prot   Prot
		is     []error
		want   string
	}{
		{
			"one ref is bad", func(f *fake) { f.bad = []xen.Gref{9} }, 7, []xen.Gref{8, 9, 10}, ReadWrite,
			[]error{unix.EINVAL, StatusBadGntref},
			"gntdev: map: domid 7 gref 9 (#1): GNTST_bad_gntref: invalid argument",
		},
		{
			"one ref is granted read-only", func(f *fake) { f.ro = []xen.Gref{10} }, 7, []xen.Gref{8, 9, 10}, ReadWrite,
			[]error{unix.EINVAL, StatusPermissionDenied},
			"gntdev: map: domid 7 gref 10 (#2): GNTST_permission_denied: invalid argument; the guest granted this page read-only",
		},
		{
			"no such domain", func(f *fake) { f.bad = []xen.Gref{8} }, 30000, []xen.Gref{8}, ReadOnly,
			[]error{unix.EINVAL, StatusBadDomain},
			"gntdev: map: domid 30000 gref 8 (#0): GNTST_bad_domain: invalid argument",
		},
		{
			"the status cannot be had", func(f *fake) { f.bad = []xen.Gref{8}; f.copyErr = unix.ENOTTY }, 7, []xen.Gref{8}, ReadOnly,
			[]error{unix.EINVAL},
			"gntdev: map: domid 7 gref 8 (#0): invalid argument",
		},
		{
			"the bad ref is beyond the probes", func(f *fake) { f.bad = many[maxProbes:] }, 7, many, ReadOnly,
			[]error{unix.EINVAL},
			"gntdev: map: domid 7: invalid argument",
		},
		{
			"too many for the kernel", func(f *fake) { f.mapErr = unix.EINVAL }, 7, many, ReadOnly,
			[]error{unix.EINVAL},
			"gntdev: map: domid 7: invalid argument; 17 refs are more than xen_gntdev.limit allows",
		},
		{
			"no pages in the kernel", func(f *fake) { f.mapErr = unix.ENOMEM }, 7, []xen.Gref{8}, ReadOnly,
			[]error{unix.ENOMEM},
			"gntdev: map: domid 7: cannot allocate memory; the kernel has no pages to map them at: " +
				"the domain is short of memory, or of ballooned-out pages",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			c.change(f)
			m, err := f.device().Map(c.domid, c.refs, c.prot)
			if m != nil || err == nil || err.Error() != c.want {
				t.Errorf("Map: %v\nwant: %s", err, c.want)
			}
			for _, is := range c.is {
				if !errors.Is(err, is) {
					t.Errorf("%v is not %v", err, is)
				}
			}
			if len(f.records) != 0 || f.mapped != 0 {
				t.Errorf("left behind: %d records, %d mappings", len(f.records), f.mapped)
			}
		})
	}
}

// TestMapTogetherOnly: all fails where each ref alone works.
func TestMapTogetherOnly(t *testing.T) {
	f := &lateFake{fake: newFake()}
	d := &Device{kernel: f, fd: xendev.New(1 << 20)}
	_, err := d.Map(7, []xen.Gref{8, 9}, ReadWrite)
	const want = "gntdev: map: domid 7: cannot allocate memory; each ref maps alone: " +
		"the hypervisor may be out of grant handles (gnttab_max_maptrack_frames=)"
	if err == nil || err.Error() != want {
		t.Errorf("Map: %v\nwant: %s", err, want)
	}
	if len(f.records) != 0 || f.mapped != 0 {
		t.Errorf("left behind: %d records, %d mappings", len(f.records), f.mapped)
	}
}

// lateFake has room for one page at a time.
type lateFake struct{ *fake }

func (f *lateFake) mmap(fd int, index uint64, length int, prot Prot) ([]byte, error) {
	if length > PageSize {
		return nil, unix.ENOMEM
	}
	return f.fake.mmap(fd, index, length, prot)
}

func TestUnmapAfterClose(t *testing.T) {
	f := newFake()
	d := f.device()
	m, err := d.Map(7, []xen.Gref{8}, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	f.calls = nil
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmap(); err != nil {
		t.Error(err)
	}
	// The descriptor's number may be another file's by now: no ioctl.
	if diff := cmp.Diff([]string{"close", "munmap 4096"}, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, err := d.Map(7, []xen.Gref{8}, ReadWrite); !errors.Is(err, ErrClosed) {
		t.Errorf("Map: %v, want ErrClosed", err)
	}
}

func TestUnmapFailureFreesTheRecord(t *testing.T) {
	f := newFake()
	m, err := f.device().Map(7, []xen.Gref{8}, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	f.munmapErr = unix.EINVAL
	if err := m.Unmap(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Unmap: %v, want EINVAL", err)
	}
	if len(f.records) != 0 {
		t.Error("the record is left")
	}
	if err := m.Unmap(); err != nil {
		t.Errorf("the second Unmap: %v", err)
	}
}

func TestNewMapping(t *testing.T) {
	n := 0
	m := NewMapping(make([]byte, PageSize), func() error { n++; return unix.EIO })
	if err := m.Unmap(); err != unix.EIO {
		t.Errorf("Unmap: %v, want EIO", err)
	}
	if err := m.Unmap(); err != nil || n != 1 {
		t.Errorf("the second Unmap: %v, after %d calls", err, n)
	}
}

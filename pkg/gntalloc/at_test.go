// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// place returns n pages of anonymous memory.
func place(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

func TestAllocAtAndFree(t *testing.T) {
	f := &fake{}
	mem := place(t, 3)
	p, err := f.device().AllocAt(mem[:2*PageSize], 3, true)
	if err != nil {
		t.Fatal(err)
	}
	if b := p.Bytes(); len(b) != 2*PageSize || &b[0] != &mem[0] {
		t.Errorf("%d bytes, not those of the place", len(b))
	}
	if diff := cmp.Diff([]xen.Gref{8, 9}, p.Refs()); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := p.Free(); err != nil {
			t.Error(err)
		}
	}
	want := []string{"alloc 3 2 true", "mmap 0x5000 8192", "move 8192 to 8192", "clear 8192", "dealloc 0x5000 2"}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestAllocAtPlace(t *testing.T) {
	mem := place(t, 2)
	for name, at := range map[string][]byte{
		"none":                  nil,
		"empty":                 mem[:0],
		"less than a page":      mem[:PageSize-1],
		"more than a page":      mem[:PageSize+1],
		"not at a page's start": mem[1 : PageSize+1],
	} {
		f := &fake{}
		if _, err := f.device().AllocAt(at, 7, true); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", name, err)
		}
		if len(f.calls) != 0 {
			t.Errorf("%s: calls: %v", name, f.calls)
		}
	}
}

func TestAllocAtFailure(t *testing.T) {
	mem := place(t, 2)
	for _, c := range []struct {
		name  string
		f     fake
		want  string
		errs  []error
		calls []string
	}{
		{"limit reached", fake{allocErr: unix.ENOSPC},
			"gntalloc: alloc: 2 pages for domid 7: no space left on device; " +
				"raise this domain's limit in /sys/module/xen_gntalloc/parameters/limit " +
				"(1024 pages by default, for all users of the device together); " +
				"if it is high enough, this domain's grant table is full (gnttab_max_frames=)",
			[]error{unix.ENOSPC}, []string{"alloc 7 2 true"}},
		{"not mapped", fake{mmapErr: unix.ENOMEM},
			"gntalloc: alloc: 2 pages for domid 7: cannot allocate memory",
			[]error{unix.ENOMEM}, []string{"alloc 7 2 true", "mmap 0x5000 8192", "dealloc 0x5000 2"}},
		{"not moved", fake{moveErr: unix.ENOMEM},
			"gntalloc: alloc: 2 pages for domid 7: cannot allocate memory",
			[]error{unix.ENOMEM}, []string{"alloc 7 2 true", "mmap 0x5000 8192", "move 8192 to 8192", "munmap 8192", "refill 8192", "dealloc 0x5000 2"}},
		{"not moved, place lost", fake{moveErr: unix.EINVAL, refillErr: unix.ENOMEM},
			"gntalloc: alloc: 2 pages for domid 7: the memory at the place is lost: cannot allocate memory: invalid argument",
			[]error{unix.EINVAL, unix.ENOMEM, ErrLost},
			[]string{"alloc 7 2 true", "mmap 0x5000 8192", "move 8192 to 8192", "munmap 8192", "refill 8192", "dealloc 0x5000 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &c.f
			_, err := f.device().AllocAt(mem, 7, true)
			if err == nil || err.Error() != c.want {
				t.Errorf("AllocAt: %v\nwant: %s", err, c.want)
			}
			for _, want := range c.errs {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}
			if errors.Is(err, ErrLost) != (f.refillErr != nil) {
				t.Errorf("%v: lost or not", err)
			}
			if diff := cmp.Diff(c.calls, f.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFreeOfAPlaceAfterClose(t *testing.T) {
	f := &fake{clearErr: unix.ENOMEM}
	d := f.device()
	p, err := d.AllocAt(place(t, 1), 7, false)
	if err != nil {
		t.Fatal(err)
	}
	f.calls = nil
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Free(); err == nil || err.Error() != "gntalloc: free: 1 pages: cannot allocate memory" {
		t.Errorf("Free: %v", err)
	}
	if diff := cmp.Diff([]string{"close", "clear 4096"}, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, err := d.AllocAt(place(t, 1), 7, false); !errors.Is(err, ErrClosed) {
		t.Errorf("AllocAt: %v, want ErrClosed", err)
	}
}

// TestPlaceIsReplaced makes the system calls on a file in memory: it takes the place of
// the memory and leaves the pages beside it alone.
func TestPlaceIsReplaced(t *testing.T) {
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte{5}, 4*PageSize); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 5*PageSize); err != nil {
		t.Fatal(err)
	}
	mem := place(t, 3)
	for i := range 3 {
		mem[i*PageSize] = byte(i + 1)
	}
	at := mem[PageSize : 2*PageSize]
	pages, err := (linux{}).mmap(fd, 4*PageSize, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := (linux{}).move(pages, at); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]byte{1, 5, 3}, []byte{mem[0], at[0], mem[2*PageSize]}); diff != "" {
		t.Errorf("with pages of the device (-want +got):\n%s", diff)
	}
	if err := (linux{}).refill(at); err != nil || at[0] != 5 {
		t.Errorf("refill of a place that is mapped: %v", err)
	}
	if err := (linux{}).clear(at); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]byte{1, 0, 3}, []byte{mem[0], at[0], mem[2*PageSize]}); diff != "" {
		t.Errorf("cleared (-want +got):\n%s", diff)
	}
	// A file that cannot be mapped.
	none, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(none)
	if _, err := (linux{}).mmap(none, 0, PageSize); err != unix.ENODEV {
		t.Errorf("mmap of a file without: %v, want ENODEV", err)
	}
	if err := (linux{}).refill(at); err != nil {
		t.Error(err)
	}
	at[0] = 7
	if err := unix.MunmapPtr(pointer(at), PageSize); err != nil {
		t.Fatal(err)
	}
	if err := (linux{}).refill(at); err != nil || at[0] != 0 {
		t.Errorf("refill of a hole: %v", err)
	}
}

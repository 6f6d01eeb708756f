// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// fake is a kernel that writes down every call. It stands below the Device, whose double
// is [xentest.Gntalloc]: the tests here are of the system calls that the Device makes.
type fake struct {
	calls                                                                 []string
	allocErr, deallocErr, mmapErr, moveErr, clearErr, refillErr, closeErr error
}

var _ kernel = (*fake)(nil)

func (f *fake) device() *Device { return &Device{kernel: f, fd: xendev.New(1 << 20)} }

func (f *fake) log(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) allocGref(_ int, domid xen.Domid, n int, writable bool) (uint64, []xen.Gref, error) {
	f.log("alloc %d %d %v", domid, n, writable)
	if f.allocErr != nil {
		return 0, nil, f.allocErr
	}
	refs := make([]xen.Gref, n)
	for i := range refs {
		refs[i] = xen.Gref(8 + i)
	}
	return 0x5000, refs, nil
}

func (f *fake) deallocGref(_ int, index uint64, n int) error {
	f.log("dealloc %#x %d", index, n)
	return f.deallocErr
}

func (f *fake) mmap(_ int, index uint64, length int) ([]byte, error) {
	f.log("mmap %#x %d", index, length)
	if f.mmapErr != nil {
		return nil, f.mmapErr
	}
	return make([]byte, length), nil
}

func (f *fake) munmap(mem []byte) error {
	f.log("munmap %d", len(mem))
	return nil
}

func (f *fake) move(pages, mem []byte) error {
	f.log("move %d to %d", len(pages), len(mem))
	return f.moveErr
}

func (f *fake) clear(mem []byte) error {
	f.log("clear %d", len(mem))
	return f.clearErr
}

func (f *fake) refill(mem []byte) error {
	f.log("refill %d", len(mem))
	return f.refillErr
}

func (f *fake) close(int) error {
	f.log("close")
	return f.closeErr
}

func TestAllocAndFree(t *testing.T) {
	f := &fake{}
	p, err := f.device().Alloc(7, 3, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Bytes()) != 3*PageSize {
		t.Errorf("%d bytes", len(p.Bytes()))
	}
	if diff := cmp.Diff([]xen.Gref{8, 9, 10}, p.Refs()); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := p.Free(); err != nil {
			t.Error(err)
		}
	}
	if p.Bytes() != nil {
		t.Error("memory is left after Free")
	}
	want := []string{"alloc 7 3 true", "mmap 0x5000 12288", "munmap 12288", "dealloc 0x5000 3"}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestAllocCount(t *testing.T) {
	for _, n := range []int{-1, 0, MaxPages + 1} {
		f := &fake{}
		if _, err := f.device().Alloc(7, n, false); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%d pages: %v, want EINVAL", n, err)
		}
		if len(f.calls) != 0 {
			t.Errorf("%d pages: calls: %v", n, f.calls)
		}
	}
}

func TestAllocFailure(t *testing.T) {
	f := &fake{allocErr: unix.ENOSPC}
	_, err := f.device().Alloc(7, 300, true)
	const want = "gntalloc: alloc: 300 pages for domid 7: no space left on device; " +
		"raise this domain's limit in /sys/module/xen_gntalloc/parameters/limit " +
		"(1024 pages by default, for all users of the device together); " +
		"if it is high enough, this domain's grant table is full (gnttab_max_frames=)"
	if err == nil || err.Error() != want {
		t.Errorf("Alloc: %v\nwant: %s", err, want)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v is not ENOSPC", err)
	}

	f = &fake{mmapErr: unix.ENOMEM}
	if _, err := f.device().Alloc(7, 2, false); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("Alloc: %v, want ENOMEM", err)
	}
	// No page may stay granted that the program cannot reach.
	wantCalls := []string{"alloc 7 2 false", "mmap 0x5000 8192", "dealloc 0x5000 2"}
	if diff := cmp.Diff(wantCalls, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestFreeAfterClose(t *testing.T) {
	f := &fake{}
	d := f.device()
	p, err := d.Alloc(7, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	f.calls = nil
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Free(); err != nil {
		t.Error(err)
	}
	// The descriptor's number may be another file's by now: no ioctl.
	if diff := cmp.Diff([]string{"close", "munmap 4096"}, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, err := d.Alloc(7, 1, false); !errors.Is(err, ErrClosed) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("Alloc: %v, want ErrClosed", err)
	}
}

func TestFailuresAreReported(t *testing.T) {
	f := &fake{deallocErr: unix.EINVAL, closeErr: unix.EIO}
	d := f.device()
	p, err := d.Alloc(7, 2, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Free(); err == nil || err.Error() != "gntalloc: free: 2 pages: invalid argument" {
		t.Errorf("Free: %v", err)
	}
	if err := d.Close(); err == nil || err.Error() != "gntalloc: close: input/output error" {
		t.Errorf("Close: %v", err)
	}
}

func TestNewPages(t *testing.T) {
	n := 0
	p := NewPages(make([]byte, PageSize), []xen.Gref{8}, func() error { n++; return unix.EIO })
	if err := p.Free(); err != unix.EIO {
		t.Errorf("Free: %v, want EIO", err)
	}
	if err := p.Free(); err != nil || n != 1 {
		t.Errorf("the second Free: %v, after %d calls", err, n)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gntalloc")
	_, err := Open(path)
	if !errors.Is(err, unix.ENOENT) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want ENOENT", err)
	}
	want := "gntalloc: open: " + path + ": no such file or directory; " +
		"load the module (modprobe xen-gntalloc); if that fails, this machine is not a Xen domain"
	if err.Error() != want {
		t.Errorf("Open: %v\nwant: %s", err, want)
	}
}

func TestOpenAndClose(t *testing.T) {
	// Any file will do as long as nothing is asked of it.
	d, err := Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Alloc(7, 1, true); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Alloc: %v, want ENOTTY", err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

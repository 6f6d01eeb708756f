// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// DefaultPath is the path of the device.
const DefaultPath = "/dev/xen/gntalloc"

// PageSize is the size of a granted page. Grants are 4 KiB on every
// architecture. The page size of the kernel does not matter.
const PageSize = 4096

// MaxPages is the largest number of pages of one Alloc. The kernel's own limit is
// xen_gntalloc.limit, for all users of the device together, 1024 by default.
const MaxPages = 64 * 1024

// Device is an open grant allocation device. Its methods may be called from
// several goroutines at once.
type Device struct {
	kernel kernel

	fd *xendev.FD
}

// Open opens the device at path, normally [DefaultPath].
func Open(path string) (*Device, error) {
	if n := os.Getpagesize(); n != PageSize {
		return nil, &Error{Op: "open", Err: unix.ENOTSUP,
			Hint: fmt.Sprintf("this kernel's pages are %d bytes: boot one with pages of 4 KiB", n)}
	}
	fd, err := xendev.Open(path, 0)
	if err != nil {
		return nil, &Error{Op: "open", Err: fmt.Errorf("%s: %w", path, err), Hint: xendev.OpenHint("xen-gntalloc", err)}
	}
	return &Device{kernel: linux{}, fd: fd}, nil
}

// Close closes the device. Pages stay granted until their Free. Close may be
// called again, which does nothing.
func (d *Device) Close() error {
	if err := d.fd.Close(d.kernel.close); err != nil {
		return &Error{Op: "close", Err: err}
	}
	return nil
}

// Alloc makes n zeroed pages, maps them and grants domid read access to them, and
// write access if writable.
func (d *Device) Alloc(domid xen.Domid, n int, writable bool) (*Pages, error) {
	if n < 1 || n > MaxPages {
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: unix.EINVAL,
			Hint: fmt.Sprintf("from 1 to %d pages can be allocated at once", MaxPages)}
	}
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd < 0 {
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: ErrClosed}
	}
	index, refs, err := d.kernel.allocGref(fd, domid, n, writable)
	if err != nil {
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: err, Hint: allocHint(err)}
	}
	mem, err := d.kernel.mmap(fd, index, n*PageSize)
	if err != nil {
		// The mmap error is the one to report; the grants must not outlive it.
		_ = d.kernel.deallocGref(fd, index, n)
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: err}
	}
	return NewPages(mem, refs, func() error { return d.free(index, n, mem) }), nil
}

// free implements Pages.Free. If the device was closed, unmapping the memory ends the
// grants.
func (d *Device) free(index uint64, n int, mem []byte) error {
	err := d.kernel.munmap(mem)
	fd := d.fd.Hold()
	defer d.fd.Release()
	if fd >= 0 {
		if e := d.kernel.deallocGref(fd, index, n); err == nil {
			err = e
		}
	}
	if err != nil {
		return &Error{Op: "free", Pages: n, Err: err}
	}
	return nil
}

// kernel makes the device's system calls. Tests replace it.
type kernel interface {
	allocGref(fd int, domid xen.Domid, n int, writable bool) (index uint64, refs []xen.Gref, err error)
	deallocGref(fd int, index uint64, n int) error
	mmap(fd int, index uint64, length int) ([]byte, error)
	munmap(mem []byte) error
	close(fd int) error
}

// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
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

// NewDevice makes a Device of a descriptor of /dev/xen/gntalloc that was opened by another
// process. The descriptor is its own from then on.
func NewDevice(fd int) *Device { return &Device{kernel: linux{}, fd: xendev.New(fd)} }

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
	return NewPages(mem, refs, func() error { return d.free(index, n, d.kernel.munmap(mem)) }), nil
}

// AllocAt makes as many zeroed pages as mem has and puts them in the place of mem's, which
// are lost with their content. mem is a part of a private anonymous mapping, of whole
// pages. Everything else is as with [Device.Alloc]: all pages are granted or none.
//
// A program that copies between pages of a guest and mem grants them to its own domain,
// by that domain's number. Xen does not take DOMID_SELF for it.
//
// Free puts zeroed anonymous memory back, so that mem stays mapped until its owner unmaps
// all of it. Until then the pages cannot be discarded (MADV_DONTNEED) and the kernel may
// refuse to register them with an io_uring; system calls read and write them as any others.
//
// After [ErrLost] mem is not mapped any more and must not be used.
func (d *Device) AllocAt(mem []byte, domid xen.Domid, writable bool) (*Pages, error) {
	n := len(mem) / PageSize
	if n < 1 || n > MaxPages || len(mem)%PageSize != 0 || address(mem)%PageSize != 0 {
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: unix.EINVAL,
			Hint: fmt.Sprintf("the place is not one of 1 to %d whole pages", MaxPages)}
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
	if err := d.putAt(fd, index, mem); err != nil {
		_ = d.kernel.deallocGref(fd, index, n) // as in Alloc
		return nil, &Error{Op: "alloc", Domid: domid, Pages: n, Err: err}
	}
	return NewPages(mem, refs, func() error { return d.free(index, n, d.kernel.clear(mem)) }), nil
}

// putAt maps pages of the device in the place of mem. They are mapped elsewhere first, and
// then moved: a device that fails leaves the place as it is. The kernel may have unmapped the
// place before a move fails, but only for want of a few bytes of its own memory.
func (d *Device) putAt(fd int, index uint64, mem []byte) error {
	pages, err := d.kernel.mmap(fd, index, len(mem))
	if err != nil {
		return err
	}
	if err = d.kernel.move(pages, mem); err == nil {
		return nil
	}
	err = errors.Join(err, d.kernel.munmap(pages))
	// Only a place that is still free is filled: another thread may have mapped something
	// there.
	if e := d.kernel.refill(mem); e != nil {
		err = fmt.Errorf("%w: %w: %w", ErrLost, e, err)
	}
	return err
}

// free implements Pages.Free, after the memory was unmapped with err. If the device was
// closed, unmapping the memory has ended the grants.
func (d *Device) free(index uint64, n int, err error) error {
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
	// move moves a mapping of the device to the place of mem, of the same length.
	move(pages, mem []byte) error
	// clear puts anonymous memory in the place of mem.
	clear(mem []byte) error
	// refill maps anonymous memory at mem after a move that failed. It does nothing
	// if mem is still mapped as it was.
	refill(mem []byte) error
	close(fd int) error
}

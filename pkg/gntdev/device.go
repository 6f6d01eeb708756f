// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// DefaultPath is the path of the device.
const DefaultPath = "/dev/xen/gntdev"

// Device is an open grant device. Its methods may be called from several
// goroutines at once.
//
// A page that has no memory at the moment, because it is paged out or being shared,
// holds the thread that copies or maps it in the kernel for up to half a minute. This
// cannot be interrupted. Give each queue a Device and a thread of its own, so that one
// guest cannot stall another.
type Device struct {
	kernel kernel

	fd *xendev.FD
}

// Open opens the device at path, normally [DefaultPath].
func Open(path string) (*Device, error) {
	if n := os.Getpagesize(); n != PageSize {
		return nil, &Error{Op: "open", Index: -1, Err: unix.ENOTSUP,
			Hint: fmt.Sprintf("this kernel's pages are %d bytes: boot one with pages of 4 KiB", n)}
	}
	fd, err := xendev.Open(path, 0)
	if err != nil {
		return nil, &Error{Op: "open", Index: -1,
			Err: fmt.Errorf("%s: %w", path, err), Hint: xendev.OpenHint("xen-gntdev", err)}
	}
	return &Device{kernel: linux{}, fd: fd}, nil
}

// NewDevice makes a Device of a descriptor of /dev/xen/gntdev that was opened by another
// process. The descriptor is its own from then on.
func NewDevice(fd int) *Device { return &Device{kernel: linux{}, fd: xendev.New(fd)} }

// Close closes the device. Pages that are still mapped stay mapped until their
// Unmap. Close may be called again, which does nothing.
func (d *Device) Close() error {
	if err := d.fd.Close(d.kernel.close); err != nil {
		return &Error{Op: "close", Index: -1, Err: err}
	}
	return nil
}

// kernel makes the device's system calls. Tests replace it.
type kernel interface {
	grantCopy(fd int, segs []Segment) error
	mapGrantRef(fd int, domid xen.Domid, refs []xen.Gref) (index uint64, err error)
	unmapGrantRef(fd int, index uint64, count int) error
	mmap(fd int, index uint64, length int, prot Prot) ([]byte, error)
	munmap(mem []byte) error
	close(fd int) error
}

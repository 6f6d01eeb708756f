// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultPath is where the kernel puts the device.
const DefaultPath = "/dev/xen/gntdev"

// Device is an open grant device. Its methods may be called from several
// goroutines at once.
//
// A page the guest has no memory behind at the moment (paged out, or being
// shared) keeps the thread that copies or maps it in the kernel, with no way
// to interrupt it, for up to half a minute. Give each queue a Device and a
// thread of its own, so that one guest cannot stall another.
type Device struct {
	kernel kernel

	// mu keeps the descriptor's number from being closed, and given to
	// another file, under a call that is about to use it. Close therefore
	// waits for calls under way.
	mu sync.RWMutex
	fd int // -1 once closed; guarded by mu
}

// Open opens the device at path, normally [DefaultPath].
func Open(path string) (*Device, error) {
	if n := os.Getpagesize(); n != PageSize {
		return nil, &Error{Op: "open", Index: -1, Err: unix.ENOTSUP,
			Hint: fmt.Sprintf("this kernel's pages are %d bytes: boot one with pages of 4 KiB", n)}
	}
	fd, err := openNode(path)
	if err != nil {
		return nil, &Error{Op: "open", Index: -1,
			Err: fmt.Errorf("%s: %w", path, err), Hint: openHint(err)}
	}
	return &Device{kernel: linux{}, fd: fd}, nil
}

func openNode(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Close closes the device. Pages that are still mapped stay so until their
// Unmap. Close may be called again, which does nothing.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	if err := d.kernel.close(fd); err != nil {
		return &Error{Op: "close", Index: -1, Err: err}
	}
	return nil
}

// kernel is the device's system calls, so that tests can stand in for Xen.
type kernel interface {
	grantCopy(fd int, segs []Segment) error
	mapGrantRef(fd int, domid uint16, refs []Ref) (index uint64, err error)
	unmapGrantRef(fd int, index uint64, count int) error
	mmap(fd int, index uint64, length int, prot Prot) ([]byte, error)
	munmap(mem []byte) error
	close(fd int) error
}

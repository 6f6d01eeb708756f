// SPDX-License-Identifier: Apache-2.0

// Package xendev holds the common code of the devices below /dev/xen: it opens them,
// knows remedies if that fails, and has a descriptor that several goroutines may use
// until one closes it.
//
// It knows nothing of the requests that the devices take.
package xendev

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// FD is the descriptor of an open device. After a close the number soon belongs to
// another file. So a user holds the FD, and Close waits for users.
type FD struct {
	mu sync.RWMutex
	n  int // -1 once closed; guarded by mu
}

// New makes an FD of an open descriptor and owns it.
func New(fd int) *FD { return &FD{n: fd} }

// Open opens the node at path for reading and writing, with these flags as well.
func Open(path string, flags int) (*FD, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
		switch err {
		case nil:
			return New(fd), nil
		case unix.EINTR:
		default:
			return nil, err
		}
	}
}

// Hold returns the descriptor, or -1 if it is closed. The caller must call Release in
// either case.
func (d *FD) Hold() int {
	d.mu.RLock()
	return d.n
}

// Release ends what Hold began.
func (d *FD) Release() { d.mu.RUnlock() }

// Close has f close the descriptor, once.
func (d *FD) Close(f func(fd int) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n < 0 {
		return nil
	}
	fd := d.n
	d.n = -1
	return f(fd)
}

// OpenHint returns a remedy if the node that a module makes cannot be opened, or "".
func OpenHint(module string, err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "load the module (modprobe " + module + "); if that fails, this machine is not a Xen domain"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "this machine is not a Xen domain"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "only root may, as the node is made: run as root, or have a udev rule give the node to the daemon's group"
	case errors.Is(err, unix.EMFILE):
		return "raise the limit of open files (LimitNOFILE= in the unit)"
	}
	return ""
}

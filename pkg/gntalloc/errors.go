// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrClosed is what the methods of a closed Device fail with.
var ErrClosed = os.ErrClosed

// Error is the error of every operation of this package. errors.Is finds Err.
type Error struct {
	// Op is "open", "alloc", "free" or "close".
	Op string
	// Domid is whom an alloc was to grant the pages to.
	Domid uint16
	// Pages is how many pages an alloc or free was about.
	Pages int
	// Err is the errno or [ErrClosed].
	Err error
	// Hint says what the user or the caller can do; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	s := "gntalloc: " + e.Op
	switch e.Op {
	case "alloc":
		s += fmt.Sprintf(": %d pages for domid %d", e.Pages, e.Domid)
	case "free":
		s += fmt.Sprintf(": %d pages", e.Pages)
	}
	s += ": " + e.Err.Error()
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap makes errors.Is and errors.As reach the errno.
func (e *Error) Unwrap() error { return e.Err }

// openHint says what to do when the device node cannot be opened.
func openHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "load the module (modprobe xen-gntalloc); if that fails, this machine is not a Xen domain"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "this machine is not a Xen domain"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "only root may, as the node is made: run as root, or have a udev rule give the node to the daemon's group"
	case errors.Is(err, unix.EMFILE):
		return "raise the limit of open files (LimitNOFILE= in the unit)"
	}
	return ""
}

// allocHint says why pages could not be granted.
func allocHint(err error) string {
	if errors.Is(err, unix.ENOSPC) {
		return "raise the guest's xen_gntalloc.limit (1024 pages by default, for all users of the device together); " +
			"if it is high enough, the guest's grant table is full (gnttab_max_frames=)"
	}
	return ""
}

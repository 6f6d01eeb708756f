// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrClosed is what the methods of a closed Device fail with.
var ErrClosed = os.ErrClosed

// Error is the error of every operation of this package. errors.Is finds Err.
type Error struct {
	// Op is "open", "alloc", "free" or "close".
	Op string
	// Domid is whom an alloc was to grant the pages to.
	Domid xen.Domid
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

// allocHint says why pages could not be granted.
func allocHint(err error) string {
	if errors.Is(err, unix.ENOSPC) {
		return "raise the guest's xen_gntalloc.limit (1024 pages by default, for all users of the device together); " +
			"if it is high enough, the guest's grant table is full (gnttab_max_frames=)"
	}
	return ""
}

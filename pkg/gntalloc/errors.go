// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrClosed is the error of the methods of a closed Device.
var ErrClosed = os.ErrClosed

// ErrLost is the error of an AllocAt after which there is no memory at the place.
var ErrLost = errors.New("the memory at the place is lost")

// Error is the error of every operation of this package. errors.Is finds Err.
type Error struct {
	// Op is "open", "alloc", "free" or "close".
	Op string
	// Domid is the domain that an alloc was to grant the pages to.
	Domid xen.Domid
	// Pages is the number of pages of an alloc or free.
	Pages int
	// Err is the errno or [ErrClosed].
	Err error
	// Hint is a remedy for the user or the caller; it may be empty.
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

// allocHint returns a remedy for pages that could not be granted, or "".
func allocHint(err error) string {
	if errors.Is(err, unix.ENOSPC) {
		return "raise this domain's limit in " + LimitPath + " (1024 pages by default, for all users of the device together); " +
			"if it is high enough, this domain's grant table is full (gnttab_max_frames=)"
	}
	return ""
}

// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrClosed is the error of every method of a closed Device.
var ErrClosed = os.ErrClosed

// Error is the error of every operation of this package. errors.Is finds both
// the errno (Err) and the grant status (Status).
type Error struct {
	// Op is "open", "copy", "map", "unmap", "close" or "arena".
	Op string
	// Index is the position of the segment or ref at fault in the caller's
	// slice, -1 when the operation failed as a whole.
	Index int
	// Domid and Ref name the grant at fault. Domid alone is set when a map
	// failed and no single ref could be blamed.
	Domid xen.Domid
	Ref   xen.Gref
	// Status is the hypervisor's status of the grant, [StatusOkay] if there is
	// none.
	Status Status
	// Err is the errno, [ErrClosed], or nil if there is only a Status.
	Err error
	// Hint is a remedy for the user or the caller; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("gntdev: ")
	b.WriteString(e.Op)
	if e.Op == "copy" || e.Op == "map" {
		if e.Index >= 0 {
			b.WriteString(": domid " + strconv.Itoa(int(e.Domid)) +
				" gref " + strconv.FormatUint(uint64(e.Ref), 10) +
				" (#" + strconv.Itoa(e.Index) + ")")
		} else if e.Op == "map" {
			b.WriteString(": domid " + strconv.Itoa(int(e.Domid)))
		}
	}
	if e.Status != StatusOkay {
		b.WriteString(": " + e.Status.String())
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap makes errors.Is and errors.As reach the errno and the status.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	if err := e.Status.Err(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// copyHint returns the meaning of a failure of a whole Copy, or "".
func copyHint(err error) string {
	switch {
	case errors.Is(err, unix.EFAULT):
		return "the local memory of a segment is not mapped, or not writable"
	case errors.Is(err, unix.ENOTTY):
		return "this kernel's gntdev cannot copy: run a newer one"
	}
	return ""
}

// recordHint returns the reason why the kernel did not record the refs, or "".
func recordHint(err error, refs int) string {
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Sprintf("%d refs are more than xen_gntdev.limit allows", refs)
	case errors.Is(err, unix.ENOMEM):
		return "the kernel has no pages to map them at: the domain is short of memory, or of ballooned-out pages"
	}
	return ""
}

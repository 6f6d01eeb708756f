// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"strings"
)

// Reason says why a disk cannot be served.
type Reason uint8

// Reasons.
const (
	ReasonOther       Reason = iota
	ReasonNotFound           // no file has this name
	ReasonPermission         // access is denied
	ReasonReadOnly           // the file system or the device cannot be written
	ReasonBusy               // another program has the lock
	ReasonInUse              // the device is mounted, or part of another device
	ReasonDirectory          // it is a directory
	ReasonKind               // it is neither a file nor a block device
	ReasonTooSmall           // it has no whole sector
	ReasonNotMultiple        // its size is no multiple of the sector size
	ReasonNoMedium           // a drive without a medium, or a detached loop device
)

var reasonNames = [...]string{"open failed", "not found", "permission denied", "read-only", "locked", "in use",
	"is a directory", "is neither a file nor a block device", "too small", "size is not whole sectors", "no medium"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Error is the error of Open and Refresh.
type Error struct {
	Path   string
	Reason Reason
	Holder Holder // of the lock, with ReasonBusy
	Err    error  // the errno or the context's error; may be nil
	Hint   string // a remedy for the administrator; may be empty
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "disk %s: %v", e.Path, e.Reason)
	if e.Reason == ReasonBusy {
		fmt.Fprintf(&b, " by %v", e.Holder)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

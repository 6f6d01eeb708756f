// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Reasons to refuse grants. The answer to the frontend is always
// XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: the protocol has no other.
var (
	ErrDuplicate = errors.New("gref is in the table already")
	ErrFlags     = errors.New("unknown flags")
	ErrTooLong   = errors.New("list is longer than a page")
	ErrFull      = errors.New("table is full")
	ErrBudget    = errors.New("too many pages mapped; the limit is the backend's")
)

// Error is the error of a list that is refused because of one entry.
type Error struct {
	Index int      // of the entry in the list
	Ref   xen.Gref // its gref
	Err   error    // ErrDuplicate, ErrFlags, or the error of mapping the page
}

func (e *Error) Error() string {
	return fmt.Sprintf("staticgrant: gref %d (#%d): %v", e.Ref, e.Index, e.Err)
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

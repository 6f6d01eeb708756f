// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"fmt"
	"syscall"
)

// KeyError reports a key of a device directory that is missing, or whose value
// makes no sense. It wraps syscall.ENOENT or syscall.EINVAL.
type KeyError struct {
	Key     string // relative to the device directory
	Value   string // as it was read
	Missing bool   // the key does not exist
	Want    string // what a valid value is, for the message
}

// Error names the key, its value and what was expected. A long value is cut, as
// the other end may have chosen it.
func (e *KeyError) Error() string {
	if e.Missing {
		return fmt.Sprintf("key %q is missing, want %s", e.Key, e.Want)
	}
	return fmt.Sprintf("key %q is %q, want %s", e.Key, Clip(e.Value), e.Want)
}

// Unwrap returns the errno.
func (e *KeyError) Unwrap() error {
	if e.Missing {
		return syscall.ENOENT
	}
	return syscall.EINVAL
}

// Clip returns at most the first 64 bytes of a value that another domain wrote, so
// that it cannot fill logs and error nodes.
func Clip(v string) string {
	const maxLen = 64
	if len(v) > maxLen {
		return v[:maxLen] + "..."
	}
	return v
}

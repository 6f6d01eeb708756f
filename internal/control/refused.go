// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"syscall"
)

// isRefused reports whether the socket is there but nobody listens: the daemon
// has died.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

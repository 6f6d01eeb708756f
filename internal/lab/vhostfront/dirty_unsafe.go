// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"sync/atomic"
	"unsafe"
)

// takeWords moves the bits of from, which the back end sets at the same time, to to. Both
// are aligned to 8.
func takeWords(from, to []byte) {
	for i := 0; i+8 <= len(from); i += 8 {
		w := atomic.SwapUint64((*uint64)(unsafe.Pointer(&from[i])), 0)
		*(*uint64)(unsafe.Pointer(&to[i])) |= w
	}
}

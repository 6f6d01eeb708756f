// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// address returns the address of mem, which must not be Go memory.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(&mem[0])) }

// unmapPart unmaps a part of a mapping.
func unmapPart(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem)))
}

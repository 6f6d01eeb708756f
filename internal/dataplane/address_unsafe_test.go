// SPDX-License-Identifier: Apache-2.0

package dataplane

import "unsafe"

// address returns the address of mem, which must not be Go memory.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(&mem[0])) }

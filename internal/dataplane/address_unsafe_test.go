// SPDX-License-Identifier: Apache-2.0

package dataplane

import "unsafe"

// address is where mem starts. It must not be Go memory.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(&mem[0])) }

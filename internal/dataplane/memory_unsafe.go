// SPDX-License-Identifier: Apache-2.0

package dataplane

import "unsafe"

// memAddr returns the address of guest memory, which has at least a byte, for a system
// call. It is not on the Go heap, so the address is valid as long as it is mapped.
func memAddr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// SPDX-License-Identifier: Apache-2.0

package dataplane

import "unsafe"

// within reports whether an address is in mem, which is mapped.
func within(mem []byte, addr uintptr) bool {
	return len(mem) > 0 && addr-uintptr(unsafe.Pointer(unsafe.SliceData(mem))) < uintptr(len(mem))
}

// SPDX-License-Identifier: Apache-2.0

package virtfront

import "unsafe"

// address returns where mem is in this process.
func address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }

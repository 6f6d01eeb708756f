// SPDX-License-Identifier: Apache-2.0

package dev

import "unsafe"

// addr returns the address of b, as a process passes it to the kernel.
func addr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func addrOf(w []uint32) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(w)))) }

// SPDX-License-Identifier: Apache-2.0

package dev

import "unsafe"

// addr is where b is, as a process would tell the kernel.
func addr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func addrOf(w []uint32) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(w)))) }

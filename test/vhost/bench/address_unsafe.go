// SPDX-License-Identifier: Apache-2.0

package main

import "unsafe"

// addressOf returns the address of mapped memory.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// SPDX-License-Identifier: Apache-2.0

package gntdev

import "unsafe"

// Addr returns the address of the byte at off, for use as a Segment's local side.
// It panics when off is outside the arena.
func (a *Arena) Addr(off int) uintptr { return uintptr(unsafe.Pointer(&a.mem[off])) }

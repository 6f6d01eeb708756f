// SPDX-License-Identifier: Apache-2.0

package gntdev

import "unsafe"

// Addr is the address of the byte at off, for use as a Segment's local side.
// It panics when off is outside the arena. That the segment's end is inside,
// too, is up to the caller: off+n <= len(Bytes()).
func (a *Arena) Addr(off int) uintptr { return uintptr(unsafe.Pointer(&a.mem[off])) }

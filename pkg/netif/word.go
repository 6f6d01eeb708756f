// SPDX-License-Identifier: Apache-2.0

package netif

import "encoding/binary"

// Slots are read and written as 32-bit words. Their 16-bit fields are in memory
// order, on a little-endian machine the low half first. Xen has no
// big-endian port with para-virtual network devices.

func lo16(w uint32) uint16        { return uint16(w) }
func hi16(w uint32) uint16        { return uint16(w >> 16) }
func join16(lo, hi uint16) uint32 { return uint32(lo) | uint32(hi)<<16 }

func extraFrom(a, b uint32) (e ExtraInfo) {
	e.Type = ExtraType(a)
	e.Flags = ExtraFlags(a >> 8)
	binary.LittleEndian.PutUint16(e.Body[0:], hi16(a))
	binary.LittleEndian.PutUint32(e.Body[2:], b)
	return e
}

func extraTo(e ExtraInfo) (a, b uint32) {
	a = uint32(e.Type) | uint32(e.Flags)<<8 | uint32(binary.LittleEndian.Uint16(e.Body[0:]))<<16
	return a, binary.LittleEndian.Uint32(e.Body[2:])
}

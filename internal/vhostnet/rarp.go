// SPDX-License-Identifier: Apache-2.0

package vhostnet

import "encoding/binary"

// rarpPadding fills the 42 bytes of such a frame up to the 60 that Ethernet wants.
const rarpPadding = 60 - 42

// rarpFrame returns the frame by which bridges learn the place of a guest that has moved: a
// RARP request (RFC 903) for its own address, as QEMU and the kernel's bonding driver send
// it.
func rarpFrame(mac [6]byte) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b = append(b, mac[:]...)
	b = binary.BigEndian.AppendUint16(b, 0x8035) // RARP
	b = binary.BigEndian.AppendUint16(b, 1)      // Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800) // IPv4
	b = append(b, 6, 4)                          // lengths of addresses
	b = binary.BigEndian.AppendUint16(b, 3)      // request reverse
	b = append(b, mac[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, mac[:]...)
	b = append(b, 0, 0, 0, 0)
	return append(b, make([]byte, rarpPadding)...)
}

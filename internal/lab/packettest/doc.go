// SPDX-License-Identifier: Apache-2.0

// Package packettest builds and verifies Ethernet frames for tests.
//
// A [Frame] is a literal. Fields that are left out get a default; lengths, protocol
// numbers and checksums are computed:
//
//	packettest.Frame{
//		Tags:    []packettest.Tag{{TCI: 42}},
//		IPv4:    &packettest.IPv4{ID: 7, DF: true},
//		TCP:     &packettest.TCP{Seq: 1000, Flags: packettest.ACK},
//		Payload: packettest.Pattern(1460),
//	}.Bytes()
//
// [Decode] decodes a frame and [Verify] also verifies every checksum. Package
// [github.com/gopacket/gopacket], which shares no code with the packages under test,
// writes and verifies headers and checksums. This package adds the literals, and the
// rules that gopacket does not enforce: lengths must be exact, IPv6 requires the checksum
// of UDP, and the CRC of SCTP is verified.
package packettest

// SPDX-License-Identifier: Apache-2.0

// Package packettest builds and verifies Ethernet frames for tests.
//
// A [Frame] is written down as a literal. Fields that are left out get a sensible
// value; lengths, protocol numbers and checksums are computed:
//
//	packettest.Frame{
//		Tags:    []packettest.Tag{{TCI: 42}},
//		IPv4:    &packettest.IPv4{ID: 7, DF: true},
//		TCP:     &packettest.TCP{Seq: 1000, Flags: packettest.ACK},
//		Payload: packettest.Pattern(1460),
//	}.Bytes()
//
// [Decode] decodes a frame and [Verify] also verifies every checksum. Headers and
// checksums are written and judged by [github.com/gopacket/gopacket], which shares no
// code with the packages under test. This package adds the literals, and the rules
// that gopacket does not enforce: lengths must be exact, IPv6 requires the checksum of
// UDP, and the CRC of SCTP is verified.
package packettest

// SPDX-License-Identifier: Apache-2.0

// Package packettest builds and checks Ethernet frames for tests.
//
// A [Frame] is written down as a literal; what is left out gets a sensible
// value, and lengths, protocol numbers and checksums are worked out:
//
//	packettest.Frame{
//		Tags:    []packettest.Tag{{TCI: 42}},
//		IPv4:    &packettest.IPv4{ID: 7, DF: true},
//		TCP:     &packettest.TCP{Seq: 1000, Flags: packettest.ACK},
//		Payload: packettest.Pattern(1460),
//	}.Bytes()
//
// [Decode] takes a frame apart again and [Verify] also checks every checksum.
// Both are plain and slow on purpose, and share no code with pkg/offload: they
// are what it is measured against.
package packettest

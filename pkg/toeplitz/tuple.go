// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"encoding/binary"
	"fmt"
)

// Type tells which fields a hash covers (_XEN_NETIF_CTRL_HASH_TYPE_*). There is none
// for UDP: it is hashed like other packets of its family.
type Type uint8

// Types, by the number that a hash extra carries.
const (
	IPv4    Type = 0 // source and destination address, 8 bytes
	IPv4TCP Type = 1 // and the ports, 12 bytes
	IPv6    Type = 2 // source and destination address, 32 bytes
	IPv6TCP Type = 3 // and the ports, 36 bytes
)

func (t Type) String() string {
	switch t {
	case IPv4:
		return "ipv4"
	case IPv4TCP:
		return "ipv4+tcp"
	case IPv6:
		return "ipv6"
	case IPv6TCP:
		return "ipv6+tcp"
	}
	return fmt.Sprintf("unknown(%d)", uint8(t))
}

// Types is a set of types (XEN_NETIF_CTRL_HASH_TYPE_*).
type Types uint32

// AllTypes holds all types.
const AllTypes = Types(1<<IPv4 | 1<<IPv4TCP | 1<<IPv6 | 1<<IPv6TCP)

// Has reports whether t is in the set.
func (s Types) Has(t Type) bool { return s>>t&1 != 0 }

// MaxInput is the longest input in bytes, that of IPv6TCP.
const MaxInput = 36

// Tuple is the input of one packet's hash. Its zero value has none.
type Tuple struct {
	input [MaxInput]byte
	n     uint8
	typ   Type
}

// Input returns the bytes to hash, in network byte order.
func (t *Tuple) Input() []byte { return t.input[:t.n] }

// Type returns the type of Input.
func (t *Tuple) Type() Type { return t.typ }

// Extract reads the tuple of an Ethernet frame. It has the most specific type that is
// enabled and that the packet has. Extract reports whether there is one.
//
//   - The outermost IP header counts. Headers inside of tunnels are not read.
//   - IPv4 options and IPv6 hop-by-hop, routing and destination options are skipped.
//   - A fragment, even the first, has no ports: only that one would have them.
//   - Up to two VLAN tags are skipped. (Linux xen-netback does not hash tagged
//     frames, so all packets of a trunk have one queue.)
//   - A packet whose headers are bad or cut short by the end of the frame has no
//     hash, as far as the enabled types need these headers. Lengths in IP headers
//     are not read: segmentation offload may leave any value there.
//
// The frame may change meanwhile. Extract reads nothing outside of the frame.
func (t *Tuple) Extract(frame []byte, enabled Types) bool {
	t.n = 0
	l3 := 12
	var proto uint16
	for tags := 0; ; tags++ {
		if len(frame) < l3+2 {
			return false
		}
		proto = binary.BigEndian.Uint16(frame[l3:])
		l3 += 2
		if proto != etherTypeVLAN && proto != etherTypeQinQ {
			break
		}
		if tags == maxVLANTags {
			return false
		}
		l3 += 2
	}
	if len(frame) < l3 {
		return false
	}
	switch proto {
	case etherTypeIPv4:
		return t.extractIPv4(frame[l3:], enabled)
	case etherTypeIPv6:
		return t.extractIPv6(frame[l3:], enabled)
	}
	return false
}

const (
	etherTypeIPv4 = 0x0800
	etherTypeVLAN = 0x8100
	etherTypeIPv6 = 0x86dd
	etherTypeQinQ = 0x88a8

	maxVLANTags = 2 // 802.1ad

	protoHopByHop    = 0
	protoTCP         = 6
	protoRouting     = 43
	protoDestOptions = 60

	// maxExtensions bounds the walk through IPv6 extension headers. RFC 8200 has
	// four of those that are skipped, with destination options twice.
	maxExtensions = 8
)

func (t *Tuple) extractIPv4(p []byte, enabled Types) bool {
	if len(p) < 20 || p[0]>>4 != 4 {
		return false
	}
	header := int(p[0]&15) * 4
	if header < 20 || header > len(p) {
		return false
	}
	const fragment = 0x3fff // more fragments, or an offset
	if enabled.Has(IPv4TCP) && p[9] == protoTCP && binary.BigEndian.Uint16(p[6:])&fragment == 0 {
		return t.set(IPv4TCP, p[12:20], p[header:])
	}
	return enabled.Has(IPv4) && t.set(IPv4, p[12:20], nil)
}

func (t *Tuple) extractIPv6(p []byte, enabled Types) bool {
	if len(p) < 40 || p[0]>>4 != 6 {
		return false
	}
	addresses := p[8:40]
	if enabled.Has(IPv6TCP) {
		proto, segment, ok := skipExtensions(p[6], p[40:])
		if !ok {
			return false
		}
		if proto == protoTCP {
			return t.set(IPv6TCP, addresses, segment)
		}
	}
	return enabled.Has(IPv6) && t.set(IPv6, addresses, nil)
}

// skipExtensions finds the first header that is not one of those to be skipped, a
// fragment header for one.
func skipExtensions(next uint8, p []byte) (proto uint8, rest []byte, ok bool) {
	for range maxExtensions + 1 {
		if next != protoHopByHop && next != protoRouting && next != protoDestOptions {
			return next, p, true
		}
		if len(p) < 8 {
			return 0, nil, false
		}
		size := int(p[1])*8 + 8
		if size > len(p) {
			return 0, nil, false
		}
		next, p = p[0], p[size:]
	}
	return 0, nil, false
}

// set takes addresses and, for TCP, the ports that segment starts with.
func (t *Tuple) set(typ Type, addresses, segment []byte) bool {
	n := copy(t.input[:], addresses)
	if typ == IPv4TCP || typ == IPv6TCP {
		if len(segment) < 4 {
			return false
		}
		n += copy(t.input[n:], segment[:4])
	}
	t.typ, t.n = typ, uint8(n)
	return true
}

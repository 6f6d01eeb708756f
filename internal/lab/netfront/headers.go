// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/binary"

	"github.com/netbackd/netbackd/pkg/tap"
)

// headers holds the offsets of a frame's headers that checksums need. This parser is not
// the backend's, so that both cannot share an error.
type headers struct {
	v4, v6 bool
	l3     int   // IP header
	l4     int   // transport header, 0 if it is unknown or incomplete
	proto  uint8 // of the transport header
	tagged bool  // 802.1Q or 802.1ad
	frag   bool  // an IP fragment, also the first one
}

const (
	ethHeader = 14
	protoTCP  = 6
	protoUDP  = 17

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherQ    = 0x8100
	etherAD   = 0x88a8
)

// findHeaders parses the first bytes of a frame.
func findHeaders(b []byte) (h headers) {
	if len(b) < ethHeader {
		return h
	}
	at := 12
	typ := binary.BigEndian.Uint16(b[at:])
	for range 2 {
		if typ != etherQ && typ != etherAD {
			break
		}
		h.tagged = true
		if at += 4; len(b) < at+2 {
			return h
		}
		typ = binary.BigEndian.Uint16(b[at:])
	}
	h.l3 = at + 2
	switch typ {
	case etherIPv4:
		h.ipv4(b)
	case etherIPv6:
		h.ipv6(b)
	}
	return h
}

func (h *headers) ipv4(b []byte) {
	ip := b[h.l3:]
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[0]&15 < 5 {
		return
	}
	h.v4 = true
	h.frag = binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
	h.proto = ip[9]
	if !h.frag {
		h.l4 = h.l3 + int(ip[0]&15)*4
	}
}

// Extension headers of IPv6.
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extDest     = 60
)

func (h *headers) ipv6(b []byte) {
	ip := b[h.l3:]
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return
	}
	h.v6 = true
	next, at := ip[6], h.l3+40
	for range 8 {
		if len(b) < at+8 {
			return
		}
		switch next {
		case extHopByHop, extRouting, extDest:
			next, at = b[at], at+8+int(b[at+1])*8
		case extFragment:
			h.frag, h.proto = true, b[at]
			return
		default:
			h.proto, h.l4 = next, at
			return
		}
	}
}

// csumField returns the offset of the transport checksum, 0 if the protocol has none
// that can be offloaded.
func (h *headers) csumField() int {
	switch {
	case h.l4 == 0 || h.frag:
		return 0
	case h.proto == protoTCP:
		return h.l4 + 16
	case h.proto == protoUDP:
		return h.l4 + 6
	}
	return 0
}

// offloads reports whether the partial checksum of a vnet header is the transport
// header's. netif cannot express another one, as that of a packet in a tunnel.
func (h *headers) offloads(v *tap.VnetHdr) bool {
	at := h.csumField()
	return at != 0 && int(v.CsumStart) == h.l4 && int(v.CsumStart)+int(v.CsumOffset) == at
}

// pseudo returns the sum of the pseudo header for a transport length of n bytes.
func (h *headers) pseudo(b []byte, n int) uint64 {
	var s uint64
	if h.v4 {
		s = sum(b[h.l3+12 : h.l3+20])
	} else {
		s = sum(b[h.l3+8 : h.l3+40])
	}
	return s + uint64(n>>16) + uint64(n&0xffff) + uint64(h.proto)
}

// sum adds big-endian 16-bit words. An odd byte at the end is the high half of a word.
// The sum of 2^48 words fits.
func sum(b []byte) (s uint64) {
	for len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

// fold reduces s to a 16-bit ones' complement sum.
func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

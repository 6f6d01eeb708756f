// SPDX-License-Identifier: Apache-2.0

package offload

import "encoding/binary"

// Ethernet types (linux/if_ether.h).
const (
	etherTypeIPv4   = 0x0800
	etherTypeIPv6   = 0x86dd
	etherType8021Q  = 0x8100
	etherType8021AD = 0x88a8
)

// Protocols above IP, and IPv6 extension headers (linux/in.h, linux/in6.h).
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132

	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extAuth     = 51
	extDest     = 60
)

// Lengths of headers in bytes, and offsets of fields within them.
const (
	etherLen = 14
	vlanLen  = 4
	ipv4Len  = 20 // without options
	ipv6Len  = 40
	tcpLen   = 20 // without options
	udpLen   = 8

	tcpSeq    = 4
	tcpAck    = 8
	tcpOff    = 12
	tcpFlags  = 13
	tcpWindow = 14
	tcpCheck  = 16
	tcpUrgent = 18

	udpCheck  = 6
	sctpCheck = 8
)

// TCP flags that matter to segmentation.
const (
	flagFIN = 0x01
	flagPSH = 0x08
	flagCWR = 0x80
)

// Bounds of [Parse].
const (
	// maxVLANs: a customer and a provider tag (802.1ad).
	maxVLANs = 2
	// maxExtHeaders and maxExtLen: RFC 8200 allows six headers, each once
	// and destination options twice; Linux stops after 256 bytes
	// (MAX_IPV6_HDR_LEN).
	maxExtHeaders = 8
	maxExtLen     = 256

	// MaxHeader is the most bytes that [Parse] reads, from the start of the
	// frame: two VLAN tags, IPv6 with all extension headers allowed, TCP with
	// all options.
	MaxHeader = etherLen + maxVLANs*vlanLen + ipv6Len + maxExtLen + 60
)

// Headers holds the offsets of a frame's headers, in bytes from the start of the
// Ethernet header; 0 means absent.
type Headers struct {
	EtherType uint16 // after the VLAN tags
	L3        uint16 // IP header
	L4        uint16 // header of Proto; absent in fragments
	End       uint16 // end of the TCP or UDP header; L4 for any other protocol
	VLANs     uint8  // number of tags before EtherType, 0 to 2
	IPv       uint8  // 4, 6, or 0 for not IP
	Proto     uint8  // final protocol; 0 if there is none
	TCPFlags  uint8  // flags of a TCP header, CWR to FIN

	Fragment bool // one of several fragments, the first one included
	Atomic   bool // has a fragment header but is whole (RFC 6946)
	Auth     bool // has an authentication header
}

// transport reports whether the packet is TCP or UDP with its header in place.
func (h *Headers) transport() bool {
	return h.L4 != 0 && (h.Proto == protoTCP || h.Proto == protoUDP)
}

// csumOffset returns the offset of the checksum within the transport header.
func (h *Headers) csumOffset() uint16 {
	if h.Proto == protoTCP {
		return tcpCheck
	}
	return udpCheck
}

// Parse finds the headers of a frame of total bytes that begins with head. On error
// the result is valid as far as it goes: IPv and L3 are set only if the IP header is
// complete and valid, Proto, L4 and End only without an error.
//
// A frame that is not IP, or of an unknown protocol, is no error. Length fields of
// IP and UDP are not checked: with segmentation offload they hold any value, and the
// host's stack drops a plain packet with a wrong one.
func Parse(head []byte, total int) (Headers, error) {
	var h Headers
	if total < len(head) {
		head = head[:max(total, 0)]
	}
	if len(head) < etherLen {
		return h, short(etherLen, total)
	}
	h.EtherType = binary.BigEndian.Uint16(head[12:])
	off := etherLen
	for isVLAN(h.EtherType) && h.VLANs < maxVLANs {
		if len(head) < off+vlanLen {
			return h, short(off+vlanLen, total)
		}
		h.EtherType = binary.BigEndian.Uint16(head[off+2:])
		h.VLANs++
		off += vlanLen
	}
	var err error
	switch h.EtherType {
	case etherTypeIPv4:
		err = h.parseIPv4(head, off, total)
	case etherTypeIPv6:
		err = h.parseIPv6(head, off, total)
	}
	return h, err
}

// short returns the error for a header that would end at byte need.
func short(need, total int) error {
	if need > total {
		return ErrTruncated
	}
	return ErrHeadShort
}

func isVLAN(t uint16) bool { return t == etherType8021Q || t == etherType8021AD }

func (h *Headers) parseIPv4(head []byte, off, total int) error {
	if len(head) < off+ipv4Len {
		return short(off+ipv4Len, total)
	}
	ip := head[off : off+ipv4Len]
	n := int(ip[0]&0xf) * 4
	if ip[0]>>4 != 4 || n < ipv4Len {
		return ErrIPHeader
	}
	if len(head) < off+n {
		return short(off+n, total)
	}
	h.IPv, h.L3 = 4, uint16(off)
	// More fragments, or an offset; not "don't fragment".
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		h.Fragment = true
		h.Proto = ip[9]
		return nil
	}
	return h.parseTransport(head, ip[9], off+n, total)
}

func (h *Headers) parseIPv6(head []byte, off, total int) error {
	if len(head) < off+ipv6Len {
		return short(off+ipv6Len, total)
	}
	if head[off]>>4 != 6 {
		return ErrIPHeader
	}
	h.IPv, h.L3 = 6, uint16(off)
	next := head[off+6]
	off += ipv6Len
	limit := off + maxExtLen
	for n := 0; ; n++ {
		switch next {
		case extHopByHop, extRouting, extDest, extAuth, extFragment:
		default:
			return h.parseTransport(head, next, off, total)
		}
		if n == maxExtHeaders {
			return ErrExtHeaders
		}
		// Every extension header has at least 8 bytes.
		if len(head) < off+8 {
			return short(off+8, total)
		}
		ext := head[off : off+8]
		size := 8
		switch next {
		case extFragment:
			// The offset and "more fragments", without the reserved bits.
			if binary.BigEndian.Uint16(ext[2:])&0xfff9 != 0 {
				h.Fragment = true
				h.Proto = ext[0]
				return nil
			}
			h.Atomic = true
		case extAuth:
			size = (int(ext[1]) + 2) * 4
			h.Auth = true
		default:
			size = (int(ext[1]) + 1) * 8
		}
		next = ext[0]
		off += size
		if off > limit {
			return ErrExtHeaders
		}
		if len(head) < off {
			return short(off, total)
		}
	}
}

func (h *Headers) parseTransport(head []byte, proto uint8, off, total int) error {
	end := off
	switch proto {
	case protoTCP:
		if len(head) < off+tcpLen {
			return short(off+tcpLen, total)
		}
		n := int(head[off+tcpOff]>>4) * 4
		if n < tcpLen {
			return ErrTCPHeader
		}
		end = off + n
		if len(head) < end {
			return short(end, total)
		}
		h.TCPFlags = head[off+tcpFlags]
	case protoUDP:
		end = off + udpLen
		if len(head) < end {
			return short(end, total)
		}
	}
	h.Proto, h.L4, h.End = proto, uint16(off), uint16(end)
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"encoding/binary"

	"github.com/netbackd/netbackd/pkg/tap"
)

// Bounds of a merged packet.
const (
	// maxMergedFrame is the maximum of its bytes, Ethernet header included: devices take no
	// larger ones to be segmented (GSO_MAX_SIZE, include/linux/netdevice.h, less one), and
	// the length fields of IP and UDP hold no more.
	maxMergedFrame = 0xffff

	// maxMergedSegments is the maximum of its segments, as with Linux's GRO of datagrams
	// (UDP_GRO_CNT_MAX, net/ipv4/udp_offload.c).
	maxMergedSegments = 64
)

// TCP flags of a segment that can be merged: ACK, and PSH in the last one.
const flagACK = 0x10

// Csum describes the checksum of a packet for a [Merger]. The zero Csum is a complete
// checksum.
type Csum struct {
	Partial bool // the field holds the sum of the pseudo-header

	// Start and Offset say where the partial checksum is, as in a [tap.VnetHdr]. If Start is
	// 0, it is where the headers say.
	Start, Offset uint16
}

// Merger merges consecutive segments of a TCP connection, or datagrams of a UDP flow, into
// one packet for segmentation offload. [Merger.Start] takes the first packet, [Merger.Add]
// each further one, and [Merger.Finish] rewrites the headers of the first, behind which the
// payloads of all belong.
//
// It follows the rules of Linux's GRO, and leaves alone what GRO would merge but
// segmentation would not give back: a segment of the merged packet has the bytes of the
// packet that came in. So all packets have the same headers, but for lengths, checksums,
// TCP's sequence numbers, which are contiguous, and IPv4's identification, which is one
// more in each packet: segmentation counts it up, and a [tap.VnetHdr] has no way to ask for
// a fixed one. The flags are ACK, and PSH in the last segment. All payloads have the same
// size, but that of the last one, which may be smaller. Neither IP options nor extension
// headers are allowed, nor fragments.
//
// A merged packet has a partial checksum, which the host completes. So a complete checksum
// is verified before its packet is merged, and a wrong one is passed on as it came. A
// partial one must fit those of the other packets.
//
// The headers must be in private memory. A packet is given by its first bytes, its head,
// and its length. If the head is not all of it, a complete checksum cannot be verified, and
// the packet is left alone.
type Merger struct {
	head    []byte // headers of the first packet
	l3, l4  int
	end     int
	mss     int // payload bytes of the first packet
	payload int // payload bytes of all packets
	most    int // maximum of payload bytes
	n       int // packets
	ipv     uint8
	proto   uint8
	ended   bool // by a packet that must be the last one
	flags   uint8
	seq     uint32 // of the next segment
	id      uint16 // of the next IPv4 packet

	// Sums that all packets have in common, in one's complement: of the pseudo-header
	// without the length, and of the IPv4 header without length and identification.
	pseudo, ip uint16
}

// Start takes a packet as the first one, and reports whether others can be merged with it.
func (m *Merger) Start(head []byte, total int, c Csum) bool {
	h, err := Parse(head[:min(len(head), MaxHeader)], total)
	if err != nil || h.L4 == 0 || h.Fragment || h.Atomic {
		return false
	}
	l3, l4, end := int(h.L3), int(h.L4), int(h.End)
	payload := total - end
	if payload < MinGSOSize || total+1 > maxMergedFrame {
		return false
	}
	*m = Merger{
		head: head[:end], l3: l3, l4: l4, end: end, ipv: h.IPv, proto: h.Proto,
		mss: payload, payload: payload, most: maxMergedFrame - end, n: 1,
	}
	switch h.Proto {
	case protoTCP:
		t := head[l4:end]
		if t[tcpFlags] != flagACK || t[tcpOff]&0xf != 0 {
			return false
		}
		m.flags = flagACK
		m.seq = binary.BigEndian.Uint32(t[tcpSeq:]) + uint32(payload)
	case protoUDP:
		if int(binary.BigEndian.Uint16(head[l4+4:])) != total-l4 {
			return false
		}
	default:
		return false
	}
	return m.startIP(total) && m.startCsum(head, total, c)
}

// startIP checks the IP header of the first packet.
func (m *Merger) startIP(total int) bool {
	ip := m.head[m.l3:m.l4]
	if m.ipv == 6 {
		return len(ip) == ipv6Len && int(binary.BigEndian.Uint16(ip[4:])) == total-m.l4
	}
	if len(ip) != ipv4Len || int(binary.BigEndian.Uint16(ip[2:])) != total-m.l3 || ip[6]&0x80 != 0 {
		return false
	}
	// The sum 0xffff would be correct as well, but no stack writes it.
	check := binary.BigEndian.Uint16(ip[10:])
	if check == 0xffff || checksum(ip) != 0xffff {
		return false
	}
	id := binary.BigEndian.Uint16(ip[4:])
	m.id = id + 1
	m.ip = less(^check, binary.BigEndian.Uint16(ip[2:]), id)
	return true
}

// startCsum checks the checksum of the first packet.
func (m *Merger) startCsum(head []byte, total int, c Csum) bool {
	if c.Partial {
		m.pseudo = less(binary.BigEndian.Uint16(head[m.field():]), uint16(total-m.l4), 0)
	} else {
		h := Headers{L3: uint16(m.l3), L4: uint16(m.l4), IPv: m.ipv, Proto: m.proto}
		m.pseudo = pseudoSum(head, h, 0)
	}
	return m.checksum(head, total, c)
}

// field returns the offset of the checksum.
func (m *Merger) field() int {
	if m.proto == protoTCP {
		return m.l4 + tcpCheck
	}
	return m.l4 + udpCheck
}

// checksum reports whether a packet's checksum is right: a complete one for its bytes, a
// partial one for the other packets.
func (m *Merger) checksum(head []byte, total int, c Csum) bool {
	at := m.field()
	check, size := binary.BigEndian.Uint16(head[at:]), uint16(total-m.l4)
	switch {
	case check == 0 && m.proto == protoUDP:
		return false // it has none, which segmentation would change
	case c.Partial:
		return (c.Start == 0 || int(c.Start) == m.l4 && m.l4+int(c.Offset) == at) && less(check, size, 0) == less(m.pseudo, 0, 0)
	case check == 0xffff && m.proto == protoTCP:
		return false // correct for the sum 0, but segmentation writes 0
	case len(head) < total:
		return false
	}
	s := add16(add16(m.pseudo, size), checksum(head[m.l4:total]))
	return s == 0xffff
}

// less returns a less b and c in one's complement, and 0 for both forms of 0.
func less(a, b, c uint16) uint16 {
	s := add16(add16(a, ^b), ^c)
	if s == 0xffff {
		return 0
	}
	return s
}

// Add takes the next packet, if it can be merged with those before it, and reports whether
// it did.
func (m *Merger) Add(head []byte, total int, c Csum) bool {
	payload := total - m.end
	if m.ended || len(head) < m.end || payload <= 0 || payload > m.mss || m.payload+payload > m.most || m.n == maxMergedSegments {
		return false
	}
	if !m.sameIP(head, total) {
		return false
	}
	last := payload < m.mss
	switch m.proto {
	case protoTCP:
		t, u := head[m.l4:m.end], m.head[m.l4:m.end]
		flags := t[tcpFlags]
		if binary.BigEndian.Uint32(t) != binary.BigEndian.Uint32(u) || // ports
			binary.BigEndian.Uint32(t[tcpSeq:]) != m.seq ||
			binary.BigEndian.Uint32(t[tcpAck:]) != binary.BigEndian.Uint32(u[tcpAck:]) ||
			t[tcpOff] != u[tcpOff] || flags&^flagPSH != flagACK ||
			binary.BigEndian.Uint16(t[tcpWindow:]) != binary.BigEndian.Uint16(u[tcpWindow:]) ||
			!bytes.Equal(t[tcpUrgent:], u[tcpUrgent:]) { // and options
			return false
		}
		last = last || flags&flagPSH != 0
		if !m.checksum(head, total, c) {
			return false
		}
		m.flags |= flags
		m.seq += uint32(payload)
	default:
		t, u := head[m.l4:m.end], m.head[m.l4:m.end]
		if binary.BigEndian.Uint32(t) != binary.BigEndian.Uint32(u) || // ports
			int(binary.BigEndian.Uint16(t[4:])) != total-m.l4 || !m.checksum(head, total, c) {
			return false
		}
	}
	m.ended = last
	m.id++
	m.payload += payload
	m.n++
	return true
}

// sameIP reports whether all up to the IP header is as in the first packet, but for what
// differs from packet to packet.
func (m *Merger) sameIP(head []byte, total int) bool {
	ip, was := head[m.l3:m.l4], m.head[m.l3:m.l4]
	if m.ipv == 6 {
		return bytes.Equal(head[:m.l3+4], m.head[:m.l3+4]) &&
			int(binary.BigEndian.Uint16(ip[4:])) == total-m.l4 &&
			bytes.Equal(ip[6:], was[6:])
	}
	size, id := binary.BigEndian.Uint16(ip[2:]), binary.BigEndian.Uint16(ip[4:])
	check := binary.BigEndian.Uint16(ip[10:])
	return bytes.Equal(head[:m.l3+2], m.head[:m.l3+2]) &&
		int(size) == total-m.l3 && id == m.id &&
		binary.BigEndian.Uint32(ip[6:]) == binary.BigEndian.Uint32(was[6:]) && // DF, TTL, protocol
		binary.BigEndian.Uint64(ip[12:]) == binary.BigEndian.Uint64(was[12:]) &&
		check != 0xffff && less(^check, size, id) == m.ip
}

// Header returns the length of the headers of each packet in bytes. The payload is behind
// it.
func (m *Merger) Header() int { return m.end }

// Len returns the length of the merged packet in bytes.
func (m *Merger) Len() int { return m.end + m.payload }

// Packets returns the number of packets that were merged.
func (m *Merger) Packets() int { return m.n }

// Finish makes the headers of the first packet those of the merged one, and returns its
// vnet header. There must be two packets at least.
func (m *Merger) Finish() tap.VnetHdr {
	ip, size := m.head[m.l3:m.l4], m.end-m.l4+m.payload
	v := tap.VnetHdr{
		Flags: tap.VnetNeedsCsum, GSOSize: uint16(m.mss),
		HdrLen: uint16(m.end), CsumStart: uint16(m.l4), CsumOffset: udpCheck,
	}
	if m.ipv == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(m.l4-m.l3+size))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
		v.GSOType = tap.VnetGSOTCPv4
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(size))
		v.GSOType = tap.VnetGSOTCPv6
	}
	if m.proto == protoTCP {
		v.CsumOffset = tcpCheck
		m.head[m.l4+tcpFlags] = m.flags
	} else {
		v.GSOType = tap.VnetGSOUDP
		binary.BigEndian.PutUint16(m.head[m.l4+4:], uint16(size))
	}
	binary.BigEndian.PutUint16(m.head[m.field():], add16(m.pseudo, uint16(size)))
	return v
}

// UDP reports whether the packets are datagrams.
func (m *Merger) UDP() bool { return m.proto == protoUDP }

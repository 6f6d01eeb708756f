// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"math/rand/v2"
)

// Flow names the packets that are numbered together.
type Flow struct {
	// Run is the number of the connection. A packet of another connection is a stray.
	Run uint32
	// Vif and Number say whose flow it is; they are in its addresses and ports, too.
	Vif, Number uint16
	ToGuest     bool
}

// Kind says which packets a flow has.
type Kind uint8

// The kinds.
const (
	Small Kind = iota // UDP, up to 300 bytes of payload, of any size
	Full              // TCP segments of one size, which may be merged, and a shorter one at times
	Large             // TCP, up to 40 KiB, to be segmented
)

// Sizes of headers and of a segment's payload, in bytes.
const (
	ethLen    = 14
	ipLen     = 20
	tcpLen    = 20
	udpLen    = 8
	recordLen = 28
	Segment   = 1448
	largest   = 40 << 10
	// MaxFrame is the size of the largest frame.
	MaxFrame = ethLen + ipLen + tcpLen + largest
)

const (
	protoTCP = 6
	protoUDP = 17
	magic    = 0x6c656467
)

// pattern holds the bytes from which the packets take their content.
var pattern = func() []byte {
	b := make([]byte, 2*largest)
	r := rand.NewChaCha8([32]byte{'l', 'e', 'd', 'g', 'e', 'r'})
	_, _ = r.Read(b) // never fails
	return b
}()

// mix returns a number that looks random, from a flow and the number of a packet.
func (f Flow) mix(seq uint64) uint64 {
	x := seq ^ uint64(f.Run)<<32 ^ uint64(f.Vif)<<48 ^ uint64(f.Number)<<17
	if f.ToGuest {
		x = ^x
	}
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// content returns the bytes behind the record's head of a packet with size bytes of payload.
func (f Flow) content(seq uint64, size int) []byte {
	at := f.mix(seq) >> 8 % largest
	return pattern[at:][:size-recordLen]
}

// size returns the bytes of payload of a packet.
func (f Flow) size(k Kind, seq uint64) int {
	m := int(f.mix(seq) & 0xffff)
	switch k {
	case Small:
		return recordLen + m%272
	case Full:
		if m%16 == 0 {
			return recordLen + m%(Segment-recordLen)
		}
		return Segment
	default:
		return Segment + 1 + m%(largest-Segment)
	}
}

// Source makes the packets of a flow.
type Source struct {
	Flow Flow
	Kind Kind
	// Partial leaves the checksums of TCP and UDP to be completed.
	Partial bool

	next uint64
	seq  uint32 // of TCP
	id   uint16 // of IPv4
	head []byte
	buf  []byte
}

// NewSource returns a source. Large packets have partial checksums.
func NewSource(f Flow, k Kind, partial bool) *Source {
	s := &Source{Flow: f, Kind: k, Partial: partial || k == Large, buf: make([]byte, MaxFrame)}
	s.head = f.head(k)
	return s
}

// Sent returns the number of packets made so far, which is the number of the next one.
func (s *Source) Sent() uint64 { return s.next }

// MAC returns the addresses of a vif: the guest's, and that of the host's end in its packets.
func MAC(vif uint16) (guest, host [6]byte) {
	guest, host = [6]byte{2, 0x6c, 1}, [6]byte{2, 0x6c, 2}
	binary.BigEndian.PutUint16(guest[4:], vif)
	binary.BigEndian.PutUint16(host[4:], vif)
	return guest, host
}

// head returns the headers of a flow's packets, without what differs between them.
func (f Flow) head(k Kind) []byte {
	guest, host := MAC(f.Vif)
	b := make([]byte, ethLen+ipLen+tcpLen)
	from, to := guest, host
	if f.ToGuest {
		from, to = host, guest
	}
	copy(b, to[:])
	copy(b[6:], from[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[ethLen:]
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, protoTCP // DF
	copy(ip[12:], []byte{198, 18, from[2], byte(f.Vif)})
	copy(ip[16:], []byte{198, 18, to[2], byte(f.Vif)})
	l4 := ip[ipLen:]
	// The ports of both directions differ: the kernel sends a packet to the TAP queue that the
	// last packet of the reverse flow came from, which would move flows.
	port := 20000 + f.Number
	if f.ToGuest {
		port += 20000
	}
	binary.BigEndian.PutUint16(l4, port)
	binary.BigEndian.PutUint16(l4[2:], port+10000)
	if k == Small {
		ip[9] = protoUDP
		return b[:ethLen+ipLen+udpLen]
	}
	l4[12], l4[13] = 5<<4, 0x10 // ACK
	binary.BigEndian.PutUint16(l4[14:], 1024)
	return b
}

// GSOSize returns the bytes of payload of each segment that a frame is to be cut into, 0 for
// a frame that is not to be cut.
func (s *Source) GSOSize(frame []byte) uint16 {
	if s.Kind == Large && len(frame) > len(s.head)+Segment {
		return Segment
	}
	return 0
}

// Next returns the next packet. It is valid until the next call.
func (s *Source) Next() []byte {
	size := s.Flow.size(s.Kind, s.next)
	h := len(s.head)
	b := s.buf[:h+size]
	copy(b, s.head)
	ip := b[ethLen:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], s.id)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:ipLen])))
	s.putRecord(b[h:])
	l4 := ip[ipLen:]
	at := 6
	if s.Kind == Small {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else {
		at = 16
		binary.BigEndian.PutUint32(l4[4:], s.seq)
	}
	if s.Partial {
		binary.BigEndian.PutUint16(l4[at:], fold(pseudo(ip, len(l4))))
	} else {
		c := ^fold(pseudo(ip, len(l4)) + sum(l4))
		if c == 0 {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(l4[at:], c)
	}
	if s.Kind != Small {
		s.seq += uint32(size)
	}
	s.next++
	s.id++
	return b
}

// putRecord fills a packet's payload.
func (s *Source) putRecord(b []byte) {
	e := binary.BigEndian
	e.PutUint32(b, magic)
	e.PutUint32(b[4:], s.Flow.Run)
	e.PutUint16(b[8:], s.Flow.Vif)
	e.PutUint16(b[10:], s.Flow.Number)
	e.PutUint16(b[12:], uint16(s.Kind))
	e.PutUint16(b[14:], uint16(len(b)))
	e.PutUint32(b[16:], s.seq)
	e.PutUint64(b[20:], s.next)
	copy(b[recordLen:], s.Flow.content(s.next, len(b)))
}

// pseudo returns the sum of the pseudo header for n bytes behind an IPv4 header.
func pseudo(ip []byte, n int) uint64 { return sum(ip[12:20]) + uint64(n) + uint64(ip[9]) }

// sum adds big-endian 16-bit words. An odd byte at the end is the high half of a word.
func sum(b []byte) (s uint64) {
	for len(b) >= 4 {
		w := binary.BigEndian.Uint32(b)
		s += uint64(w>>16) + uint64(w&0xffff)
		b = b[4:]
	}
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

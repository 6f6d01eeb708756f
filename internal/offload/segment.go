// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"io"
)

// Largest IP packets in bytes, header included. IPv6's length field does not count
// the header.
const (
	maxIPv4 = 0xffff
	maxIPv6 = 0xffff + ipv6Len
)

// Segmenter cuts a TCP packet into segments as the kernel's tcp_gso_segment does:
// each has the packet's headers with sequence number, IPv4 identification and
// lengths updated, FIN and PSH only in the last one, CWR only in the first one, and
// complete checksums.
//
//	var s offload.Segmenter
//	if err := s.Init(frame, int(plan.GSOSize)); err != nil {
//		return err
//	}
//	for range s.Left() {
//		n, err := s.Next(buf)
//		...
//	}
//
// The zero Segmenter has no segments left.
type Segmenter struct {
	frame   []byte
	payload []byte // of the segments still to come
	mss     int
	left    int
	seq     uint32
	partial uint16 // pseudo-header's sum without a length
	id      uint16
	l3, l4  int
	end     int
	ipv     uint8
	first   bool
}

// Init starts to cut a frame into segments with up to mss bytes of payload. VLAN
// tags, IP options and extension headers are repeated in every segment. The frame's
// checksum must be partial: the field holds the sum of the pseudo-header. The
// Segmenter refers to the frame until its last segment.
//
// [Segmenter.Left] is then the number of segments: the payload divided by mss,
// rounded up; 65515 at most, with an mss of 1. A packet without payload is one
// segment.
func (s *Segmenter) Init(frame []byte, mss int) error {
	*s = Segmenter{}
	h, err := Parse(frame, len(frame))
	if err != nil {
		return err
	}
	limit := maxIPv4
	if h.IPv == 6 {
		limit = maxIPv6
	}
	switch {
	case h.Fragment || h.Atomic:
		return ErrFragment
	case h.Proto != protoTCP || h.L4 == 0 || h.Auth:
		return ErrGSOMismatch
	case mss < 1:
		return ErrGSOSize
	case len(frame)-int(h.L3) > limit:
		return ErrTooLong
	}
	s.frame = frame
	s.payload = frame[h.End:]
	s.mss = mss
	s.left = max(1, (len(s.payload)+mss-1)/mss)
	s.l3, s.l4, s.end = int(h.L3), int(h.L4), int(h.End)
	s.ipv = h.IPv
	s.first = true
	tcp := frame[s.l4:s.end]
	s.seq = binary.BigEndian.Uint32(tcp[tcpSeq:])
	// The length is subtracted from the sender's sum. A new sum would be wrong
	// behind a routing header, where the destination address that counts is not
	// in the IP header.
	s.partial = add16(binary.BigEndian.Uint16(tcp[tcpCheck:]), ^uint16(len(frame)-s.l4))
	if h.IPv == 4 {
		s.id = binary.BigEndian.Uint16(frame[s.l3+4:])
	}
	return nil
}

// Left returns the number of segments still to come.
func (s *Segmenter) Left() int { return s.left }

// MaxLen returns the length in bytes of the longest segment still to come, headers
// included.
func (s *Segmenter) MaxLen() int { return s.end + min(s.mss, len(s.payload)) }

// Next writes the next segment to dst and returns its length in bytes. It returns
// [io.EOF] after the last one. If dst is shorter than [Segmenter.MaxLen] it returns
// [io.ErrShortBuffer], and the same segment is next.
func (s *Segmenter) Next(dst []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	if len(dst) < s.MaxLen() {
		return 0, io.ErrShortBuffer
	}
	payload := s.payload[:min(s.mss, len(s.payload))]
	s.payload = s.payload[len(payload):]
	s.header(dst[:s.end], payload)
	return s.end + copy(dst[s.end:], payload), nil
}

// header writes the headers of the next segment, which has this payload, to dst.
func (s *Segmenter) header(dst, payload []byte) {
	n := len(payload)
	s.left--

	copy(dst, s.frame)
	length := s.end - s.l3 + n
	ip, tcp := dst[s.l3:s.l4], dst[s.l4:]
	if s.ipv == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[4:], s.id)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
		s.id++
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(length-ipv6Len))
	}

	binary.BigEndian.PutUint32(tcp[tcpSeq:], s.seq)
	s.seq += uint32(n)
	if !s.first {
		tcp[tcpFlags] &^= flagCWR
	}
	if s.left > 0 {
		tcp[tcpFlags] &^= flagFIN | flagPSH
	}
	s.first = false
	binary.BigEndian.PutUint16(tcp[tcpCheck:], add16(s.partial, uint16(len(tcp)+n)))
	binary.BigEndian.PutUint16(tcp[tcpCheck:], ^foldNet(sum64(payload, sum64(tcp, 0))))
}

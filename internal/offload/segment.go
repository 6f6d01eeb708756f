// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"io"
)

// Bounds of an IP packet, header included. IPv6 does not count its header.
const (
	maxIPv4 = 0xffff
	maxIPv6 = 0xffff + ipv6Len
)

// Segmenter cuts a TCP packet into segments, as the kernel's tcp_gso_segment
// does: each has the packet's headers with the sequence number, the IPv4
// identification and the lengths moved on, FIN and PSH only in the last one,
// CWR only in the first one, and all checksums complete.
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
// The zero Segmenter is one that has nothing left.
type Segmenter struct {
	frame   []byte
	payload []byte // what is not sent yet
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

// Init starts to cut a frame into segments with up to mss octets of payload.
// The frame keeps its VLAN tags, IP options and extension headers in every
// segment; its checksum field holds the sum of the pseudo-header, as in every
// packet with a partial checksum. The Segmenter refers to the frame until it is
// done.
//
// The number of segments is [Segmenter.Left]: the payload over mss, rounded up,
// so up to 65515 if mss is 1, each with all the headers. A packet without
// payload is one segment.
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
	case h.Proto != ProtoTCP || h.L4 == 0 || h.Auth:
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
	// The length is taken out again, rather than the sum made anew, to keep
	// what else the sender put in: behind a routing header, the address that
	// counts is not the one in the IP header.
	s.partial = add16(binary.BigEndian.Uint16(tcp[tcpCheck:]), ^uint16(len(frame)-s.l4))
	if h.IPv == 4 {
		s.id = binary.BigEndian.Uint16(frame[s.l3+4:])
	}
	return nil
}

// Left is the number of segments still to come.
func (s *Segmenter) Left() int { return s.left }

// HeaderLen is the length of the headers of every segment.
func (s *Segmenter) HeaderLen() int { return s.end }

// MaxLen is the length of the longest segment still to come, headers included.
func (s *Segmenter) MaxLen() int { return s.end + min(s.mss, len(s.payload)) }

// Next writes the next segment to dst and returns its length. It fails with
// [io.EOF] after the last one, and with [io.ErrShortBuffer], without moving on,
// if dst has less than [Segmenter.MaxLen] octets.
func (s *Segmenter) Next(dst []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	if len(dst) < s.MaxLen() {
		return 0, io.ErrShortBuffer
	}
	payload, err := s.NextHeader(dst)
	if err != nil {
		return 0, err
	}
	return s.end + copy(dst[s.end:], payload), nil
}

// NextHeader writes only the headers of the next segment to dst, which needs
// [Segmenter.HeaderLen] octets, and returns the payload that follows them,
// which is a part of the frame. Otherwise it is like [Segmenter.Next].
func (s *Segmenter) NextHeader(dst []byte) (payload []byte, err error) {
	if s.left == 0 {
		return nil, io.EOF
	}
	if len(dst) < s.end {
		return nil, io.ErrShortBuffer
	}
	dst = dst[:s.end]
	n := min(s.mss, len(s.payload))
	payload, s.payload = s.payload[:n:n], s.payload[n:]
	s.left--

	copy(dst, s.frame)
	length := s.end - s.l3 + n
	ip, tcp := dst[s.l3:s.l4], dst[s.l4:]
	if s.ipv == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[4:], s.id)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^Sum(ip))
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
	return payload, nil
}

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"hash/crc32"
)

// Complete finishes a partial checksum: it sums the frame from start to its end,
// the pseudo-header's sum in the checksum field included, and stores the result
// at start+offset, as the kernel's skb_checksum_help does. A sum of zero is
// stored as 0xffff, which is the same number and in UDP, unlike zero, is not
// "no checksum".
//
// The frame may come in pieces of any length; the field itself may lie across
// two. Complete fails with [ErrCsumRange], and changes nothing, if the frame
// does not hold the field.
func Complete(start, offset uint16, frame ...[]byte) error {
	if !holds(frame, start, offset, 2) {
		return ErrCsumRange
	}
	var s sum
	skip := int(start)
	for _, p := range frame {
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		s.add(p[skip:])
		skip = 0
	}
	v := ^s.value()
	if v == 0 {
		v = 0xffff
	}
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	store(frame, int(start)+int(offset), b[:])
	return nil
}

// CompleteSCTP stores the CRC32c of the SCTP packet that starts at start and
// reaches to the end of the frame, as the kernel's skb_crc32c_csum_help does.
// SCTP has no Internet checksum: what its field held before does not matter.
func CompleteSCTP(start uint16, frame ...[]byte) error {
	if !holds(frame, start, sctpCheck, 4) {
		return ErrCsumRange
	}
	var b [4]byte
	store(frame, int(start)+sctpCheck, b[:])
	var crc uint32
	table := crc32.MakeTable(crc32.Castagnoli)
	skip := int(start)
	for _, p := range frame {
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		crc = crc32.Update(crc, table, p[skip:])
		skip = 0
	}
	// RFC 9260, appendix A: the one checksum that is sent low octet first.
	binary.LittleEndian.PutUint32(b[:], crc)
	store(frame, int(start)+sctpCheck, b[:])
	return nil
}

// holds reports whether n octets at start+offset lie within the pieces.
func holds(frame [][]byte, start, offset uint16, n int) bool {
	need := int(start) + int(offset) + n
	for _, p := range frame {
		if need <= len(p) {
			return true
		}
		need -= len(p)
	}
	return false
}

// store writes b into the pieces at off.
func store(frame [][]byte, off int, b []byte) {
	for _, p := range frame {
		if off >= len(p) {
			off -= len(p)
			continue
		}
		n := copy(p[off:], b)
		b = b[n:]
		off = 0
	}
}

// PseudoSum is the sum over the pseudo-header of a TCP or UDP packet whose
// header and payload have n octets (RFC 9293, RFC 8200). Like Linux it takes
// the addresses of the IP header, whatever a routing header says.
func PseudoSum(head []byte, h Headers, n int) uint16 {
	var s uint64
	ip := head[h.L3:]
	if h.IPv == 4 {
		s = sum64(ip[12:20], 0)
	} else {
		s = sum64(ip[8:40], 0)
	}
	return add16(foldNet(s), fold(uint64(n)+uint64(h.Proto)))
}

// WritePseudo puts the sum of the pseudo-header into the checksum field of a
// TCP or UDP packet, as if its sender had left the rest of the checksum to
// others. h is what [Parse] made of head and total.
func WritePseudo(head []byte, h Headers, total int) {
	if !h.transport() {
		return
	}
	field := head[int(h.L4)+int(h.csumOffset()):]
	binary.BigEndian.PutUint16(field, PseudoSum(head, h, total-int(h.L4)))
}

// Verify reports whether the checksum of a whole TCP or UDP packet is right. A
// packet of another protocol, a fragment, or one with a bad length field is
// not. UDP over IPv4 without a checksum is.
func Verify(frame []byte, h Headers) bool {
	if !h.transport() {
		return false
	}
	// The frame may be padded; only IP knows where the packet ends.
	ip := frame[h.L3:]
	end := int(h.L3)
	if h.IPv == 4 {
		end += int(binary.BigEndian.Uint16(ip[2:]))
	} else {
		end += ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	}
	if end < int(h.End) || end > len(frame) {
		return false
	}
	packet := frame[h.L4:end]
	if h.Proto == ProtoUDP && binary.BigEndian.Uint16(packet[udpCheck:]) == 0 {
		return h.IPv == 4
	}
	return add16(Sum(packet), PseudoSum(frame, h, len(packet))) == 0xffff
}

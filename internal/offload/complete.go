// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"hash/crc32"
)

// Complete completes a partial checksum: it sums the frame from start to its end,
// including the pseudo-header's sum in the checksum field, and stores the result at
// start+offset, as the kernel's skb_checksum_help does. A sum of zero is stored as
// 0xffff: the same number in one's complement, and not UDP's "no checksum".
//
// The frame may come in pieces of any length; the field may lie across two of them.
// Complete returns [ErrCsumRange], and changes nothing, if the frame does not hold
// the field.
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

// CompleteSCTP stores the CRC32c of the SCTP packet that starts at start and ends
// with the frame, as the kernel's skb_crc32c_csum_help does. The previous content of
// the field does not matter. It returns [ErrCsumRange] as [Complete] does.
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
	// RFC 9260, appendix A: the one checksum that is sent low byte first.
	binary.LittleEndian.PutUint32(b[:], crc)
	store(frame, int(start)+sctpCheck, b[:])
	return nil
}

// holds reports whether n bytes at start+offset lie within the pieces.
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

// pseudoSum returns the sum over the pseudo-header of a TCP or UDP packet with n
// bytes of header and payload (RFC 9293, RFC 8200). Like Linux it uses the addresses
// of the IP header even if there is a routing header.
func pseudoSum(head []byte, h Headers, n int) uint16 {
	var s uint64
	ip := head[h.L3:]
	if h.IPv == 4 {
		s = sum64(ip[12:20], 0)
	} else {
		s = sum64(ip[8:40], 0)
	}
	return add16(foldNet(s), fold(uint64(n)+uint64(h.Proto)))
}

// WritePseudo stores the sum of the pseudo-header in the checksum field of a TCP or
// UDP packet, which makes its checksum partial. h is the result of [Parse] for head
// and total.
func WritePseudo(head []byte, h Headers, total int) {
	if !h.transport() {
		return
	}
	field := head[int(h.L4)+int(h.csumOffset()):]
	binary.BigEndian.PutUint16(field, pseudoSum(head, h, total-int(h.L4)))
}

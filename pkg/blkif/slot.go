// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"encoding/binary"

	"github.com/netbackd/netbackd/pkg/xen"
)

// SlotSize is the size of a [Slot] in bytes: the largest of all protocols.
const SlotSize = 4 * slotWords64

// Slot is a private copy of a slot of a ring, as it is there. With x86_32 the last 4
// bytes are 0.
type Slot [SlotSize]byte

// Offsets of fields in a slot, beside those of operation (0), of the byte and the 16 bits
// that follow it (1, 2). Fields from the id on stand 4 bytes lower with x86_32, whose
// compilers align 64 bits to 4 bytes.
const (
	offID       = 8
	offSector   = 16
	offSegs     = 24
	offNr       = 24 // nr_sectors of a discard
	offHandle   = 24 // of an indirect request
	offGrefs    = 28
	shift32     = 4
	offByte     = 1 // nr_segments, flag or indirect_op
	offHalfword = 2 // handle, or nr_segments of an indirect request
)

// base returns the bytes of s such that the offsets above hold from offID on.
func (s *Slot) base(p Protocol) []byte {
	if p == X8632 {
		return s[:]
	}
	return s[shift32:]
}

var le = binary.LittleEndian

// Op returns the operation of the request in s.
func (s *Slot) Op() Op { return Op(s[0]) }

// ID returns the id of the request in s. It is at the same place for all operations.
func (s *Slot) ID(p Protocol) uint64 { return le.Uint64(s.base(p)[offID-shift32:]) }

// Decode reads the request in s into r. It sets all fields of r and checks none.
func (s *Slot) Decode(p Protocol, r *Request) {
	b := s.base(p)
	*r = Request{
		Op:     Op(s[0]),
		ID:     le.Uint64(b[offID-shift32:]),
		Sector: le.Uint64(b[offSector-shift32:]),
	}
	switch r.Op {
	case OpDiscard:
		r.Flag = s[offByte]
		r.Handle = le.Uint16(s[offHalfword:])
		r.NrSectors = le.Uint64(b[offNr-shift32:])
	case OpIndirect:
		r.Inner = Op(s[offByte])
		r.NrSegments = le.Uint16(s[offHalfword:])
		r.Handle = le.Uint16(b[offHandle-shift32:])
		for i := range r.Grefs {
			r.Grefs[i] = xen.Gref(le.Uint32(b[offGrefs-shift32+4*i:]))
		}
	default:
		r.NrSegments = uint16(s[offByte])
		r.Handle = le.Uint16(s[offHalfword:])
		for i := range min(int(r.NrSegments), MaxDirect) {
			r.Segs[i] = rawSegment(b[offSegs-shift32+segmentSize*i:])
		}
	}
}

// Encode writes r to s, for a frontend. Bytes without a field are 0. It writes what a
// slot can hold: of the number of segments of a request that is not indirect, 8 bits.
func (r *Request) Encode(p Protocol, s *Slot) {
	*s = Slot{}
	b := s.base(p)
	s[0] = byte(r.Op)
	le.PutUint64(b[offID-shift32:], r.ID)
	le.PutUint64(b[offSector-shift32:], r.Sector)
	switch r.Op {
	case OpDiscard:
		s[offByte] = r.Flag
		le.PutUint16(s[offHalfword:], r.Handle)
		le.PutUint64(b[offNr-shift32:], r.NrSectors)
	case OpIndirect:
		s[offByte] = byte(r.Inner)
		le.PutUint16(s[offHalfword:], r.NrSegments)
		le.PutUint16(b[offHandle-shift32:], r.Handle)
		for i, g := range r.Grefs {
			le.PutUint32(b[offGrefs-shift32+4*i:], uint32(g))
		}
	default:
		s[offByte] = byte(r.NrSegments)
		le.PutUint16(s[offHalfword:], r.Handle)
		for i := range min(int(r.NrSegments), MaxDirect) {
			putSegment(b[offSegs-shift32+segmentSize*i:], r.Segs[i])
		}
	}
}

func rawSegment(b []byte) RawSegment {
	v := le.Uint64(b)
	return RawSegment{Gref: xen.Gref(v), First: uint8(v >> 32), Last: uint8(v >> 40)}
}

func putSegment(b []byte, s RawSegment) {
	le.PutUint64(b, uint64(s.Gref)|uint64(s.First)<<32|uint64(s.Last)<<40)
}

// EncodeIndirect writes segments to an indirect page, for a frontend: at most
// [SegmentsPerPage].
func EncodeIndirect(page []byte, segs []RawSegment) {
	for i, s := range segs {
		putSegment(page[segmentSize*i:], s)
	}
}

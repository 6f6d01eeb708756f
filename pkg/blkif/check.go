// SPDX-License-Identifier: Apache-2.0

package blkif

import "github.com/netbackd/netbackd/pkg/xen"

// Limits are the facts that a backend has published of its disk, to which requests must keep.
type Limits struct {
	// Sectors is the size of the disk in units of [SectorSize]. It is less than 2^54.
	Sectors uint64
	// BlockSize is the logical block size of the disk in bytes: a power of two from
	// [SectorSize] to [PageSize]. 0 is SectorSize.
	BlockSize uint16
	// MaxSegments is the largest number of segments of an indirect request, at most
	// [MaxIndirect]. 0 is a backend without indirect requests.
	MaxSegments uint16
	ReadOnly    bool
	Discard     bool // offered
	Secure      bool // secure discard is offered
}

// Segment is a part of a granted page, checked and in bytes: Len is not 0, and Off plus Len is
// at most [PageSize]. Both are multiples of [SectorSize]. Only checks make one.
type Segment struct {
	Gref     xen.Gref
	Off, Len uint16
}

// Extent is a range of a disk in bytes that a check found to be within it.
type Extent struct{ Off, Len int64 }

// End returns the offset of the first byte after e.
func (e Extent) End() int64 { return e.Off + e.Len }

// Check checks the operation of r and its number of segments, which is all that can be
// checked before its indirect pages are copied.
func (r *Request) Check(l *Limits) Reason {
	limit := uint16(MaxDirect)
	switch r.Op {
	case OpRead, OpWrite, OpBarrier, OpFlush:
	case OpDiscard:
		return ReasonNone
	case OpIndirect:
		if l.MaxSegments == 0 {
			return ReasonNotOffered
		}
		if r.Inner != OpRead && r.Inner != OpWrite {
			return ReasonInnerOp
		}
		limit = min(l.MaxSegments, MaxIndirect)
	default:
		return ReasonUnknownOp
	}
	if r.NrSegments == 0 && r.Op != OpBarrier && r.Op != OpFlush {
		return ReasonNoSegments
	}
	if r.NrSegments > limit {
		return ReasonTooManySegments
	}
	return ReasonNone
}

// Check checks s and returns it in bytes.
func (s RawSegment) Check() (Segment, Reason) {
	if s.Last >= pageSectors {
		return Segment{}, ReasonLastSector
	}
	if s.First > s.Last {
		return Segment{}, ReasonSectorOrder
	}
	return Segment{
		Gref: s.Gref,
		Off:  uint16(s.First) * SectorSize,
		Len:  uint16(s.Last-s.First+1) * SectorSize,
	}, ReasonNone
}

// Direct checks the segments in the slot of r, which has passed [Request.Check], and stores
// them to dst. It returns their number: 0 for a discard or an indirect request. dst has
// room for [MaxDirect].
func (r *Request) Direct(dst []Segment) (n int, reason Reason) {
	if r.Op == OpDiscard || r.Op == OpIndirect {
		return 0, ReasonNone
	}
	n = min(int(r.NrSegments), MaxDirect)
	for i := range n {
		if dst[i], reason = r.Segs[i].Check(); reason != ReasonNone {
			return 0, reason
		}
	}
	return n, ReasonNone
}

// DecodeIndirect checks the first segments of an indirect page and stores them to dst, as
// many as it has room for. The page is a copy: the frontend can change its own at any time.
// dst may be in the memory of the page, at its start: a [Segment] takes the place of the
// [RawSegment] that it was made of.
func DecodeIndirect(page []byte, dst []Segment) (reason Reason) {
	for i := range dst {
		if dst[i], reason = rawSegment(page[segmentSize*i:]).Check(); reason != ReasonNone {
			return reason
		}
	}
	return ReasonNone
}

// Place checks where r, with these segments, goes on the disk: write protection, range and
// alignment. It is the last check before work begins. The extent of a flush or barrier
// without segments is empty.
func (r *Request) Place(l *Limits, segs []Segment) (Extent, Reason) {
	if l.ReadOnly && r.Operation() != OpRead {
		return Extent{}, ReasonReadOnly
	}
	n, odd := r.NrSectors, r.NrSectors
	if r.Op != OpDiscard {
		n, odd = 0, 0
		for i := range segs {
			n += uint64(segs[i].Len / SectorSize)
			odd |= uint64(segs[i].Len / SectorSize)
		}
		if n == 0 {
			return Extent{}, ReasonNone
		}
	}
	end := r.Sector + n
	if end < r.Sector {
		return Extent{}, ReasonWrap
	}
	if end > l.Sectors {
		return Extent{}, ReasonBeyondEnd
	}
	if mask := uint64(max(l.BlockSize, SectorSize)/SectorSize - 1); (r.Sector|odd)&mask != 0 {
		return Extent{}, ReasonMisaligned
	}
	if r.Op == OpDiscard {
		if !l.Discard {
			return Extent{}, ReasonNotOffered
		}
		if n == 0 {
			return Extent{}, ReasonNoSectors
		}
	}
	return Extent{Off: int64(r.Sector) * SectorSize, Len: int64(n) * SectorSize}, ReasonNone
}

// Secure reports whether the data of a discard must not be recoverable: the frontend asks
// for it, and the backend offers it. Without the offer the flag is ignored, as blkif.h
// has it.
func (r *Request) Secure(l *Limits) bool {
	return r.Op == OpDiscard && r.Flag&DiscardSecure != 0 && l.Secure
}

// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"fmt"
	"structs"

	"github.com/netbackd/netbackd/pkg/xen"
)

// PageSize is the size of a page of a ring, of an indirect page and of a granted
// buffer. It is part of the protocol and does not depend on the page size of a kernel.
const PageSize = 4096

// SectorSize is the unit of sector numbers in requests and in segments, for
// disks of any logical block size.
const SectorSize = 512

const pageSectors = PageSize / SectorSize

// Limits of blkif.h.
const (
	// MaxDirect is the number of segments in a slot (BLKIF_MAX_SEGMENTS_PER_REQUEST).
	MaxDirect = 11
	// MaxIndirectPages is the number of indirect pages of a request
	// (BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST).
	MaxIndirectPages = 8
	// SegmentsPerPage is the number of segments in an indirect page.
	SegmentsPerPage = PageSize / segmentSize
	// MaxIndirect is the number of segments in all indirect pages of a request. A
	// backend must not publish more.
	MaxIndirect = MaxIndirectPages * SegmentsPerPage
	// MaxOrder is the largest order of a ring, 16 pages, that backends publish.
	MaxOrder = 4
)

const segmentSize = 8

// Op is a BLKIF_OP_ value.
type Op uint8

// Operations of a request.
const (
	OpRead     Op = 0 // BLKIF_OP_READ
	OpWrite    Op = 1 // BLKIF_OP_WRITE
	OpBarrier  Op = 2 // BLKIF_OP_WRITE_BARRIER
	OpFlush    Op = 3 // BLKIF_OP_FLUSH_DISKCACHE
	OpReserved Op = 4 // BLKIF_OP_RESERVED_1: of SLES, not served
	OpDiscard  Op = 5 // BLKIF_OP_DISCARD
	OpIndirect Op = 6 // BLKIF_OP_INDIRECT
)

var opNames = [...]string{"read", "write", "barrier", "flush", "reserved", "discard", "indirect"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("unknown(%d)", uint8(o))
}

// Status is a BLKIF_RSP_ value.
type Status int16

// Statuses of a response.
const (
	StatusOkay         Status = 0  // BLKIF_RSP_OKAY
	StatusError        Status = -1 // BLKIF_RSP_ERROR
	StatusNotSupported Status = -2 // BLKIF_RSP_EOPNOTSUPP: the frontend stops using the operation
)

func (s Status) String() string {
	switch s {
	case StatusOkay:
		return "okay"
	case StatusError:
		return "error"
	case StatusNotSupported:
		return "not-supported"
	}
	return fmt.Sprintf("unknown(%d)", int16(s))
}

// DiscardSecure is the flag of a discard whose data must not be recoverable
// (BLKIF_DISCARD_SECURE). It is ignored by a backend without discard-secure.
const DiscardSecure = 1 << 0

// Bits of the backend's key "info" (VDISK_ of blkif.h).
const (
	InfoCDROM     = 1 << 0
	InfoRemovable = 1 << 1
	InfoReadOnly  = 1 << 2
)

// RawSegment is struct blkif_request_segment as the frontend wrote it, unchecked: the
// sectors First to Last, both included, of a granted page. 8 bytes, in a slot and in an
// indirect page alike.
type RawSegment struct {
	_           structs.HostLayout
	Gref        xen.Gref
	First, Last uint8
	_           uint16
}

// Request is a request as the frontend wrote it, unchecked. It belongs to the caller and
// has the fields of all kinds; those of other kinds are 0.
type Request struct {
	Op         Op
	Inner      Op     // indirect: read or write
	Flag       uint8  // discard
	Handle     uint16 // backends do not use it
	NrSegments uint16 // all but discard
	ID         uint64 // echoed in the response
	Sector     uint64
	NrSectors  uint64 // discard
	// Segs are the segments of a request that is neither a discard nor indirect: the
	// first NrSegments of them, if there are so many.
	Segs [MaxDirect]RawSegment
	// Grefs are the indirect pages, in the order of their segments.
	Grefs [MaxIndirectPages]xen.Gref
}

// Operation returns what r asks for: the inner operation of an indirect request. Responses
// have it too. It is not checked.
func (r *Request) Operation() Op {
	if r.Op == OpIndirect {
		return r.Inner
	}
	return r.Op
}

// IsBarrier reports whether r is carried out as a write barrier: it is one, or it is a flush
// with segments. Frontends send flushes without; other backends flush and then write the
// segments, which a barrier does too. Its response has the operation of r.
func (r *Request) IsBarrier() bool {
	return r.Op == OpBarrier || r.Op == OpFlush && r.NrSegments > 0
}

// Response returns the response to r. Its operation is the inner one of an indirect
// request: for any other, Linux's frontend gives up the disk.
func (r *Request) Response(s Status) Response {
	return Response{ID: r.ID, Op: r.Operation(), Status: s}
}

// IndirectPages returns the number of indirect pages that r uses, 0 if it is not
// indirect. It is at most [MaxIndirectPages] once r is checked.
func (r *Request) IndirectPages() int {
	if r.Op != OpIndirect {
		return 0
	}
	return (int(r.NrSegments) + SegmentsPerPage - 1) / SegmentsPerPage
}

// IndirectSegments returns the number of segments in indirect page i of r: these are its
// first bytes, [IndirectBytes] of that number.
func (r *Request) IndirectSegments(i int) int {
	return max(0, min(int(r.NrSegments)-i*SegmentsPerPage, SegmentsPerPage))
}

// IndirectBytes returns the number of bytes that n segments take in an indirect page.
func IndirectBytes(n int) int { return n * segmentSize }

// Response is struct blkif_response.
type Response struct {
	ID     uint64
	Op     Op
	Status Status
}

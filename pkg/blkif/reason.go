// SPDX-License-Identifier: Apache-2.0

package blkif

import "fmt"

// Reason says which rule a frontend broke. Reasons are small numbers, so that a program
// can count them in an array of [Reasons] elements. A Reason is an error too.
type Reason uint8

// What a frontend can do wrong, in the order in which it is found.
const (
	// ReasonNone: nothing is wrong.
	ReasonNone Reason = iota
	// ReasonOverrun: req_prod is more than a ring ahead of the last response, or behind
	// the requests consumed. The ring stops for good.
	ReasonOverrun
	// ReasonUnknownOp: the operation does not exist.
	ReasonUnknownOp
	// ReasonNotOffered: an indirect request or a discard without its feature.
	ReasonNotOffered
	// ReasonInnerOp: an indirect request is neither a read nor a write.
	ReasonInnerOp
	// ReasonNoSegments: a read or write, indirect or not, has no segments.
	ReasonNoSegments
	// ReasonTooManySegments: more segments than a slot has, or than the backend
	// published for indirect requests.
	ReasonTooManySegments
	// ReasonIndirectGrant: an indirect page could not be copied.
	ReasonIndirectGrant
	// ReasonLastSector: the last sector of a segment is not in the page.
	ReasonLastSector
	// ReasonSectorOrder: the last sector of a segment is before its first.
	ReasonSectorOrder
	// ReasonReadOnly: the disk is read-only, and the operation is not a read.
	ReasonReadOnly
	// ReasonWrap: sector plus length is 2^64 or more.
	ReasonWrap
	// ReasonBeyondEnd: the request goes beyond the end of the disk.
	ReasonBeyondEnd
	// ReasonMisaligned: a sector number or length is not a multiple of the logical
	// block size.
	ReasonMisaligned
	// ReasonNoSectors: a discard has no sectors.
	ReasonNoSectors
	// ReasonGrant: a page of a segment could not be copied or mapped.
	ReasonGrant

	// Reasons is the number of reasons, ReasonNone included.
	Reasons = int(iota)
)

// reasons is the table that data path, journal, status and documents use.
var reasons = [Reasons]struct {
	status  Status
	counter string
	text    string
}{
	ReasonNone:            {StatusOkay, "none", "no error"},
	ReasonOverrun:         {StatusError, "ring_overrun", "req_prod is out of bounds"},
	ReasonUnknownOp:       {StatusNotSupported, "unknown_op", "the operation is unknown"},
	ReasonNotOffered:      {StatusNotSupported, "not_offered", "the operation is not offered"},
	ReasonInnerOp:         {StatusError, "inner_op", "an indirect request is neither a read nor a write"},
	ReasonNoSegments:      {StatusError, "no_segments", "a read or write has no segments"},
	ReasonTooManySegments: {StatusError, "too_many_segments", "a request has too many segments"},
	ReasonIndirectGrant:   {StatusError, "indirect_grant", "an indirect page cannot be copied"},
	ReasonLastSector:      {StatusError, "last_sector", "a segment goes beyond its page"},
	ReasonSectorOrder:     {StatusError, "sector_order", "a segment ends before its first sector"},
	ReasonReadOnly:        {StatusError, "read_only", "the disk is read-only"},
	ReasonWrap:            {StatusError, "sector_wrap", "the sum of sector and length wraps"},
	ReasonBeyondEnd:       {StatusError, "beyond_end", "the request goes beyond the end of the disk"},
	ReasonMisaligned:      {StatusError, "misaligned", "the request is not aligned to the logical block size"},
	ReasonNoSectors:       {StatusError, "no_sectors", "a discard has no sectors"},
	ReasonGrant:           {StatusError, "grant", "a page of a segment cannot be used"},
}

// ErrOverrun is the error of a ring whose req_prod is out of bounds. The indices no longer
// tell which slots belong to which end.
var ErrOverrun error = ReasonOverrun

// Status returns the status of the response. A ring that overran has no responses.
func (r Reason) Status() Status {
	if int(r) < Reasons {
		return reasons[r].status
	}
	return StatusError
}

// String returns the name of a counter for r: lower case, with underscores.
func (r Reason) String() string {
	if int(r) < Reasons {
		return reasons[r].counter
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

// Error returns a text for people.
func (r Reason) Error() string {
	if int(r) < Reasons {
		return reasons[r].text
	}
	return r.String()
}

// Fatal reports whether the ring must not be served any more.
func (r Reason) Fatal() bool { return r == ReasonOverrun }

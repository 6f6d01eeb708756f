// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"time"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Request is a request to submit. Nothing of it is checked: an invalid one goes to the
// backend as it is.
type Request struct {
	Op     blkif.Op // OpIndirect is chosen by Indirect
	Sector uint64   // in units of 512 bytes
	Segs   []Segment
	// Indirect puts the segments into indirect pages; a request of more than 11 has them
	// there in any case.
	Indirect  bool
	NrSectors uint64 // of a discard
	Flag      uint8  // of a discard
	// User comes back in the answer.
	User uint64
}

// Segment is a part of a page: the sectors First to Last, both included.
type Segment struct {
	Gref        xen.Gref
	First, Last uint8
}

// Whole makes segments of whole pages.
func Whole(pages []Page) []Segment {
	s := make([]Segment, len(pages))
	for i, p := range pages {
		s[i] = Segment{p.Gref, 0, 7}
	}
	return s
}

// Sectors returns the number of sectors in segments.
func Sectors(segs []Segment) (n int) {
	for _, s := range segs {
		n += int(s.Last) - int(s.First) + 1
	}
	return n
}

// Answer is the answer to a request.
type Answer struct {
	ID     uint64
	Op     blkif.Op // as in the response
	Status blkif.Status
	User   uint64
	Took   time.Duration // from Submit to Poll
}

// pending is a request without an answer.
type pending struct {
	live     bool
	id       uint64
	op       blkif.Op // that the response has to have
	user     uint64
	sent     time.Time
	slot     blkif.Index // in the ring
	indirect []Page
	grefs    []xen.Gref // of segments, if they are checked when the answer comes
}

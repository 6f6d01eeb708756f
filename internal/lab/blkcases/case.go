// SPDX-License-Identifier: Apache-2.0

package blkcases

import (
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Disk is the kind of disk that a case needs.
type Disk uint8

// Kinds of disk.
const (
	Plain    Disk = iota // writable, blocks of 512 bytes, discard and indirect requests offered
	ReadOnly             // the same, read-only
	Blocks4K             // writable, logical blocks of 4 KiB
	Bare                 // writable, without discard and without indirect requests
)

func (d Disk) String() string {
	return [...]string{"plain", "read-only", "4 KiB blocks", "bare"}[d]
}

// Fits reports whether a disk with these limits is of this kind.
func (d Disk) Fits(l *blkif.Limits) bool {
	full := l.Discard && l.MaxSegments > 0
	switch d {
	case ReadOnly:
		return l.ReadOnly && l.MaxSegments > 0
	case Blocks4K:
		return !l.ReadOnly && l.BlockSize == 4096 && full
	case Bare:
		return !l.ReadOnly && !l.Discard && l.MaxSegments == 0
	}
	return !l.ReadOnly && l.BlockSize <= 512 && full
}

// MinSectors is the size of the smallest disk that the cases can be played on, in sectors.
const MinSectors = 1024

// DataPages is the number of pages in [World.Pages].
const DataPages = 12

// Page is a page of the guest.
type Page struct {
	Gref xen.Gref
	Mem  []byte
}

// World holds the limits, pages and grefs that the requests of cases use.
type World struct {
	Limits   blkif.Limits
	Pages    []Page // granted to the backend, for reading and writing
	Const    Page   // granted to the backend for reading only
	Foreign  Page   // granted to another domain
	Freed    xen.Gref
	Indirect []Page // granted to the backend, as many as a request can have
}

// Shot is a request, ready to be put into a ring.
type Shot struct {
	Request blkif.Request
	// Segs are the segments, direct or indirect.
	Segs []blkif.RawSegment
	// Edit, if not nil, changes the slot after all else.
	Edit func(*blkif.Slot)
}

// Case is one request that a frontend makes.
type Case struct {
	Name string
	Disk Disk
	// Want is why the request is refused; ReasonNone: it is served.
	Want blkif.Reason
	Make func(*World) Shot
	// AnyData leaves out the check of what a read brings.
	AnyData bool
	// Flip, if not nil, changes the guest's pages over and over while the request is
	// made many times: to what Make made, and to something else. Each may be served or
	// be refused.
	Flip func(w *World, other bool)
	// Overrun writes this number of slots beyond the ring to req_prod instead of a
	// request. The ring stops for good.
	Overrun int32
}

// start is the sector of most requests.
const start = 64

func whole(pages ...Page) (s []blkif.RawSegment) {
	for _, p := range pages {
		s = append(s, blkif.RawSegment{Gref: p.Gref, Last: 7})
	}
	return s
}

func segment(g xen.Gref, first, last uint8) []blkif.RawSegment {
	return []blkif.RawSegment{{Gref: g, First: first, Last: last}}
}

// repeat returns n segments of one sector each, of all data pages.
func repeat(w *World, n int) (s []blkif.RawSegment) {
	for i := range n {
		k := uint8(i / DataPages % 8)
		s = append(s, blkif.RawSegment{Gref: w.Pages[i%DataPages].Gref, First: k, Last: k})
	}
	return s
}

// direct makes a request with the segments in its slot.
func direct(op blkif.Op, sector uint64, segs []blkif.RawSegment) Shot {
	r := blkif.Request{Op: op, Sector: sector, NrSegments: uint16(len(segs))}
	copy(r.Segs[:], segs)
	return Shot{Request: r, Segs: segs}
}

// indirect makes an indirect request, and writes its indirect pages.
func indirect(w *World, op blkif.Op, sector uint64, segs []blkif.RawSegment) Shot {
	r := blkif.Request{Op: blkif.OpIndirect, Inner: op, Sector: sector, NrSegments: uint16(len(segs))}
	for i, p := range w.Indirect {
		r.Grefs[i] = p.Gref
		from := min(len(segs), i*blkif.SegmentsPerPage)
		blkif.EncodeIndirect(p.Mem, segs[from:min(len(segs), from+blkif.SegmentsPerPage)])
	}
	return Shot{Request: r, Segs: segs}
}

func discard(sector, n uint64) Shot {
	return Shot{Request: blkif.Request{Op: blkif.OpDiscard, Sector: sector, NrSectors: n}}
}

// Sectors returns the number of sectors that the request of s has on the disk, if it is
// served.
func (s *Shot) Sectors() (n uint64) {
	if s.Request.Op == blkif.OpDiscard {
		return s.Request.NrSectors
	}
	for _, g := range s.Segs {
		n += uint64(g.Last) - uint64(g.First) + 1
	}
	return n
}

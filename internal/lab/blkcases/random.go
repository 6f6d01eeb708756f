// SPDX-License-Identifier: Apache-2.0

package blkcases

import (
	"fmt"
	"math/rand/v2"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Random makes a case of a random request to a disk of any kind: most are served, and the
// others break one rule or several. What it wants is worked out here, from the text of
// blkif.h and the order of xen-blkback's checks, and not with the code of a backend.
func Random(rnd *rand.Rand, w *World) Case {
	op := pick(rnd, read, read, read, write, write, write, barrier, flush, blkif.OpDiscard, blkif.OpIndirect, blkif.Op(rnd.Uint32()))
	var s Shot
	switch {
	case op == blkif.OpDiscard:
		s = discard(randomSector(rnd, w), pick(rnd, 0, 1, 8, uint64(rnd.IntN(300)), 1<<63, rnd.Uint64()))
		s.Request.Flag = uint8(rnd.Uint32())
	case op == blkif.OpIndirect || op <= write && rnd.IntN(2) == 0:
		most := int(w.Limits.MaxSegments)
		n := pick(rnd, rnd.IntN(14), rnd.IntN(14), rnd.IntN(100), 512, most, most+1, int(rnd.Uint32()>>16))
		if op == blkif.OpIndirect {
			op = blkif.Op(rnd.IntN(9))
		}
		s = indirect(w, op, randomSector(rnd, w), randomSegments(rnd, w, n))
		if rnd.IntN(20) == 0 {
			s.Request.Grefs[rnd.IntN(2)] = pick(rnd, w.Freed, w.Foreign.Gref)
		}
	default:
		n := pick(rnd, 0, 1, 1+rnd.IntN(blkif.MaxDirect), 1+rnd.IntN(blkif.MaxDirect), blkif.MaxDirect, rnd.IntN(256))
		s = direct(op, randomSector(rnd, w), randomSegments(rnd, w, min(n, blkif.MaxDirect)))
		s.Request.NrSegments = uint16(n)
	}
	want := expect(w, &s)
	return Case{
		Name: fmt.Sprintf("%v %v at %d of %d segments %v, discard %d", s.Request.Op, s.Request.Operation(),
			s.Request.Sector, s.Request.NrSegments, s.Segs[:min(len(s.Segs), 16)], s.Request.NrSectors),
		Want: want, AnyData: twice(s.Segs), Make: func(*World) Shot {
			if s.Request.Op == blkif.OpIndirect { // the pages were filled since
				for i, p := range w.Indirect {
					from := min(len(s.Segs), i*blkif.SegmentsPerPage)
					blkif.EncodeIndirect(p.Mem, s.Segs[from:min(len(s.Segs), from+blkif.SegmentsPerPage)])
				}
			}
			return s
		},
	}
}

func pick[T any](rnd *rand.Rand, of ...T) T { return of[rnd.IntN(len(of))] }

// randomSector returns a sector, most often one from which small requests are within the disk.
func randomSector(rnd *rand.Rand, w *World) uint64 {
	n := w.Limits.Sectors
	at := rnd.Uint64N(n)
	if rnd.IntN(4) != 0 {
		at &^= 7 // so that disks with large blocks serve some
	}
	return pick(rnd, at, at, at, at/2, at/2, at/2, 0, n-8, n-1, n, n+rnd.Uint64N(100), -uint64(1+rnd.IntN(100)), rnd.Uint64())
}

// randomSegments returns n segments. Now and then there is a bad one.
func randomSegments(rnd *rand.Rand, w *World, n int) []blkif.RawSegment {
	segs := make([]blkif.RawSegment, n)
	wholePages, spoilt := rnd.IntN(2) == 0, rnd.IntN(4) == 0
	for i := range segs {
		g := blkif.RawSegment{Gref: w.Pages[i%DataPages].Gref, Last: 7}
		if !wholePages {
			g.First = uint8(rnd.IntN(8))
			g.Last = g.First + uint8(rnd.IntN(8-int(g.First)))
		}
		segs[i] = g
	}
	if spoilt && n > 0 {
		g := &segs[rnd.IntN(n)]
		switch rnd.IntN(4) {
		case 0:
			g.First, g.Last = uint8(rnd.Uint32()), uint8(rnd.Uint32())
		case 1:
			g.Last = 8
		default:
			g.Gref = pick(rnd, w.Freed, w.Foreign.Gref, w.Const.Gref, xen.Gref(0xffffffff))
		}
	}
	return segs
}

// twice reports whether two segments have a sector of a page in common.
func twice(segs []blkif.RawSegment) bool {
	seen := map[xen.Gref]uint8{}
	for _, s := range segs {
		var bits uint8
		for k := int(s.First); k <= int(s.Last) && k < 8; k++ {
			bits |= 1 << k
		}
		if seen[s.Gref]&bits != 0 {
			return true
		}
		seen[s.Gref] |= bits
	}
	return false
}

// expect returns the first rule that a request breaks.
func expect(w *World, s *Shot) blkif.Reason {
	r, l := &s.Request, &w.Limits
	op, most := r.Op, uint16(blkif.MaxDirect)
	switch {
	case op == blkif.OpIndirect && l.MaxSegments == 0:
		return blkif.ReasonNotOffered
	case op == blkif.OpIndirect:
		op, most = r.Inner, l.MaxSegments
		if op != read && op != write {
			return blkif.ReasonInnerOp
		}
	case op == blkif.OpReserved || op > blkif.OpIndirect:
		return blkif.ReasonUnknownOp
	}
	sectors, odd := r.NrSectors, r.NrSectors
	if op != blkif.OpDiscard {
		if r.NrSegments == 0 && (op == read || op == write) {
			return blkif.ReasonNoSegments
		}
		if r.NrSegments > most {
			return blkif.ReasonTooManySegments
		}
		if reason := expectPages(w, s); reason != blkif.ReasonNone {
			return reason
		}
		sectors, odd = 0, 0
		for _, g := range s.Segs {
			if g.Last > 7 {
				return blkif.ReasonLastSector
			}
			if g.Last < g.First {
				return blkif.ReasonSectorOrder
			}
			sectors += uint64(g.Last-g.First) + 1
			odd |= uint64(g.Last-g.First) + 1
		}
	}
	if l.ReadOnly && op != read {
		return blkif.ReasonReadOnly
	}
	if sectors > 0 || op == blkif.OpDiscard {
		if r.Sector > ^uint64(0)-sectors {
			return blkif.ReasonWrap
		}
		if !inside(l, r.Sector, sectors) {
			return blkif.ReasonBeyondEnd
		}
		if misfits(l, r.Sector|odd) {
			return blkif.ReasonMisaligned
		}
	}
	if op == blkif.OpDiscard && !l.Discard {
		return blkif.ReasonNotOffered
	}
	if op == blkif.OpDiscard && sectors == 0 {
		return blkif.ReasonNoSectors
	}
	for _, g := range s.Segs {
		if !granted(w, g.Gref) || op == read && g.Gref == w.Const.Gref {
			return blkif.ReasonGrant
		}
	}
	return blkif.ReasonNone
}

// expectPages returns what is wrong with the indirect pages that a request uses.
func expectPages(w *World, s *Shot) blkif.Reason {
	if s.Request.Op != blkif.OpIndirect {
		return blkif.ReasonNone
	}
	for i := 0; i*512 < int(s.Request.NrSegments) && i < len(s.Request.Grefs); i++ {
		if !granted(w, s.Request.Grefs[i]) {
			return blkif.ReasonIndirectGrant
		}
	}
	return blkif.ReasonNone
}

func inside(l *blkif.Limits, sector, n uint64) bool {
	return sector <= l.Sectors && n <= l.Sectors-sector
}

func misfits(l *blkif.Limits, bits uint64) bool {
	return l.BlockSize > 512 && bits%uint64(l.BlockSize/512) != 0
}

// granted reports whether the backend may read a page.
func granted(w *World, g xen.Gref) bool {
	return g != w.Freed && g != w.Foreign.Gref && g != 0xffffffff
}

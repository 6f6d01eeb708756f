// SPDX-License-Identifier: Apache-2.0

package blkcases

import (
	"slices"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// All returns every case, those that end a ring last.
func All() []Case {
	return slices.Concat(served, operations, counts, segments, indirectPages, ranges, readOnly, blocks, bare, grants, races, overruns)
}

const (
	read    = blkif.OpRead
	write   = blkif.OpWrite
	barrier = blkif.OpBarrier
	flush   = blkif.OpFlush
)

// served are requests that are odd and legal.
var served = []Case{
	{Name: "write of one sector", Make: func(w *World) Shot { return direct(write, start, segment(w.Pages[0].Gref, 3, 3)) }},
	{Name: "read of one sector", Make: func(w *World) Shot { return direct(read, start, segment(w.Pages[0].Gref, 3, 3)) }},
	{Name: "write of eleven pages", Make: func(w *World) Shot { return direct(write, start+1, whole(w.Pages[:11]...)) }},
	{Name: "read of eleven pages", Make: func(w *World) Shot { return direct(read, start+1, whole(w.Pages[:11]...)) }},
	{Name: "flush without segments", Make: func(w *World) Shot { return direct(flush, 0, nil) }},
	{Name: "flush with a sector number beyond the end", Make: func(w *World) Shot { return direct(flush, 1<<60, nil) }},
	{Name: "flush with data", Make: func(w *World) Shot { return direct(flush, start, whole(w.Pages[0])) }},
	{Name: "barrier without segments", Make: func(w *World) Shot { return direct(barrier, 0, nil) }},
	{Name: "barrier with data", Make: func(w *World) Shot { return direct(barrier, start, whole(w.Pages[1])) }},
	{Name: "one gref in all segments of a write", Make: func(w *World) Shot {
		p := w.Pages[0]
		return direct(write, start, whole(p, p, p, p, p, p, p, p, p, p, p))
	}},
	{Name: "one gref in all segments of a read", AnyData: true, Make: func(w *World) Shot {
		p := w.Pages[0]
		return direct(read, start, whole(p, p, p, p, p, p, p, p, p, p, p))
	}},
	{Name: "last sector of the disk", Make: func(w *World) Shot {
		return direct(write, w.Limits.Sectors-1, segment(w.Pages[2].Gref, 7, 7))
	}},
	{Name: "handle of another device", Make: func(w *World) Shot {
		s := direct(read, start, whole(w.Pages[0]))
		s.Request.Handle = 0xffff
		return s
	}},
	{Name: "padding is not 0", Make: func(w *World) Shot {
		s := direct(write, start, whole(w.Pages[0]))
		s.Edit = func(b *blkif.Slot) {
			for i := 40; i < 104; i++ {
				b[i] = 0xff // no segment is there
			}
		}
		return s
	}},
	{Name: "discard", Make: func(w *World) Shot { return discard(start, 64) }},
	{Name: "discard of one sector at the end", Make: func(w *World) Shot { return discard(w.Limits.Sectors-1, 1) }},
	{Name: "discard with unknown flags", Make: func(w *World) Shot {
		s := discard(start, 8)
		s.Request.Flag = 0xfe
		return s
	}},
	{Name: "indirect write of one segment", Make: func(w *World) Shot { return indirect(w, write, start, segment(w.Pages[0].Gref, 1, 2)) }},
	{Name: "indirect read of one segment", Make: func(w *World) Shot { return indirect(w, read, start, segment(w.Pages[0].Gref, 1, 2)) }},
	{Name: "indirect write of all segments", Make: func(w *World) Shot { return indirect(w, write, start, repeat(w, most(w))) }},
	{Name: "indirect read of all segments", AnyData: true, Make: func(w *World) Shot { return indirect(w, read, start, repeat(w, most(w))) }},
	{Name: "indirect request without the grefs that it does not use", Make: func(w *World) Shot {
		s := indirect(w, read, start, whole(w.Pages[:12]...))
		for i := range s.Request.Grefs[1:] {
			s.Request.Grefs[1+i] = w.Freed
		}
		return s
	}},
	{Name: "indirect page is data, too", Make: func(w *World) Shot {
		return indirect(w, write, start, whole(w.Indirect[0], w.Pages[1]))
	}},
	{Name: "one gref for all indirect pages", Make: func(w *World) Shot {
		s := indirect(w, read, start, whole(w.Pages[0]))
		for i := range s.Request.Grefs {
			s.Request.Grefs[i] = w.Indirect[0].Gref
		}
		return s
	}},
}

// most returns the largest number of segments of one sector that the backend and the disk
// have room for.
func most(w *World) int { return int(min(uint64(w.Limits.MaxSegments), w.Limits.Sectors-start)) }

// operations are requests of operations that do not exist, or not there.
var operations = []Case{
	unknown("operation 4, reserved", 4), unknown("operation 7", 7), unknown("operation 255", 255),
	inner("barrier in indirect", barrier), inner("flush in indirect", flush), inner("operation 4 in indirect", 4),
	inner("discard in indirect", blkif.OpDiscard), inner("indirect in indirect", blkif.OpIndirect), inner("operation 255 in indirect", 255),
}

func unknown(name string, op blkif.Op) Case {
	return Case{Name: name, Want: blkif.ReasonUnknownOp, Make: func(w *World) Shot { return direct(op, start, whole(w.Pages[0])) }}
}

func inner(name string, op blkif.Op) Case {
	return Case{Name: name, Want: blkif.ReasonInnerOp, Make: func(w *World) Shot { return indirect(w, op, start, whole(w.Pages[0])) }}
}

// counts are requests with a number of segments that is out of bounds.
var counts = []Case{
	{Name: "read without segments", Want: blkif.ReasonNoSegments, Make: func(w *World) Shot { return direct(read, start, nil) }},
	{Name: "write without segments", Want: blkif.ReasonNoSegments, Make: func(w *World) Shot { return direct(write, start, nil) }},
	{Name: "indirect read without segments", Want: blkif.ReasonNoSegments, Make: func(w *World) Shot { return indirect(w, read, start, nil) }},
	tooMany("read of 12 segments", read, 12), tooMany("write of 255 segments", write, 255),
	tooMany("barrier of 12 segments", barrier, 12), tooMany("flush of 12 segments", flush, 12),
	{Name: "indirect read of one segment more than published", Want: blkif.ReasonTooManySegments, Make: func(w *World) Shot {
		return indirect(w, read, start, repeat(w, int(w.Limits.MaxSegments)+1))
	}},
	{Name: "indirect write of 65535 segments", Want: blkif.ReasonTooManySegments, Make: func(w *World) Shot {
		return indirect(w, write, start, repeat(w, 65535))
	}},
}

func tooMany(name string, op blkif.Op, n uint16) Case {
	return Case{Name: name, Want: blkif.ReasonTooManySegments, Make: func(w *World) Shot {
		s := direct(op, start, repeat(w, blkif.MaxDirect))
		s.Request.NrSegments = n
		return s
	}}
}

// segments are requests with a segment that is not within its page.
var segments = []Case{
	bad("last sector 8", blkif.ReasonLastSector, 0, 8), bad("last sector 255", blkif.ReasonLastSector, 0, 255),
	bad("first and last sector 8", blkif.ReasonLastSector, 8, 8), bad("last sector before the first", blkif.ReasonSectorOrder, 5, 4),
	bad("first sector 255", blkif.ReasonSectorOrder, 255, 0),
	{Name: "bad segment after ten good ones", Want: blkif.ReasonSectorOrder, Make: func(w *World) Shot {
		return direct(write, start, append(whole(w.Pages[:10]...), segment(w.Pages[10].Gref, 7, 6)...))
	}},
	{Name: "flush with a bad segment", Want: blkif.ReasonLastSector, Make: func(w *World) Shot {
		return direct(flush, start, segment(w.Pages[0].Gref, 0, 9))
	}},
}

func bad(name string, want blkif.Reason, first, last uint8) Case {
	return Case{Name: name, Want: want, Make: func(w *World) Shot { return direct(write, start, segment(w.Pages[0].Gref, first, last)) }}
}

// indirectPages are requests whose indirect pages have a bad segment, or cannot be copied.
var indirectPages = []Case{
	badAt("first segment of an indirect page beyond the page", blkif.ReasonLastSector, 0, 0, 8),
	badAt("last segment of an indirect request ends before its first sector", blkif.ReasonSectorOrder, -1, 4, 3),
	badAt("a segment in the middle of an indirect request has last sector 255", blkif.ReasonLastSector, 5, 255, 255),
	{Name: "gref of the indirect page was freed", Want: blkif.ReasonIndirectGrant, Make: func(w *World) Shot {
		s := indirect(w, write, start, whole(w.Pages...))
		s.Request.Grefs[0] = w.Freed
		return s
	}},
	{Name: "gref of the indirect page is 0xffffffff", Want: blkif.ReasonIndirectGrant, Make: func(w *World) Shot {
		s := indirect(w, read, start, whole(w.Pages...))
		s.Request.Grefs[0] = 0xffffffff
		return s
	}},
	{Name: "indirect page of another domain", Want: blkif.ReasonIndirectGrant, Make: func(w *World) Shot {
		s := indirect(w, write, start, whole(w.Pages...))
		s.Request.Grefs[0] = w.Foreign.Gref
		return s
	}},
	{Name: "indirect page that the backend may only read", Make: func(w *World) Shot {
		segs := whole(w.Pages...)
		s := indirect(w, write, start, segs)
		blkif.EncodeIndirect(w.Const.Mem, segs)
		s.Request.Grefs[0] = w.Const.Gref
		return s
	}},
}

func badAt(name string, want blkif.Reason, at int, first, last uint8) Case {
	return Case{Name: name, Want: want, Make: func(w *World) Shot {
		segs := repeat(w, most(w))
		i := (at + len(segs)) % len(segs)
		segs[i].First, segs[i].Last = first, last
		return indirect(w, write, start, segs)
	}}
}

// ranges are requests that are not within the disk.
var ranges = []Case{
	{Name: "read at the end of the disk", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot { return direct(read, w.Limits.Sectors, whole(w.Pages[0])) }},
	{Name: "write at the end of the disk", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot {
		return direct(write, w.Limits.Sectors, segment(w.Pages[0].Gref, 0, 0))
	}},
	{Name: "write whose last sector is beyond the end", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot {
		return direct(write, w.Limits.Sectors-7, whole(w.Pages[0]))
	}},
	{Name: "barrier whose last sector is beyond the end", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot {
		return direct(barrier, w.Limits.Sectors-7, whole(w.Pages[0]))
	}},
	{Name: "indirect write whose last sector is beyond the end", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot {
		segs := repeat(w, most(w))
		return indirect(w, write, w.Limits.Sectors-uint64(len(segs))+1, segs)
	}},
	{Name: "sector whose offset in bytes wraps to 0", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot { return direct(write, 1<<55, whole(w.Pages[0])) }},
	{Name: "sector whose offset in bytes is negative", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot { return direct(write, 1<<54, whole(w.Pages[0])) }},
	{Name: "write whose sum of sector and length wraps", Want: blkif.ReasonWrap, Make: func(w *World) Shot { return direct(write, 1<<64-8, whole(w.Pages[0])) }},
	{Name: "indirect read whose sum of sector and length wraps", Want: blkif.ReasonWrap, Make: func(w *World) Shot {
		return indirect(w, read, 1<<64-1, whole(w.Pages...))
	}},
	{Name: "discard beyond the end", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot { return discard(start, w.Limits.Sectors) }},
	{Name: "discard whose sum of sector and length wraps", Want: blkif.ReasonWrap, Make: func(w *World) Shot { return discard(start, 1<<64-start) }},
	{Name: "discard of 2^64-1 sectors", Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot { return discard(0, 1<<64-1) }},
	{Name: "discard of no sectors", Want: blkif.ReasonNoSectors, Make: func(w *World) Shot { return discard(start, 0) }},
}

// readOnly are requests to a read-only disk.
var readOnly = []Case{
	{Name: "read of a read-only disk", Disk: ReadOnly, Make: func(w *World) Shot { return direct(read, start, whole(w.Pages...)[:11]) }},
	{Name: "indirect read of a read-only disk", Disk: ReadOnly, Make: func(w *World) Shot { return indirect(w, read, start, whole(w.Pages...)) }},
	refused("write to a read-only disk", func(w *World) Shot { return direct(write, start, whole(w.Pages[0])) }),
	refused("indirect write to a read-only disk", func(w *World) Shot { return indirect(w, write, start, whole(w.Pages...)) }),
	refused("barrier with data to a read-only disk", func(w *World) Shot { return direct(barrier, start, whole(w.Pages[0])) }),
	refused("barrier without segments to a read-only disk", func(w *World) Shot { return direct(barrier, start, nil) }),
	refused("flush of a read-only disk", func(w *World) Shot { return direct(flush, 0, nil) }),
	refused("discard on a read-only disk", func(w *World) Shot { return discard(start, 8) }),
	refused("secure discard on a read-only disk", func(w *World) Shot {
		s := discard(start, 8)
		s.Request.Flag = blkif.DiscardSecure
		return s
	}),
	refused("write beyond the end of a read-only disk", func(w *World) Shot { return direct(write, 1<<64-1, whole(w.Pages[0])) }),
}

func refused(name string, shot func(*World) Shot) Case {
	return Case{Name: name, Disk: ReadOnly, Want: blkif.ReasonReadOnly, Make: shot}
}

// blocks are requests to a disk with logical blocks of 4 KiB.
var blocks = []Case{
	{Name: "write of whole blocks", Disk: Blocks4K, Make: func(w *World) Shot { return direct(write, start, whole(w.Pages[:3]...)) }},
	{Name: "discard of whole blocks", Disk: Blocks4K, Make: func(w *World) Shot { return discard(start, 16) }},
	misaligned("write at a sector within a block", func(w *World) Shot { return direct(write, start+1, whole(w.Pages[0])) }),
	misaligned("read at a sector within a block", func(w *World) Shot { return direct(read, start+7, whole(w.Pages[0])) }),
	misaligned("write of a part of a block", func(w *World) Shot { return direct(write, start, segment(w.Pages[0].Gref, 0, 6)) }),
	misaligned("two halves of a block in two segments", func(w *World) Shot {
		return direct(write, start, append(segment(w.Pages[0].Gref, 0, 3), segment(w.Pages[0].Gref, 4, 7)...))
	}),
	misaligned("indirect write at a sector within a block", func(w *World) Shot { return indirect(w, write, start+4, whole(w.Pages...)) }),
	misaligned("discard of a part of a block", func(w *World) Shot { return discard(start, 12) }),
}

func misaligned(name string, shot func(*World) Shot) Case {
	return Case{Name: name, Disk: Blocks4K, Want: blkif.ReasonMisaligned, Make: shot}
}

// bare are requests for what a backend does not offer.
var bare = []Case{
	{Name: "indirect request that is not offered", Disk: Bare, Want: blkif.ReasonNotOffered, Make: func(w *World) Shot {
		return indirect(w, write, start, whole(w.Pages[0]))
	}},
	{Name: "discard that is not offered", Disk: Bare, Want: blkif.ReasonNotOffered, Make: func(w *World) Shot { return discard(start, 8) }},
	{Name: "discard that is not offered, beyond the end", Disk: Bare, Want: blkif.ReasonBeyondEnd, Make: func(w *World) Shot {
		return discard(w.Limits.Sectors, 8)
	}},
	{Name: "write where little is offered", Disk: Bare, Make: func(w *World) Shot { return direct(write, start, whole(w.Pages[:11]...)) }},
}

// grants are requests whose pages the backend may not use.
var grants = []Case{
	{Name: "gref of a write was freed", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(write, start, segment(w.Freed, 0, 7)) }},
	{Name: "gref of a read was freed", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(read, start, segment(w.Freed, 0, 7)) }},
	{Name: "gref 0xffffffff", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(write, start, segment(0xffffffff, 0, 7)) }},
	{Name: "write from a page of another domain", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(write, start, whole(w.Foreign)) }},
	{Name: "read to a page of another domain", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(read, start, whole(w.Foreign)) }},
	{Name: "write from a page that the backend may only read", Make: func(w *World) Shot { return direct(write, start, whole(w.Const)) }},
	{Name: "read to a page that the backend may only read", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(read, start, whole(w.Const)) }},
	{Name: "a bad gref among good ones of a write", Want: blkif.ReasonGrant, Make: func(w *World) Shot {
		return direct(write, start, slices.Concat(whole(w.Pages[:5]...), segment(w.Freed, 0, 7), whole(w.Pages[5:10]...)))
	}},
	{Name: "a bad gref among good ones of a read", Want: blkif.ReasonGrant, Make: func(w *World) Shot {
		return direct(read, start, slices.Concat(whole(w.Pages[:5]...), whole(w.Const), whole(w.Pages[5:10]...)))
	}},
	{Name: "a bad gref in a barrier", Want: blkif.ReasonGrant, Make: func(w *World) Shot { return direct(barrier, start, segment(w.Freed, 0, 0)) }},
	{Name: "a bad gref at the end of an indirect write", Want: blkif.ReasonGrant, Make: func(w *World) Shot {
		segs := repeat(w, most(w))
		segs[len(segs)-1].Gref = w.Freed
		return indirect(w, write, start, segs)
	}},
	{Name: "a bad gref at the start of an indirect read", Want: blkif.ReasonGrant, Make: func(w *World) Shot {
		segs := repeat(w, most(w))
		segs[0].Gref = w.Foreign.Gref
		return indirect(w, read, start, segs)
	}},
}

// races are requests whose indirect page changes while the backend reads it.
var races = []Case{
	race("indirect page whose segment grows beyond its page", blkif.ReasonLastSector, write, func(w *World) blkif.RawSegment {
		return blkif.RawSegment{Gref: w.Pages[0].Gref, First: 0, Last: 200}
	}),
	race("indirect page whose segment turns round", blkif.ReasonSectorOrder, read, func(w *World) blkif.RawSegment {
		return blkif.RawSegment{Gref: w.Pages[0].Gref, First: 7, Last: 0}
	}),
	race("indirect page whose gref becomes that of another domain", blkif.ReasonGrant, read, func(w *World) blkif.RawSegment {
		return blkif.RawSegment{Gref: w.Foreign.Gref, First: 0, Last: 7}
	}),
}

func race(name string, want blkif.Reason, op blkif.Op, other func(*World) blkif.RawSegment) Case {
	good := func(w *World) []blkif.RawSegment { return whole(w.Pages[0]) }
	return Case{Name: name, Want: want, AnyData: true,
		Make: func(w *World) Shot { return indirect(w, op, start, good(w)) },
		Flip: func(w *World, flip bool) {
			segs := good(w)
			if flip {
				segs = []blkif.RawSegment{other(w)}
			}
			blkif.EncodeIndirect(w.Indirect[0].Mem, segs)
		},
	}
}

// overruns are values of req_prod that are out of bounds. Each ends its ring.
var overruns = []Case{
	{Name: "req_prod one slot beyond the ring", Want: blkif.ReasonOverrun, Overrun: 1},
	{Name: "req_prod far beyond the ring", Want: blkif.ReasonOverrun, Overrun: 1 << 30},
	{Name: "req_prod taken back", Want: blkif.ReasonOverrun, Overrun: -1 << 30},
}

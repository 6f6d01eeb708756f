// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"structs"

	"github.com/netbackd/netbackd/pkg/xen"
)

// PageSize is the size of a granted page. Grants are 4 KiB on every
// architecture. The page size of the kernel does not matter.
const PageSize = 4096

// Direction tells which side of a [Segment] is the guest's page. The values are
// the kernel's GNTCOPY_source_gref and GNTCOPY_dest_gref.
type Direction uint16

const (
	// GuestIsSource is the direction of a copy from a guest's page to local memory.
	GuestIsSource Direction = 1
	// GuestIsDest is the direction of a copy from local memory to a guest's page.
	GuestIsDest Direction = 2
)

// String returns a word for logs and test failures.
func (d Direction) String() string {
	switch d {
	case GuestIsSource:
		return "from guest"
	case GuestIsDest:
		return "to guest"
	}
	return "no direction"
}

// Segment is one copy between a guest's page and memory of ours: struct
// gntdev_grant_copy_segment of uapi/xen/gntdev.h, handed to the kernel as it
// is, 24 bytes. The zero Segment is not a valid copy.
//
// Our side is either an address or a page that this domain has granted to itself. For
// an address the kernel pins the page behind it, which costs more than the copy of a
// small packet. For an own page it passes the gref on to Xen and touches no page.
//
// A Segment holds the local address as a number, which the garbage collector
// does not see. It must point into memory Go does not manage, normally an
// [Arena].
type Segment struct {
	_ structs.HostLayout

	// A side is a union of a local pointer and
	// { u32 ref@0; u16 offset@4; u16 domid@6 }. Xen runs on little-endian
	// machines only, so one word holds either.
	source, dest uint64
	len          uint16
	flags        uint16 // which sides are grefs
	status       Status

	// The kernel neither reads nor writes the last two bytes: it copies the whole
	// struct in and writes only the status back. With grefs on both sides they are the
	// only place that tells which one is the guest's.
	dir Direction
}

// bothGrefs is GNTCOPY_source_gref | GNTCOPY_dest_gref.
const bothGrefs = uint16(GuestIsSource | GuestIsDest)

func (s *Segment) fromGuest(domid xen.Domid, ref xen.Gref, off uint16, local uintptr, n uint16) {
	s.source = foreign(domid, ref, off)
	s.dest = uint64(local)
	s.len = n
	s.flags = uint16(GuestIsSource)
	s.status = StatusGeneralError
	s.dir = GuestIsSource
}

func (s *Segment) toGuest(domid xen.Domid, ref xen.Gref, off uint16, local uintptr, n uint16) {
	s.source = uint64(local)
	s.dest = foreign(domid, ref, off)
	s.len = n
	s.flags = uint16(GuestIsDest)
	s.status = StatusGeneralError
	s.dir = GuestIsDest
}

// FromGuestToOwn makes s a copy of n bytes at off of the guest's page to offset at of
// the page that this domain has granted to itself as own, for writing.
func (s *Segment) FromGuestToOwn(domid xen.Domid, ref xen.Gref, off uint16, own xen.Gref, at, n uint16) {
	s.source = foreign(domid, ref, off)
	s.dest = foreign(xen.DomidSelf, own, at)
	s.len = n
	s.flags = bothGrefs
	s.status = StatusGeneralError
	s.dir = GuestIsSource
}

// ToGuestFromOwn makes s a copy of n bytes at offset at of the page that this domain has
// granted to itself as own, to off of the guest's page.
func (s *Segment) ToGuestFromOwn(domid xen.Domid, ref xen.Gref, off uint16, own xen.Gref, at, n uint16) {
	s.source = foreign(xen.DomidSelf, own, at)
	s.dest = foreign(domid, ref, off)
	s.len = n
	s.flags = bothGrefs
	s.status = StatusGeneralError
	s.dir = GuestIsDest
}

func foreign(domid xen.Domid, ref xen.Gref, off uint16) uint64 {
	return uint64(domid)<<48 | uint64(off)<<32 | uint64(ref)
}

// Status returns the outcome of the copy. It is [StatusGeneralError] until a Copy
// has succeeded, so that a segment that was never copied does not look like one that
// was.
func (s *Segment) Status() Status { return s.status }

// SetStatus records the outcome. It is for implementations of Copy other than
// [Device.Copy]; the kernel writes the field itself.
func (s *Segment) SetStatus(st Status) { s.status = st }

// Direction returns the direction of the copy.
func (s *Segment) Direction() Direction { return s.dir }

// Len returns the number of bytes to copy.
func (s *Segment) Len() int { return int(s.len) }

// Local returns the address on our side, 0 if our side is an own page.
func (s *Segment) Local() uintptr {
	if s.flags == bothGrefs {
		return 0
	}
	return uintptr(s.ours())
}

// Own returns our side of a copy that names an own page by its gref: the page and the
// offset in it. ok is false if our side is an address.
func (s *Segment) Own() (ref xen.Gref, off uint16, ok bool) {
	if s.flags != bothGrefs {
		return 0, 0, false
	}
	v := s.ours()
	return xen.Gref(v), uint16(v >> 32), true
}

// ours returns the word of our side.
func (s *Segment) ours() uint64 {
	if s.dir == GuestIsDest {
		return s.source
	}
	return s.dest
}

// Foreign returns the guest's side: the domain, the page and the offset in it.
func (s *Segment) Foreign() (domid xen.Domid, ref xen.Gref, off uint16) {
	v := s.source
	if s.dir == GuestIsDest {
		v = s.dest
	}
	return xen.Domid(v >> 48), xen.Gref(v), uint16(v >> 32)
}

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

// Segment is one copy between a guest's page and local memory: struct
// gntdev_grant_copy_segment of uapi/xen/gntdev.h, handed to the kernel as it
// is, 24 bytes. The zero Segment is not a valid copy.
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
	flags        Direction
	status       Status
	_            [2]byte
}

func (s *Segment) fromGuest(domid xen.Domid, ref xen.Gref, off uint16, local uintptr, n uint16) {
	s.source = foreign(domid, ref, off)
	s.dest = uint64(local)
	s.len = n
	s.flags = GuestIsSource
	s.status = StatusGeneralError
}

func (s *Segment) toGuest(domid xen.Domid, ref xen.Gref, off uint16, local uintptr, n uint16) {
	s.source = uint64(local)
	s.dest = foreign(domid, ref, off)
	s.len = n
	s.flags = GuestIsDest
	s.status = StatusGeneralError
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
func (s *Segment) Direction() Direction { return s.flags }

// Len returns the number of bytes to copy.
func (s *Segment) Len() int { return int(s.len) }

// Local returns the address on our side.
func (s *Segment) Local() uintptr {
	if s.flags == GuestIsDest {
		return uintptr(s.source)
	}
	return uintptr(s.dest)
}

// Foreign returns the guest's side: the domain, the page and the offset in it.
func (s *Segment) Foreign() (domid xen.Domid, ref xen.Gref, off uint16) {
	v := s.source
	if s.flags == GuestIsDest {
		v = s.dest
	}
	return xen.Domid(v >> 48), xen.Gref(v), uint16(v >> 32)
}

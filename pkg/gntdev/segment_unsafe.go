// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"math"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/xen"
)

// FromGuest makes s a copy of len(dst) bytes at off of the guest's page to dst, a slice
// of memory that Go does not manage, normally of an [Arena]. s does not keep dst alive.
func (s *Segment) FromGuest(domid xen.Domid, ref xen.Gref, off uint16, dst []byte) {
	s.fromGuest(domid, ref, off, address(dst), uint16(min(len(dst), math.MaxUint16)))
}

// ToGuest makes s a copy of src to the guest's page at off. src is a slice of memory that
// Go does not manage, normally of an [Arena]. s does not keep src alive.
func (s *Segment) ToGuest(domid xen.Domid, ref xen.Gref, off uint16, src []byte) {
	s.toGuest(domid, ref, off, address(src), uint16(min(len(src), math.MaxUint16)))
}

// address returns the address of a slice's first byte. Lengths above a page are refused by
// Copy, so one that does not fit 16 bits need only stay above it.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

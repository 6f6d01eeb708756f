// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"structs"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/xen"
)

// grantRef is struct ioctl_gntdev_grant_ref.
type grantRef struct {
	_     structs.HostLayout
	domid uint32
	ref   xen.Gref
}

// mapGrantRef is struct ioctl_gntdev_map_grant_ref. The kernel takes count
// refs; the size in the ioctl number is that of one.
type mapGrantRef struct {
	_     structs.HostLayout
	count uint32
	_     uint32
	index uint64 // out: the offset for mmap
	refs  [1]grantRef
}

// unmapGrantRef is struct ioctl_gntdev_unmap_grant_ref.
type unmapGrantRef struct {
	_     structs.HostLayout
	index uint64
	count uint32
	_     uint32
}

// grantCopy is struct ioctl_gntdev_grant_copy.
type grantCopy struct {
	_        structs.HostLayout
	count    uint32
	segments *Segment
}

// The ioctls of the device. Their numbers carry no direction: size, type, nr.
const (
	iocMapGrantRef   = unsafe.Sizeof(mapGrantRef{})<<16 | 'G'<<8 | 0
	iocUnmapGrantRef = unsafe.Sizeof(unmapGrantRef{})<<16 | 'G'<<8 | 1
	iocGrantCopy     = unsafe.Sizeof(grantCopy{})<<16 | 'G'<<8 | 8
)

// Ioctls returns the numbers of all ioctls that a Device makes, the most frequent one first,
// for filters of system calls.
func Ioctls() []uint32 {
	return []uint32{uint32(iocGrantCopy), uint32(iocMapGrantRef), uint32(iocUnmapGrantRef)}
}

// The layouts and numbers, checked by the compiler: an index other than 0 is
// out of range.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(Segment{})-24]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.source)-0]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.dest)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.len)-16]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.flags)-18]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.status)-20]
	_ = [1]struct{}{}[unsafe.Offsetof(Segment{}.dir)-22] // padding of the kernel's struct
	_ = [1]struct{}{}[unsafe.Sizeof(grantRef{})-8]
	_ = [1]struct{}{}[unsafe.Sizeof(mapGrantRef{})-24]
	_ = [1]struct{}{}[unsafe.Offsetof(mapGrantRef{}.index)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(mapGrantRef{}.refs)-16]
	_ = [1]struct{}{}[unsafe.Sizeof(unmapGrantRef{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(unmapGrantRef{}.count)-8]
	_ = [1]struct{}{}[unsafe.Sizeof(grantCopy{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(grantCopy{}.segments)-8]
	_ = [1]struct{}{}[iocMapGrantRef-0x00184700]
	_ = [1]struct{}{}[iocUnmapGrantRef-0x00104701]
	_ = [1]struct{}{}[iocGrantCopy-0x00104708]
)

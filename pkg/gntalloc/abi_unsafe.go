// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"slices"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// allocGref is struct ioctl_gntalloc_alloc_gref. The kernel fills in count
// gref_ids; the size in the ioctl number is that of one.
type allocGref struct {
	_       structs.HostLayout
	domid   xen.Domid
	flags   uint16
	count   uint32
	index   uint64 // out: the offset for mmap
	grefIDs [1]xen.Gref
	_       uint32
}

// deallocGref is struct ioctl_gntalloc_dealloc_gref.
type deallocGref struct {
	_     structs.HostLayout
	index uint64
	count uint32
	_     uint32
}

// flagWritable is GNTALLOC_FLAG_WRITABLE: the other domain may write.
const flagWritable = 1

// The ioctls of the device. Their numbers carry no direction: size, type, nr.
const (
	iocAllocGref   = unsafe.Sizeof(allocGref{})<<16 | 'G'<<8 | 5
	iocDeallocGref = unsafe.Sizeof(deallocGref{})<<16 | 'G'<<8 | 6
)

// Ioctls returns the numbers of all ioctls that a Device makes, for filters of system calls.
func Ioctls() []uint32 { return []uint32{uint32(iocAllocGref), uint32(iocDeallocGref)} }

// The layouts and numbers, checked by the compiler: an index other than 0 is
// out of range.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(allocGref{})-24]
	_ = [1]struct{}{}[unsafe.Offsetof(allocGref{}.flags)-2]
	_ = [1]struct{}{}[unsafe.Offsetof(allocGref{}.count)-4]
	_ = [1]struct{}{}[unsafe.Offsetof(allocGref{}.index)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(allocGref{}.grefIDs)-16]
	_ = [1]struct{}{}[unsafe.Sizeof(deallocGref{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(deallocGref{}.count)-8]
	_ = [1]struct{}{}[iocAllocGref-0x00184705]
	_ = [1]struct{}{}[iocDeallocGref-0x00104706]
)

// linux is the real kernel.
type linux struct{}

var _ kernel = linux{}

func (linux) allocGref(fd int, domid xen.Domid, n int, writable bool) (uint64, []xen.Gref, error) {
	buf := newAllocArg(domid, n, writable)
	if err := ioctl(fd, iocAllocGref, unsafe.Pointer(unsafe.SliceData(buf))); err != nil {
		return 0, nil, err
	}
	index, refs := allocAnswer(buf, n)
	return index, refs, nil
}

// allocHeader is the number of words before the refs. Words give the argument
// the alignment of its largest member; each holds two refs.
const allocHeader = unsafe.Offsetof(allocGref{}.grefIDs) / 8

// newAllocArg lays out an allocGref with room for n refs.
func newAllocArg(domid xen.Domid, n int, writable bool) []uint64 {
	buf := make([]uint64, int(allocHeader)+(n+1)/2)
	arg := (*allocGref)(unsafe.Pointer(unsafe.SliceData(buf)))
	arg.domid, arg.count = domid, uint32(n)
	if writable {
		arg.flags = flagWritable
	}
	return buf
}

// allocAnswer holds the values that the kernel filled in.
func allocAnswer(buf []uint64, n int) (index uint64, refs []xen.Gref) {
	refs = slices.Clone(unsafe.Slice((*xen.Gref)(unsafe.Pointer(&buf[allocHeader])), n))
	return buf[1], refs
}

func (linux) deallocGref(fd int, index uint64, n int) error {
	arg := deallocGref{index: index, count: uint32(n)}
	return ioctl(fd, iocDeallocGref, unsafe.Pointer(&arg))
}

// mmap and munmap make the system calls themselves: package unix keeps a list of mappings, and
// would not notice that one has moved.
func (linux) mmap(fd int, index uint64, length int) ([]byte, error) {
	p, err := unix.MmapPtr(fd, int64(index), nil, uintptr(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), length), nil
}

func (linux) munmap(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}

func (linux) move(pages, mem []byte) error {
	p, err := unix.MremapPtr(unsafe.Pointer(unsafe.SliceData(pages)), uintptr(len(pages)),
		unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED)
	if err == nil && uintptr(p) != address(mem) {
		return unix.EINVAL // the kernel does not do that
	}
	return err
}

func (linux) clear(mem []byte) error {
	return mapAt(-1, 0, mem, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
}

func (linux) refill(mem []byte) error {
	err := mapAt(-1, 0, mem, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE)
	if err == unix.EEXIST {
		return nil // nothing was unmapped before the failure
	}
	return err
}

// mapAt maps something at the place of mem, for reading and writing.
func mapAt(fd int, offset int64, mem []byte, flags int) error {
	p, err := unix.MmapPtr(fd, offset, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, flags)
	if err == nil && uintptr(p) != address(mem) {
		// A kernel before 4.17 takes MAP_FIXED_NOREPLACE for a wish.
		_ = unix.MunmapPtr(p, uintptr(len(mem)))
		err = unix.EEXIST
	}
	return err
}

// address returns the address of a slice's first byte.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func (linux) close(fd int) error { return unix.Close(fd) }

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

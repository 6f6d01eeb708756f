// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// linux is the real kernel. Its ioctls can sleep, so they go through the
// scheduler-aware unix.Syscall.
type linux struct{}

var _ kernel = linux{}

func (linux) grantCopy(fd int, segs []Segment) error {
	arg := grantCopy{count: uint32(len(segs)), segments: unsafe.SliceData(segs)}
	err := ioctl(fd, iocGrantCopy, unsafe.Pointer(&arg))
	runtime.KeepAlive(segs)
	return err
}

func (linux) mapGrantRef(fd int, domid xen.Domid, refs []xen.Gref) (uint64, error) {
	buf := newMapArg(domid, refs)
	arg := (*mapGrantRef)(unsafe.Pointer(&buf[0]))
	err := ioctl(fd, iocMapGrantRef, unsafe.Pointer(arg))
	runtime.KeepAlive(buf)
	return arg.index, err
}

// newMapArg lays out a mapGrantRef with room for all refs. Words give it the
// alignment of its largest member.
func newMapArg(domid xen.Domid, refs []xen.Gref) []uint64 {
	const header = unsafe.Offsetof(mapGrantRef{}.refs) / 8
	buf := make([]uint64, int(header)+len(refs))
	(*mapGrantRef)(unsafe.Pointer(&buf[0])).count = uint32(len(refs))
	out := unsafe.Slice((*grantRef)(unsafe.Pointer(&buf[header])), len(refs))
	for i, ref := range refs {
		out[i] = grantRef{domid: uint32(domid), ref: ref}
	}
	return buf
}

func (linux) unmapGrantRef(fd int, index uint64, count int) error {
	arg := unmapGrantRef{index: index, count: uint32(count)}
	return ioctl(fd, iocUnmapGrantRef, unsafe.Pointer(&arg))
}

func (linux) mmap(fd int, index uint64, length int, prot Prot) ([]byte, error) {
	p := unix.PROT_READ
	if prot == ReadWrite {
		p |= unix.PROT_WRITE
	}
	return unix.Mmap(fd, int64(index), length, p, unix.MAP_SHARED)
}

func (linux) munmap(mem []byte) error { return unix.Munmap(mem) }

func (linux) close(fd int) error { return unix.Close(fd) }

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

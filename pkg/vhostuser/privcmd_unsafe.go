// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"runtime"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// mmapBatch is struct privcmd_mmapbatch_v2 of Linux's xen/privcmd.h.
type mmapBatch struct {
	_     structs.HostLayout
	num   uint32
	domid uint16
	_     uint16
	addr  uint64
	gfns  *uint64
	errs  *int32
}

// iocMmapBatch is IOCTL_PRIVCMD_MMAPBATCH_V2: size, type, number; no direction.
const iocMmapBatch = unsafe.Sizeof(mmapBatch{})<<16 | 'P'<<8 | 4

// Ioctls returns the numbers of the ioctls that [Kernel] makes beside those of gntdev, for
// filters of system calls.
func Ioctls() []uint32 { return []uint32{uint32(iocMmapBatch)} }

// The layout, checked by the compiler: an index other than 0 is out of range.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(mmapBatch{})-32]
	_ = [1]struct{}{}[unsafe.Offsetof(mmapBatch{}.domid)-4]
	_ = [1]struct{}{}[unsafe.Offsetof(mmapBatch{}.addr)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(mmapBatch{}.gfns)-16]
	_ = [1]struct{}{}[unsafe.Offsetof(mmapBatch{}.errs)-24]
	_ = [1]struct{}{}[iocMmapBatch-0x00205004]
)

// mapBatch maps pages of a domain from gfn on at mem, which is mapped from fd.
func mapBatch(fd int, domid xen.Domid, gfn uint64, mem []byte, errs []int32) error {
	gfns := make([]uint64, len(errs))
	for i := range gfns {
		gfns[i] = gfn + uint64(i)
	}
	arg := mmapBatch{num: uint32(len(gfns)), domid: uint16(domid),
		addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))),
		gfns: unsafe.SliceData(gfns), errs: unsafe.SliceData(errs)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocMmapBatch, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(gfns)
	runtime.KeepAlive(errs)
	if errno != 0 {
		return errno
	}
	return nil
}

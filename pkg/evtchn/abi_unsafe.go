// SPDX-License-Identifier: Apache-2.0

package evtchn

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arg is struct ioctl_evtchn_bind_interdomain { remote_domain, remote_port }.
// The arguments of the other ioctls are its first word, or the first half of
// that (little-endian) for the 16-bit domid of restrict.
type arg struct {
	_    structs.HostLayout
	a, b uint32
}

// The ioctls of the device. Their numbers carry no direction: size, type, nr.
const (
	iocBindInterdomain = unsafe.Sizeof(arg{})<<16 | 'E'<<8 | 1
	iocBindUnbound     = unsafe.Sizeof(arg{}.a)<<16 | 'E'<<8 | 2
	iocUnbind          = unsafe.Sizeof(arg{}.a)<<16 | 'E'<<8 | 3
	iocNotify          = unsafe.Sizeof(arg{}.a)<<16 | 'E'<<8 | 4
	iocReset           = 'E'<<8 | 5
	iocRestrict        = unsafe.Sizeof(uint16(0))<<16 | 'E'<<8 | 6
)

// Ioctls returns the numbers of the ioctls that are made through a Device after Restrict, the
// most frequent one first, for filters of system calls.
func Ioctls() []uint32 {
	return []uint32{uint32(iocNotify), uint32(iocBindInterdomain), uint32(iocUnbind), iocReset}
}

// The layouts and numbers, checked by the compiler: an index other than 0 is
// out of range.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(arg{})-8]
	_ = [1]struct{}{}[unsafe.Offsetof(arg{}.b)-4]
	_ = [1]struct{}{}[unsafe.Sizeof(Port(0))-portSize]
	_ = [1]struct{}{}[iocBindInterdomain-0x00084501]
	_ = [1]struct{}{}[iocBindUnbound-0x00044502]
	_ = [1]struct{}{}[iocUnbind-0x00044503]
	_ = [1]struct{}{}[iocNotify-0x00044504]
	_ = [1]struct{}{}[iocReset-0x00004505]
	_ = [1]struct{}{}[iocRestrict-0x00024506]
)

// portSize is the size of a port in read and write.
const portSize = 4

// linux is the real kernel. The calls that are made for every event bypass Go's
// scheduler: they never wait, and are shorter than the scheduler's part of a call.
type linux struct{}

var _ kernel = linux{}

func (linux) ioctl(fd int, req uintptr, a arg) (uint32, error) {
	var r uintptr
	var errno unix.Errno
	if req == iocNotify {
		r, _, errno = unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(&a)))
	} else {
		r, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(&a)))
	}
	if errno != 0 {
		return 0, errno
	}
	return uint32(r), nil
}

// read and write go straight to the ports' memory: the device's numbers are
// native-endian, as ours are.

func (linux) read(fd int, ports []Port) (int, error) { return move(unix.SYS_READ, fd, ports) }

func (linux) write(fd int, ports []Port) (int, error) { return move(unix.SYS_WRITE, fd, ports) }

func move(call uintptr, fd int, ports []Port) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(ports))), uintptr(len(ports))*portSize)
	if errno != 0 {
		return 0, errno
	}
	return int(n) / portSize, nil
}

func (linux) close(fd int) error { return unix.Close(fd) }

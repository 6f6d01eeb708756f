// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layouts are the kernel's. Each line fails to compile when a size differs.
var (
	_ [64]byte   = [unsafe.Sizeof(sqe{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(cqe{})]byte{}
	_ [40]byte   = [unsafe.Sizeof(sqOffsets{})]byte{}
	_ [40]byte   = [unsafe.Sizeof(cqOffsets{})]byte{}
	_ [120]byte  = [unsafe.Sizeof(params{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(filesUpdate{})]byte{}
	_ [8]byte    = [unsafe.Sizeof(probeOp{})]byte{}
	_ [2064]byte = [unsafe.Sizeof(probe{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(timespec{})]byte{}
	_ [24]byte   = [unsafe.Sizeof(geteventsArg{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(iovec{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(restriction{})]byte{}
)

// setup calls io_uring_setup(2).
func setup(entries uint32, p *params) (int, unix.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

// enter calls io_uring_enter(2) without waiting. No operation of this package waits either,
// so the call bypasses the Go scheduler.
func enter(fd int, toSubmit uint32) (uint32, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(toSubmit), 0, enterGetEvents, 0, 0)
	return uint32(n), errno
}

// enterWait calls io_uring_enter(2) and waits for minComplete completions, or for the time
// ts.
func enterWait(fd int, toSubmit, minComplete uint32, ts timespec) (uint32, unix.Errno) {
	arg := geteventsArg{ts: &ts}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(toSubmit), uintptr(minComplete),
		enterGetEvents|enterExtArg, uintptr(unsafe.Pointer(&arg)), unsafe.Sizeof(arg))
	return uint32(n), errno
}

// enterArg submits toSubmit entries and waits for minComplete completions, without limit or
// for the time in arg. The call may take long, so the Go scheduler knows of it. arg must
// be on the heap for good: then a call does not allocate.
func enterArg(fd int, toSubmit, minComplete uint32, arg *geteventsArg) (uint32, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(toSubmit), uintptr(minComplete),
		enterGetEvents|enterExtArg, uintptr(unsafe.Pointer(arg)), unsafe.Sizeof(*arg))
	if errno != 0 {
		n = 0
	}
	return uint32(n), errno
}

// enterHeld is enterArg without the knowledge of the Go scheduler. Signals interrupt it.
func enterHeld(fd int, toSubmit, minComplete uint32, arg *geteventsArg) (uint32, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(toSubmit), uintptr(minComplete),
		enterGetEvents|enterExtArg, uintptr(unsafe.Pointer(arg)), unsafe.Sizeof(*arg))
	if errno != 0 {
		n = 0
	}
	return uint32(n), errno
}

// register calls io_uring_register(2) with n elements at arg.
func register[T any](fd int, op uintptr, arg *T, n int) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), op, uintptr(unsafe.Pointer(arg)), uintptr(n), 0, 0)
	return errno
}

// word returns the 32-bit word at off in mem, which is shared with the kernel.
func word(mem []byte, off uint32) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&mem[off : off+4][0]))
}

// view returns the n elements of type T at off in mem, which must not be Go memory.
func view[T any](mem []byte, off, n uint32) []T {
	size := uint64(n) * uint64(unsafe.Sizeof(*new(T)))
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[uint64(off) : uint64(off)+size][0])), n)
}

// address returns the address of mem, which must be neither empty nor Go memory.
func address(mem []byte) uintptr {
	return uintptr(unsafe.Pointer(&mem[0]))
}

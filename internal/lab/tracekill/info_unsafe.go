// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallInfo is the start of struct ptrace_syscall_info, which is the same on all processors.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64 // at the beginning of a call
	args [6]uint64
	_    [4]uint64
}

// Values of op.
const (
	opEntry = 1
	opExit  = 2
)

// getSyscallInfo reads why a thread has stopped at a system call.
func getSyscallInfo(tid int) (i syscallInfo, err error) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(i), uintptr(unsafe.Pointer(&i)), 0, 0)
	if errno != 0 {
		return i, errno
	}
	return i, nil
}

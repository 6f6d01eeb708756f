// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// available asks the kernel whether filters may have a result.
func available(action *uint32) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(action)))
	return errno
}

// install adds a filter to all threads.
func install(filter []unix.SockFilter, flags uintptr) unix.Errno {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno == 0 && tid != 0 {
		errno = unix.EBUSY // a thread has a filter that this one lacks
	}
	return errno
}

// setCaps sets the capabilities of all threads.
func setCaps(hdr *unix.CapUserHeader, caps *[2]unix.CapUserData) error {
	hdr.Pid = 0
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(&caps[0])), 0)
	runtime.KeepAlive(hdr)
	runtime.KeepAlive(caps)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}

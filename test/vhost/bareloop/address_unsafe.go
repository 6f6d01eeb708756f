// SPDX-License-Identifier: Apache-2.0

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// addressOf returns the address of mapped memory.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// poll waits for one of some files. It does not tell the scheduler, which would give the
// thread's place to others and take it back.
func poll(fds []unix.PollFd) {
	_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
}

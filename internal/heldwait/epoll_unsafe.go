// SPDX-License-Identifier: Apache-2.0

package heldwait

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollRaw calls epoll_wait(2) without the knowledge of the Go scheduler. buf must not be
// empty.
func epollRaw(fd int, buf []unix.EpollEvent, timeout int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))),
		uintptr(len(buf)), uintptr(timeout), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSize returns the size of a block device in bytes.
func blockSize(fd int) (uint64, error) {
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, fmt.Errorf("BLKGETSIZE64: %w", errno)
	}
	return size, nil
}

// blockRange calls an ioctl that takes a start and a length in bytes.
func blockRange(fd int, request uintptr, off, n uint64) error {
	span := [2]uint64{off, n}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&span[0])))
	runtime.KeepAlive(&span)
	if errno != 0 {
		return errno
	}
	return nil
}

// secureDiscards returns whether a block device has secure discards. A start that is not
// whole sectors is refused with EINVAL, after the check of the device.
func secureDiscards(fd int) bool {
	return errors.Is(blockRange(fd, unix.BLKSECDISCARD, 1, 0), unix.EINVAL)
}

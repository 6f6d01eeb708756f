// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// txFilter is struct tun_filter of linux/if_tun.h with one address: 0, to which no
// frame is sent.
type txFilter struct {
	flags, count uint16
	addr         [6]byte
}

// setDeaf has the kernel drop what the host sends to the device (TUNSETTXFILTER,
// check_filter in drivers/net/tun.c), or ends that. It stays when the queue is closed.
func setDeaf(fd int, on bool) error {
	f := txFilter{count: uint16(boolInt(on))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETTXFILTER, uintptr(unsafe.Pointer(&f)))
	if errno != 0 {
		return errno
	}
	return nil
}

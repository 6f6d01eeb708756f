// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

const privcmdPath = "/dev/xen/privcmd"

// iocRestrict is IOCTL_PRIVCMD_RESTRICT of Linux's xen/privcmd.h: size, type, number.
const iocRestrict = unsafe.Sizeof(xen.Domid(0))<<16 | 'P'<<8 | 6

// restrict makes a descriptor of privcmd serve one domain only.
func restrict(fd int, domid xen.Domid) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocRestrict, uintptr(unsafe.Pointer(&domid))); errno != 0 {
		return errno
	}
	return nil
}

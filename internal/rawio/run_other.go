// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64

package rawio

import "golang.org/x/sys/unix"

func run(trap, fd uintptr, calls []Call, least int) (done int) {
	for i := range calls {
		c := &calls[i]
		n, _, errno := unix.RawSyscall(trap, fd, c.Addr, uintptr(c.Len))
		if c.Res = int32(n); errno != 0 {
			c.Res = -int32(errno)
		}
		if least != 0 && int(c.Res) < least {
			return i
		}
	}
	return len(calls)
}

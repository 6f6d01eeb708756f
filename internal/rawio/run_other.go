// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64

package rawio

import "golang.org/x/sys/unix"

func run(trap, fd uintptr, calls []Call, least, most int) (done int) {
	for i := range calls {
		c := &calls[i]
		n, _, errno := unix.RawSyscall(trap, fd, c.Addr, uintptr(c.Len))
		if c.Res = int32(n); errno != 0 {
			c.Res = -int32(errno)
		}
		switch {
		case least == 0:
		case int(c.Res) < least:
			return i
		case int(c.Res) > most:
			return i + 1
		}
	}
	return len(calls)
}

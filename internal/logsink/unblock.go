// SPDX-License-Identifier: Apache-2.0

package logsink

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Unblock makes fd, the standard error, non-blocking. When a process crashes, Go's runtime
// writes the reason there, and a daemon that hangs in this write is not restarted. Unblock
// sets the flag of a socket, since systemd makes one for each service. It opens a pipe or a
// terminal again, since other processes share the open file. It ignores failures: Sink does
// not depend on it.
func Unblock(fd int) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		_ = unix.SetNonblock(fd, true)
	case unix.S_IFIFO, unix.S_IFCHR:
		own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		_ = unix.Dup3(own, fd, 0)
		_ = unix.Close(own)
	}
}

// SPDX-License-Identifier: Apache-2.0

package logsink

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Unblock keeps writes to the standard error fd from waiting for its reader. Go's runtime
// writes there why a process dies, and a daemon that cannot end is not restarted. A socket
// is made non-blocking: systemd makes one for each service. A pipe or a terminal is opened
// again, since other processes share the open file. Failures are ignored: Sink does not
// depend on it.
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

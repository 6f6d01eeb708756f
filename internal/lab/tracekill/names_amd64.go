// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// otherNames are calls that arm64 does not have.
var otherNames = map[int]string{
	unix.SYS_EPOLL_WAIT: "epoll_wait", unix.SYS_POLL: "poll", unix.SYS_OPEN: "open", unix.SYS_STAT: "stat", unix.SYS_LSTAT: "lstat",
	unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_ARCH_PRCTL: "arch_prctl", unix.SYS_ACCESS: "access", unix.SYS_READLINK: "readlink",
	unix.SYS_RENAME: "rename", unix.SYS_UNLINK: "unlink", unix.SYS_MKDIR: "mkdir", unix.SYS_DUP2: "dup2", unix.SYS_SELECT: "select",
}

func otherName(nr int) string {
	if n, known := otherNames[nr]; known {
		return n
	}
	return fmt.Sprintf("call %d", nr)
}

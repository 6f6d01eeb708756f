// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

const (
	arch = unix.AUDIT_ARCH_X86_64

	// otherABI is the first number of calls of the x32 ABI.
	otherABI = 0x40000000

	sysStat = unix.SYS_NEWFSTATAT
)

// archCalls has the allowed calls that only this architecture has.
var archCalls = []uintptr{unix.SYS_POLL, unix.SYS_EPOLL_WAIT}

// archKilled has the calls that end a process, and that only this architecture has.
var archKilled = []uintptr{unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_MODIFY_LDT, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_USELIB, unix.SYS_KEXEC_FILE_LOAD}

// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

const (
	arch = unix.AUDIT_ARCH_AARCH64

	otherABI = 0 // 32-bit calls have an architecture of their own

	sysStat = unix.SYS_FSTATAT
)

// archCalls has the allowed calls that only this architecture has.
var archCalls []uintptr

// archKilled has the calls that end a process, and that only this architecture has.
var archKilled = []uintptr{unix.SYS_KEXEC_FILE_LOAD}

// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotSupported matches every error that means that this host has no usable io_uring.
// The error's text has the reason.
var ErrNotSupported = errors.New("io_uring is not available")

// disabledSysctl is the administrator's switch, since Linux 6.6: 0 allows io_uring, 1
// allows it for CAP_SYS_ADMIN and the group in kernel.io_uring_group, 2 denies it.
const disabledSysctl = "/proc/sys/kernel/io_uring_disabled"

// memlockHint ends errors about memory: without CAP_IPC_LOCK, rings and registered
// buffers count as locked memory.
const memlockHint = " (raise the locked memory limit, LimitMEMLOCK= in the unit)"

// Supported returns nil if New works on this host. Otherwise the error matches
// ErrNotSupported and says what to change, or is a temporary one such as EMFILE.
func Supported() error {
	if on, err := reserved.state(); on {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(1)
	if err != nil {
		return err
	}
	return r.Close()
}

func notSupported(reason string, err error) error {
	if err == nil {
		return fmt.Errorf("%w: %s", ErrNotSupported, reason)
	}
	return fmt.Errorf("%w: %s: %w", ErrNotSupported, reason, err)
}

// setupError explains an error of io_uring_setup(2).
func setupError(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return notSupported("the kernel has none, or a seccomp filter hides it", errno)
	case unix.EPERM, unix.EACCES:
		value, _ := os.ReadFile(disabledSysctl) // absent before 6.6
		return notSupported(denial(strings.TrimSpace(string(value))), errno)
	case unix.ENOMEM:
		return fmt.Errorf("io_uring_setup: %w%s", errno, memlockHint)
	}
	return fmt.Errorf("io_uring_setup: %w", errno)
}

// denial returns the reason why io_uring is denied, given the value of disabledSysctl.
func denial(sysctl string) string {
	switch sysctl {
	case "2":
		return "switched off by sysctl kernel.io_uring_disabled=2"
	case "1":
		return "sysctl kernel.io_uring_disabled=1 leaves it to CAP_SYS_ADMIN and the group kernel.io_uring_group"
	}
	return "denied by a seccomp filter or a security module"
}

// probeOpcodes checks that the kernel has the operations that a ring queues.
func probeOpcodes(fd int, ops ...uint8) error {
	var p probe
	if errno := register(fd, registerProbe, &p, len(p.ops)); errno != 0 {
		return notSupported("the kernel does not list its operations", errno)
	}
	for _, op := range ops {
		if p.ops[op].flags&probeOpSupported == 0 {
			return notSupported(fmt.Sprintf("the kernel lacks operation %d", op), nil)
		}
	}
	return nil
}

// probeCancel tries the request that cancels all operations. A kernel that does not know
// it answers with a completion.
func (r *Ring) probeCancel() error {
	r.queueCancel()
	if errno := r.enterAll(); errno != 0 {
		return setupError(errno)
	}
	if r.ready() == 0 {
		return nil
	}
	res := r.cqes[r.taken&r.cqMask].res
	return notSupported("the kernel is older than Linux 5.19 and cannot cancel operations", unix.Errno(-res))
}

// probeNoWait returns the flags for operations on the file in slot: RWF_NOWAIT if the
// file accepts it. It tries a read of 0 bytes: flags are checked before the length, and
// no packet is taken.
func (r *Ring) probeNoWait(slot int) (uint32, error) {
	r.queue(opRead, slot, 0, 0, 0, 0)
	if _, err := r.Submit(); err != nil {
		return 0, err
	}
	var c [1]Completion
	r.Completions(c[:])
	switch c[0].Res {
	case -int32(unix.EOPNOTSUPP), -int32(unix.EBADF): // EBADF: it cannot be read, and a write might have an effect
		return 0, nil
	}
	return unix.RWF_NOWAIT, nil
}

// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotSupported matches the errors that say that the kernel has no filters.
var ErrNotSupported = errors.New("the kernel has no filters of system calls (CONFIG_SECCOMP_FILTER)")

// Supported returns nil if the kernel has the filters that Enter needs. Otherwise the error
// matches ErrNotSupported.
func Supported() error {
	action := kill
	switch errno := available(&action); errno {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: %w", ErrNotSupported, errno)
	default:
		return fmt.Errorf("seccomp: %w", errno)
	}
}

// Enter confines all threads of the process to a policy, and those that they start. It cannot
// be undone. The process must have all files that it needs, and its rings. It keeps the time
// zone that it has.
func Enter(p Policy) error {
	if err := Supported(); err != nil {
		return err
	}
	_, _ = time.Now().Zone() // reads the file of the time zone
	filter := program(p, uint32(os.Getpid()))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel gives this flag to the other threads with the filter.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// Without SPEC_ALLOW kernels before 5.16 make all code of the process slower, to protect
	// code in a sandbox from other code of the same process. Here all of it is in the sandbox.
	errno := install(filter, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	if errno == unix.EINVAL { // before 4.17
		errno = install(filter, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	if errno != 0 {
		return fmt.Errorf("filter of system calls: %w", errno)
	}
	return nil
}

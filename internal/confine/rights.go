// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Keep gives up all capabilities but those in keep, for all threads and for good. In programs
// with cgo, which tests are, it fails with an error that matches ENOTSUP if there is one to
// give up.
func Keep(keep ...uint) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&hdr, &has[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	want := has
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range want {
		want[i].Permitted &= mask[i]
		want[i].Effective &= mask[i]
		want[i].Inheritable = 0
	}
	if want == has {
		return nil
	}
	// The bounding set first: it takes a capability to change it.
	if has[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uint(0); c <= unix.CAP_LAST_CAP; c++ {
			if mask[c/32]&(1<<(c%32)) != 0 {
				continue
			}
			if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c)); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	return setCaps(&hdr, &want)
}

// onAllThreads makes a system call on each thread of the process.
func onAllThreads(trap, a1, a2 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(trap, a1, a2, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

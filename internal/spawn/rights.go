// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// shed takes all capabilities from the calling thread, and from all that it will execute: no
// program that it executes can gain one, nor other rights.
func shed() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := dropBounds(); err != nil {
		return err
	}
	// Kernels before 4.3 have no ambient capabilities.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// dropBounds empties the bounding set, if the thread may. Otherwise the set keeps what the
// unit has left in it, which no_new_privs makes useless.
func dropBounds() error {
	for c := uintptr(0); ; c++ {
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err {
		case nil:
		case unix.EINVAL, unix.EPERM: // beyond the last one; not without CAP_SETPCAP
			return nil
		default:
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}

// lowestNice is the nice value that a child may take, as a limit: 20 minus the value.
const lowestNice = 20 + 10

// giveLimits raises limits of a child that this process does not need, since it has the
// capabilities to pass them: those of locked memory and of nice values. It tries.
func giveLimits(pid int) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if unix.Capget(&hdr, &has[0]) != nil {
		return
	}
	for _, l := range []struct {
		capability uint
		limit      int
		value      uint64
	}{
		{unix.CAP_IPC_LOCK, unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY},
		{unix.CAP_SYS_NICE, unix.RLIMIT_NICE, lowestNice},
	} {
		if has[0].Effective&(1<<l.capability) != 0 {
			_ = unix.Prlimit(pid, l.limit, &unix.Rlimit{Cur: l.value, Max: l.value}, nil) // the child does without
		}
	}
}

// ErrNotSpawned is returned by Begin in a process that Start did not start.
var ErrNotSpawned = errors.New("this command is part of the program, and is started by it only")

// bare checks that the process has no capability and cannot gain one. Its threads have the
// rights of the first one.
func bare() error {
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || set != 1 {
		return ErrNotSpawned
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if caps != [2]unix.CapUserData{} {
		return ErrNotSpawned
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd in a new, empty network namespace, which exists as long as the process
// and its children. If the caller may not create namespaces, the process also gets a user
// namespace, in which it is root. It then has a network of its own, but may not open
// device nodes that the caller could not open.
//
// The process is killed when this one dies for any reason.
//
// Start adds to cmd.SysProcAttr and changes nothing else of cmd. The caller has to call
// cmd.Wait. The loopback device of the new namespace is down.
func Start(cmd *exec.Cmd) error {
	isolate(cmd, unix.CLONE_NEWNET)
	return startBound(cmd)
}

// StartHere starts cmd in the namespaces that the process is in. Like the
// processes of [Start] it is killed when this one dies.
func StartHere(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return startBound(cmd)
}

// startBound starts cmd from a thread that lives as long as the new process.
func startBound(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// For Pdeathsig the parent is the thread that started the process, so
		// that thread has to live as long as the process. The lock keeps
		// other goroutines from running on it and ending it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			awaitDeath(cmd.Process.Pid)
		}
	}()
	return explainClone(<-started)
}

// awaitDeath returns when a child has died. It does not reap the child. It also returns
// if another caller has reaped it.
func awaitDeath(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// isolate sets cmd's attributes for a start in new namespaces.
func isolate(cmd *exec.Cmd, flags uintptr) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	attr := cmd.SysProcAttr
	attr.Cloneflags |= flags
	if attr.Pdeathsig == 0 {
		attr.Pdeathsig = syscall.SIGKILL
	}
	if mayCreate() {
		return
	}
	// An unprivileged process may map only one id, and only after it has denied
	// setgroups.
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	attr.GidMappingsEnableSetgroups = false
}

// mayCreate reports whether the calling thread may create namespaces without a user
// namespace. It checks the capability, not uid 0: root in a container may lack the
// capability. The check comes before the start, since an exec.Cmd cannot be started twice.
func mayCreate() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_ADMIN/32].Effective&(1<<(unix.CAP_SYS_ADMIN%32)) != 0
}

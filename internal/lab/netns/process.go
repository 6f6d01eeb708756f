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

// Start starts cmd in a new, empty network namespace, which lives as long as
// the process and its children. When the caller may not create namespaces by
// itself, the process gets a user namespace too, in which it is root; that
// gives it a network of its own, but not the right to open device nodes which
// the caller could not open.
//
// The process is killed when this one dies, in whichever way.
//
// The rest of cmd is the caller's, as with [exec.Cmd.Start]; cmd.SysProcAttr is
// added to. The caller has to call cmd.Wait. The loopback device of the new
// namespace is down.
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

// startBound starts cmd from a thread that lives as long as the process does.
func startBound(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// To the kernel the parent is a thread: the one which started the
		// process has to live as long. No other goroutine gets onto it,
		// and away again with it, while this one waits.
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

// awaitDeath returns when a child has died, and leaves it for another caller to
// wait for; also if another caller has done so.
func awaitDeath(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// isolate arranges for cmd to be started in new namespaces.
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
	// One id is mapped, because that is all an unprivileged process may
	// map; setgroups has to be denied first for the same reason.
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	attr.GidMappingsEnableSetgroups = false
}

// mayCreate reports whether the calling thread may create namespaces without
// the help of a user namespace. It asks for the capability, not for uid 0: root
// in a container has the one without the other. The answer has to be known
// before the process is started, since an exec.Cmd cannot be started twice.
func mayCreate() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_ADMIN/32].Effective&(1<<(unix.CAP_SYS_ADMIN%32)) != 0
}

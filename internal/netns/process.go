// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd in a new, empty network namespace, which lives as long as
// the process and its children. When the caller may not create namespaces by
// itself, the process gets a user namespace too, in which it is root; that
// gives it a network of its own, but not the right to open device nodes which
// the caller could not open.
//
// The process is killed when this one dies; to the kernel that is when the
// thread ends on which Start ran, so do not call Start in a goroutine that ends
// while locked to its thread, such as the function given to [Do].
//
// The rest of cmd is the caller's, as with [exec.Cmd.Start]; cmd.SysProcAttr is
// added to. The loopback device of the new namespace is down.
func Start(cmd *exec.Cmd) error {
	isolate(cmd, unix.CLONE_NEWNET)
	return explainClone(cmd.Start())
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

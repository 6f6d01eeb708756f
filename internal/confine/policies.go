// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
)

// PacketProcess returns the policy of a process that serves the rings of vifs, with the ioctls
// of its devices. Its TAP queues take reads and writes only.
func PacketProcess(ioctls []uint32) Policy {
	return Policy{Ioctls: ioctls, Registrations: iouring.RegisterOps()}
}

// VhostUser returns the policy of a process that serves one device of vhost-user. It takes
// front ends, their files and those who ask at its control socket, changes its TAP, and
// reports to a service manager. It opens files for reading only, since it looks at its own
// threads and files in /proc. ioctls are those of its TAP and of memory. connects says that it connects to its front end, and steers
// that it loads steering programs.
func VhostUser(ioctls []uint32, connects, steers bool) Policy {
	p := Policy{
		Ioctls:        ioctls,
		Registrations: iouring.RegisterOps(),
		Fcntls:        []uint32{unix.F_ADD_SEALS, unix.F_GET_SEALS},
		Sockets:       []uint32{unix.AF_UNIX, unix.AF_NETLINK},
		ReadFiles:     true,
		Calls: []uintptr{
			// Front ends, requests, netlink and the service manager.
			unix.SYS_ACCEPT4, unix.SYS_BIND, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SHUTDOWN,
			unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
			// Memory that a front end keeps for a successor.
			unix.SYS_MEMFD_CREATE, unix.SYS_FTRUNCATE,
			// A look at /proc, and the removal of the sockets at the end.
			unix.SYS_GETDENTS64, unix.SYS_LSEEK, sysStat, unix.SYS_UNLINKAT,
			unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		},
		// A TAP that was moved is looked for in its namespace.
		Refused: []uintptr{unix.SYS_SETNS},
	}
	if connects {
		p.Calls = append(p.Calls, unix.SYS_CONNECT)
	}
	if steers {
		p.Calls = append(p.Calls, unix.SYS_BPF)
	}
	return p
}

// DiskProcess returns the policy of a process that serves the rings of vbds, with the ioctls of its
// devices. It reads, writes, flushes and discards the files that it was handed.
func DiskProcess(ioctls []uint32) Policy {
	return Policy{
		Ioctls:        append(slices.Clone(ioctls), unix.BLKDISCARD, unix.BLKSECDISCARD),
		Registrations: iouring.RegisterOps(),
		Calls:         []uintptr{unix.SYS_FDATASYNC, unix.SYS_FALLOCATE},
	}
}

// Disks returns the policy of a daemon that opens disks, makes rings and speaks with xenstore.
// It can still do all of that.
func Disks() Policy { return Policy{Rest: true, Sockets: []uint32{unix.AF_UNIX}} }

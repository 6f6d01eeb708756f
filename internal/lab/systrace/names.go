// SPDX-License-Identifier: Apache-2.0

package systrace

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// names are those of the calls that a back end makes.
var names = map[int]string{
	unix.SYS_ACCEPT4: "accept4", unix.SYS_BIND: "bind", unix.SYS_BPF: "bpf", unix.SYS_CLOSE: "close",
	unix.SYS_CONNECT: "connect", unix.SYS_DUP3: "dup3", unix.SYS_EPOLL_CREATE1: "epoll_create1",
	unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_EPOLL_PWAIT: "epoll_pwait", unix.SYS_EVENTFD2: "eventfd2", unix.SYS_FALLOCATE: "fallocate",
	unix.SYS_FCNTL: "fcntl", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FLOCK: "flock", unix.SYS_FSTAT: "fstat",
	unix.SYS_FSYNC: "fsync", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_GETDENTS64: "getdents64",
	unix.SYS_GETSOCKNAME: "getsockname", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_IOCTL: "ioctl",
	unix.SYS_IO_URING_ENTER: "io_uring_enter", unix.SYS_IO_URING_REGISTER: "io_uring_register",
	unix.SYS_IO_URING_SETUP: "io_uring_setup", unix.SYS_LISTEN: "listen", unix.SYS_LSEEK: "lseek",
	unix.SYS_MADVISE: "madvise", unix.SYS_MEMFD_CREATE: "memfd_create", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_MLOCK: "mlock", unix.SYS_MMAP: "mmap", unix.SYS_MPROTECT: "mprotect", unix.SYS_MUNMAP: "munmap",
	unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_OPENAT: "openat", unix.SYS_PIPE2: "pipe2", unix.SYS_PREAD64: "pread64", unix.SYS_PREADV: "preadv",
	unix.SYS_PREADV2: "preadv2", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PWRITEV: "pwritev", unix.SYS_PWRITEV2: "pwritev2",
	unix.SYS_READ: "read", unix.SYS_READLINKAT: "readlinkat", unix.SYS_READV: "readv", unix.SYS_RECVFROM: "recvfrom",
	unix.SYS_RECVMSG: "recvmsg", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_SCHED_SETSCHEDULER: "sched_setscheduler", unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDTO: "sendto",
	unix.SYS_SETNS: "setns", unix.SYS_SETPRIORITY: "setpriority", unix.SYS_SETSOCKOPT: "setsockopt", unix.SYS_SOCKET: "socket",
	unix.SYS_STATX: "statx", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_UNSHARE: "unshare", unix.SYS_WRITE: "write",
	unix.SYS_WRITEV: "writev",
}

// noFile marks calls whose first argument is no descriptor.
var noFile = map[int]bool{
	unix.SYS_EPOLL_CREATE1: true, unix.SYS_EVENTFD2: true, unix.SYS_IO_URING_SETUP: true, unix.SYS_MADVISE: true,
	unix.SYS_MEMFD_CREATE: true, unix.SYS_MLOCK: true, unix.SYS_MPROTECT: true, unix.SYS_MUNMAP: true,
	unix.SYS_PIPE2: true, unix.SYS_SCHED_SETSCHEDULER: true, unix.SYS_SETPRIORITY: true, unix.SYS_UNSHARE: true,
}

var families = map[int]string{unix.AF_UNIX: "unix", unix.AF_NETLINK: netlinkFd, unix.AF_INET: "inet", unix.AF_INET6: "inet6"}

// requests are those of ioctl.
var requests = map[uint32]string{
	unix.TUNSETIFF: "TUNSETIFF", unix.TUNGETIFF: "TUNGETIFF", unix.TUNSETPERSIST: "TUNSETPERSIST", unix.TUNGETFEATURES: "TUNGETFEATURES",
	unix.TUNSETOFFLOAD: "TUNSETOFFLOAD", unix.TUNSETVNETHDRSZ: "TUNSETVNETHDRSZ", unix.TUNSETVNETLE: "TUNSETVNETLE",
	unix.TUNSETSNDBUF: "TUNSETSNDBUF", unix.TUNSETQUEUE: "TUNSETQUEUE", unix.TUNSETCARRIER: "TUNSETCARRIER",
	unix.TUNSETSTEERINGEBPF: "TUNSETSTEERINGEBPF", unix.TUNGETDEVNETNS: "TUNGETDEVNETNS",
	unix.TUNSETOWNER: "TUNSETOWNER", unix.TUNSETGROUP: "TUNSETGROUP", unix.TUNSETIFINDEX: "TUNSETIFINDEX",
	unix.SIOCETHTOOL: "SIOCETHTOOL", unix.SIOCGIFINDEX: "SIOCGIFINDEX", unix.SIOCGIFNAME: "SIOCGIFNAME",
	unix.BLKGETSIZE64: "BLKGETSIZE64", unix.BLKSSZGET: "BLKSSZGET", unix.BLKPBSZGET: "BLKPBSZGET", unix.BLKDISCARD: "BLKDISCARD",
	unix.BLKROGET: "BLKROGET", unix.NS_GET_NSTYPE: "NS_GET_NSTYPE",
}

func request(n uint32) string {
	if name := requests[n]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x", n)
}

// hypercalls are the messages to the embedded Xen, by the ioctl that they stand for.
var hypercalls = map[wire.Op]string{
	wire.OpMap: "map", wire.OpMmap: "mmap", wire.OpMunmap: "munmap", wire.OpUnmap: "unmap", wire.OpCopy: "copy",
	wire.OpBindInterdomain: "bind", wire.OpBindUnbound: "offer", wire.OpUnbind: "unbind", wire.OpNotify: "notify",
	wire.OpUnmask: "unmask", wire.OpRestrict: "restrict", wire.OpReset: "reset", wire.OpAlloc: "alloc", wire.OpDealloc: "dealloc",
}

// storeOp names a request of the xenstore protocol.
func storeOp(op uint32) string {
	ops := [...]string{1: "directory", 2: "read", 3: "get-perms", 4: "watch", 5: "unwatch", 6: "start", 7: "end", 8: "introduce",
		10: "domain-path", 11: "write", 12: "mkdir", 13: "rm", 14: "set-perms", 20: "reset-watches", 21: "directory-part"}
	if int(op) < len(ops) && ops[op] != "" {
		return ops[op]
	}
	return fmt.Sprintf("op %d", op)
}

func netlinkOp(op uint16) string {
	ops := map[uint16]string{
		unix.RTM_NEWLINK: "NEWLINK", unix.RTM_DELLINK: "DELLINK", unix.RTM_GETLINK: "GETLINK", unix.RTM_SETLINK: "SETLINK",
		unix.RTM_NEWQDISC: "NEWQDISC", unix.RTM_GETQDISC: "GETQDISC", unix.RTM_DELQDISC: "DELQDISC", unix.RTM_NEWADDR: "NEWADDR",
		unix.RTM_GETADDR: "GETADDR", unix.RTM_NEWLINKPROP: "NEWLINKPROP", unix.RTM_DELLINKPROP: "DELLINKPROP",
		unix.RTM_GETNSID: "GETNSID",
	}
	if name := ops[op]; name != "" {
		return name
	}
	return fmt.Sprintf("message %d", op)
}

// SPDX-License-Identifier: Apache-2.0

package confinetest

import (
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept keeps what attempts point to in its place.
var kept runtime.Pinner

// text returns the address of a string for the kernel.
func text(s string) uintptr {
	b := append([]byte(s), 0)
	kept.Pin(&b[0])
	return uintptr(unsafe.Pointer(&b[0]))
}

// memory returns the address of n bytes.
func memory(n int) uintptr {
	b := make([]byte, n)
	kept.Pin(&b[0])
	return uintptr(unsafe.Pointer(&b[0]))
}

const (
	stdin   = 0
	page    = 4096
	rw      = unix.PROT_READ | unix.PROT_WRITE
	private = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
)

// at is AT_FDCWD as an argument.
var at = ^uintptr(99)

func denied() []Attempt {
	all := slices.Concat(files(), sockets(), processes(), memories(), settings(), ioctls())
	for i := range all {
		if all[i].Want == 0 {
			all[i].Want = unix.EPERM
		}
	}
	return append(all, Attempt{"fork by clone3", unix.ENOSYS, try(unix.SYS_CLONE3, memory(88), 88)})
}

func files() []Attempt {
	path, buf := text("/etc/hostname"), memory(page)
	return []Attempt{
		{Name: "openat", Do: try(unix.SYS_OPENAT, at, path, unix.O_RDONLY)},
		{Name: "openat2", Do: try(unix.SYS_OPENAT2, at, path, memory(24), 24)},
		{Name: "stat by name", Do: try(unix.SYS_STATX, at, path, 0, unix.STATX_BASIC_STATS, buf)},
		{Name: "readlinkat", Do: try(unix.SYS_READLINKAT, at, text("/proc/self/exe"), buf, page)},
		{Name: "getdents64", Do: try(unix.SYS_GETDENTS64, stdin, buf, page)},
		{Name: "faccessat", Do: try(unix.SYS_FACCESSAT, at, path, unix.R_OK)},
		{Name: "chdir", Do: try(unix.SYS_CHDIR, text("/"))},
		{Name: "unlinkat", Do: try(unix.SYS_UNLINKAT, at, text("/nothing"))},
		{Name: "renameat2", Do: try(unix.SYS_RENAMEAT2, at, text("/nothing"), at, text("/nowhere"))},
		{Name: "mkdirat", Do: try(unix.SYS_MKDIRAT, at, text("/tmp/.nothing"), 0)},
		{Name: "linkat", Do: try(unix.SYS_LINKAT, at, text("/nothing"), at, text("/nowhere"))},
		{Name: "mknodat", Do: try(unix.SYS_MKNODAT, at, text("/tmp/.nothing"), unix.S_IFIFO)},
		{Name: "fchmod", Do: try(unix.SYS_FCHMOD, stdin, 0o600)},
		{Name: "fchown", Do: try(unix.SYS_FCHOWN, stdin, 0, 0)},
		{Name: "ftruncate", Do: try(unix.SYS_FTRUNCATE, stdin, 0)},
		{Name: "fallocate", Do: try(unix.SYS_FALLOCATE, stdin, 0, 0, page)},
		{Name: "flock", Do: try(unix.SYS_FLOCK, stdin, unix.LOCK_UN)},
		{Name: "fsetxattr", Do: try(unix.SYS_FSETXATTR, stdin, text("user.x"), buf, 1)},
		{Name: "inotify_init1", Do: try(unix.SYS_INOTIFY_INIT1, 0)},
		{Name: "memfd_create", Do: try(unix.SYS_MEMFD_CREATE, text("x"), 0)},
		{Name: "pipe2", Do: try(unix.SYS_PIPE2, buf, 0)},
		{Name: "dup3", Do: try(unix.SYS_DUP3, stdin, 100, 0)},
		{Name: "io_uring_setup", Do: try(unix.SYS_IO_URING_SETUP, 1, memory(120))},
		{Name: "io_uring_register of restrictions", Do: try(unix.SYS_IO_URING_REGISTER, stdin, 11, buf, 1)},
		{Name: "io_setup", Do: try(unix.SYS_IO_SETUP, 1, buf)},
		{Name: "owner of signals", Do: try(unix.SYS_FCNTL, stdin, unix.F_SETOWN, 1)},
		{Name: "lock of a file", Do: try(unix.SYS_FCNTL, stdin, unix.F_SETLK, memory(32))},
	}
}

func sockets() []Attempt {
	buf := memory(page)
	return []Attempt{
		{Name: "unix socket", Do: try(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)},
		{Name: "internet socket", Do: try(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM)},
		{Name: "netlink socket", Do: try(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW)},
		{Name: "socketpair", Do: try(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, buf)},
		{Name: "connect", Do: try(unix.SYS_CONNECT, stdin, buf, 16)},
		{Name: "bind", Do: try(unix.SYS_BIND, stdin, buf, 16)},
		{Name: "listen", Do: try(unix.SYS_LISTEN, stdin, 1)},
		{Name: "accept4", Do: try(unix.SYS_ACCEPT4, stdin)},
		{Name: "sendto", Do: try(unix.SYS_SENDTO, stdin, buf, 1)},
		{Name: "setsockopt", Do: try(unix.SYS_SETSOCKOPT, stdin, unix.SOL_SOCKET, unix.SO_SNDBUF, buf, 4)},
	}
}

func processes() []Attempt {
	self, parent := uintptr(unix.Getpid()), uintptr(unix.Getppid())
	const threads = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	return []Attempt{
		{Name: "fork", Do: try(unix.SYS_CLONE, uintptr(unix.SIGCHLD))},
		{Name: "vfork", Do: try(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|uintptr(unix.SIGCHLD))},
		{Name: "user namespace", Do: try(unix.SYS_CLONE, threads|unix.CLONE_NEWUSER)},
		{Name: "signal to the broker", Do: try(unix.SYS_KILL, parent, 0)},
		{Name: "signal to all", Do: try(unix.SYS_KILL, ^uintptr(0), 0)},
		{Name: "signal to a thread of the broker", Do: try(unix.SYS_TGKILL, parent, parent, 0)},
		{Name: "limit of the broker", Do: try(unix.SYS_PRLIMIT64, parent, unix.RLIMIT_NOFILE, 0, memory(16))},
		{Name: "own limit", Do: try(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, memory(16), 0)},
		{Name: "class of the broker", Do: try(unix.SYS_SCHED_GETATTR, parent, memory(64), 64)},
		{Name: "processors", Do: try(unix.SYS_SCHED_SETAFFINITY, 0, 8, memory(8))},
		{Name: "nice value of all", Do: try(unix.SYS_SETPRIORITY, unix.PRIO_USER, 0, 0)},
		{Name: "session", Do: try(unix.SYS_SETSID)},
		{Name: "process group of the broker", Do: try(unix.SYS_SETPGID, 0, parent)},
		{Name: "wait for a process", Do: try(unix.SYS_WAIT4, self, 0, unix.WNOHANG)},
	}
}

func memories() []Attempt {
	return []Attempt{
		{Name: "memory with code", Do: try(unix.SYS_MMAP, 0, page, rw|unix.PROT_EXEC, private, ^uintptr(0))},
		{Name: "a file as code", Do: try(unix.SYS_MMAP, 0, page, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE, stdin)},
		{Name: "memory becomes code", Do: try(unix.SYS_MPROTECT, memory(2*page)&^(page-1), page, unix.PROT_READ|unix.PROT_EXEC)},
		{Name: "memory becomes code by key", Do: try(unix.SYS_PKEY_MPROTECT, memory(2*page)&^(page-1), page, unix.PROT_EXEC, ^uintptr(0))},
		{Name: "shared memory", Do: try(unix.SYS_SHMGET, 0, page, unix.IPC_CREAT)},
		{Name: "message queue", Do: try(unix.SYS_MSGGET, 0, unix.IPC_CREAT)},
	}
}

func settings() []Attempt {
	buf := memory(page)
	return []Attempt{
		{Name: "be dumpable", Do: try(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1)},
		{Name: "be traceable", Do: try(unix.SYS_PRCTL, unix.PR_SET_PTRACER, ^uintptr(0))},
		{Name: "outlive the broker", Do: try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0)},
		{Name: "capabilities of root", Do: try(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0)},
		{Name: "ambient capability", Do: try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN)},
		{Name: "filter by prctl", Do: try(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_STRICT)},
		{Name: "timer", Do: try(unix.SYS_SETITIMER, unix.ITIMER_REAL, buf)},
		{Name: "system information", Do: try(unix.SYS_SYSINFO, buf)},
		{Name: "name of the system", Do: try(unix.SYS_UNAME, buf)},
		{Name: "umask", Do: try(unix.SYS_UMASK, 0)},
		{Name: "sync", Do: try(unix.SYS_SYNC)},
	}
}

func ioctls() []Attempt {
	buf := memory(page)
	var all []Attempt
	for name, nr := range map[string]uintptr{
		"TUNSETIFF": unix.TUNSETIFF, "TUNSETPERSIST": unix.TUNSETPERSIST, "TUNSETOWNER": unix.TUNSETOWNER,
		"TUNSETQUEUE": unix.TUNSETQUEUE, "TUNSETCARRIER": unix.TUNSETCARRIER, "TUNSETOFFLOAD": unix.TUNSETOFFLOAD,
		"TUNSETSTEERINGEBPF": unix.TUNSETSTEERINGEBPF, "TUNATTACHFILTER": unix.TUNATTACHFILTER, "TUNGETIFF": unix.TUNGETIFF,
		"TIOCSTI": unix.TIOCSTI, "FIOASYNC": 0x5452, "SIOCGIFCONF": unix.SIOCGIFCONF, "BLKDISCARD": unix.BLKDISCARD,
		"virq of evtchn": 0x44500, "unbound port of evtchn": 0x44502, "restrict of evtchn": 0x24506, "static port of evtchn": 0x44507,
		"grants beyond the limit of gntdev": 0x44703, "dma buffer of gntdev": 0x104709, "hypercall of privcmd": 0x305000,
	} {
		all = append(all, Attempt{Name: name, Do: try(unix.SYS_IOCTL, stdin, nr, buf)})
	}
	return all
}

func deadly() []Attempt {
	buf := memory(page)
	self, parent := uintptr(unix.Getpid()), uintptr(unix.Getppid())
	argv := memory(16)
	return []Attempt{
		{Name: "execve", Do: try(unix.SYS_EXECVE, text("/bin/true"), argv, argv)},
		{Name: "ptrace of the broker", Do: try(unix.SYS_PTRACE, unix.PTRACE_SEIZE, parent)},
		{Name: "memory of the broker", Do: try(unix.SYS_PROCESS_VM_READV, parent, buf, 1, buf, 1)},
		{Name: "bpf", Do: try(unix.SYS_BPF, 0, buf, 72)},
		{Name: "mount", Do: try(unix.SYS_MOUNT, text("none"), text("/mnt"), text("tmpfs"))},
		{Name: "unshare", Do: try(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
		{Name: "setuid", Do: try(unix.SYS_SETUID, 0)},
		{Name: "files of the broker", Do: try(unix.SYS_PIDFD_OPEN, self)},
	}
}

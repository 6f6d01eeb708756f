// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Call is a kind of system call.
type Call struct {
	NR      int    `json:"nr"`
	Request uint32 `json:"request,omitempty"` // of ioctl
}

// runtime reports whether only Go's runtime makes such calls: for signals, stacks of threads,
// and the sleep of idle threads. They change nothing outside of the process.
func (c Call) runtime() bool {
	switch c.NR {
	case unix.SYS_FUTEX, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_TGKILL, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_MADVISE,
		unix.SYS_CLONE, unix.SYS_MINCORE, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETRANDOM, unix.SYS_RESTART_SYSCALL,
		unix.SYS_CLOCK_GETTIME:
		return true
	}
	return false
}

var names = map[int]string{
	unix.SYS_READ: "read", unix.SYS_WRITE: "write", unix.SYS_READV: "readv", unix.SYS_WRITEV: "writev",
	unix.SYS_PREAD64: "pread64", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PREADV: "preadv", unix.SYS_PWRITEV: "pwritev",
	unix.SYS_OPENAT: "openat", unix.SYS_CLOSE: "close", unix.SYS_IOCTL: "ioctl", unix.SYS_FCNTL: "fcntl",
	unix.SYS_MMAP: "mmap", unix.SYS_MUNMAP: "munmap", unix.SYS_MREMAP: "mremap", unix.SYS_MPROTECT: "mprotect", unix.SYS_MLOCK: "mlock",
	unix.SYS_SOCKET: "socket", unix.SYS_SOCKETPAIR: "socketpair", unix.SYS_CONNECT: "connect", unix.SYS_BIND: "bind",
	unix.SYS_LISTEN: "listen", unix.SYS_ACCEPT4: "accept4", unix.SYS_SENDMSG: "sendmsg", unix.SYS_RECVMSG: "recvmsg",
	unix.SYS_SENDTO: "sendto", unix.SYS_RECVFROM: "recvfrom", unix.SYS_SENDMMSG: "sendmmsg", unix.SYS_RECVMMSG: "recvmmsg",
	unix.SYS_SETSOCKOPT: "setsockopt", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_GETSOCKNAME: "getsockname",
	unix.SYS_GETPEERNAME: "getpeername", unix.SYS_SHUTDOWN: "shutdown",
	unix.SYS_EPOLL_CREATE1: "epoll_create1", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_EPOLL_PWAIT: "epoll_pwait",
	unix.SYS_EVENTFD2: "eventfd2", unix.SYS_PPOLL: "ppoll", unix.SYS_TIMERFD_CREATE: "timerfd_create",
	unix.SYS_TIMERFD_SETTIME: "timerfd_settime", unix.SYS_MEMFD_CREATE: "memfd_create",
	unix.SYS_IO_URING_SETUP: "io_uring_setup", unix.SYS_IO_URING_ENTER: "io_uring_enter", unix.SYS_IO_URING_REGISTER: "io_uring_register",
	unix.SYS_BPF: "bpf", unix.SYS_PRCTL: "prctl", unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_GETRUSAGE: "getrusage",
	unix.SYS_SCHED_SETATTR: "sched_setattr", unix.SYS_SCHED_SETSCHEDULER: "sched_setscheduler", unix.SYS_SETPRIORITY: "setpriority",
	unix.SYS_GETPRIORITY: "getpriority", unix.SYS_SCHED_SETAFFINITY: "sched_setaffinity",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync",
	unix.SYS_FLOCK: "flock", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWNAT: "fchownat",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_GETDENTS64: "getdents64", unix.SYS_READLINKAT: "readlinkat", unix.SYS_FSTAT: "fstat", unix.SYS_STATFS: "statfs",
	unix.SYS_FSTATFS: "fstatfs", unix.SYS_LSEEK: "lseek", unix.SYS_FACCESSAT: "faccessat", unix.SYS_FACCESSAT2: "faccessat2",
	unix.SYS_UNAME: "uname", unix.SYS_SYSINFO: "sysinfo", unix.SYS_GETCWD: "getcwd", unix.SYS_GETUID: "getuid", unix.SYS_GETEUID: "geteuid",
	unix.SYS_GETGID: "getgid", unix.SYS_GETEGID: "getegid", unix.SYS_CAPGET: "capget", unix.SYS_CAPSET: "capset",
	unix.SYS_PIPE2: "pipe2", unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_WAITID: "waitid", unix.SYS_WAIT4: "wait4",
	unix.SYS_PIDFD_OPEN: "pidfd_open", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal", unix.SYS_KILL: "kill",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_MEMBARRIER: "membarrier", unix.SYS_STATX: "statx",
	unix.SYS_SECCOMP: "seccomp", unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_EXIT: "exit", unix.SYS_CLONE3: "clone3",
	unix.SYS_TIMER_CREATE: "timer_create", unix.SYS_TIMER_SETTIME: "timer_settime", unix.SYS_TIMER_DELETE: "timer_delete", unix.SYS_RSEQ: "rseq",
	unix.SYS_SET_ROBUST_LIST: "set_robust_list", unix.SYS_SET_TID_ADDRESS: "set_tid_address", unix.SYS_SYNC_FILE_RANGE: "sync_file_range",
	unix.SYS_FADVISE64: "fadvise64", unix.SYS_GETTIMEOFDAY: "gettimeofday", unix.SYS_INOTIFY_INIT1: "inotify_init1",
}

func (c Call) String() string {
	name, known := names[c.NR]
	if !known {
		name = otherName(c.NR)
	}
	if c.NR == unix.SYS_IOCTL {
		return fmt.Sprintf("ioctl %#x", c.Request)
	}
	return name
}

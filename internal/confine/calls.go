// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Policy lists the calls that a process may make beside those that every process of this program may.
type Policy struct {
	Ioctls        []uint32  // numbers
	Registrations []uint32  // operations of io_uring_register(2)
	Fcntls        []uint32  // commands of fcntl(2)
	Calls         []uintptr // system calls, with any arguments
	Refused       []uintptr // system calls that fail although others of their sort kill

	// Sockets are the domains in which sockets may be made.
	Sockets []uint32

	// ReadFiles lets the process open files for reading.
	ReadFiles bool

	// Rest allows all other calls: only those that kill, executable memory, processes, signals
	// to others, and sockets of other domains are taken away.
	Rest bool
}

// calls returns the system calls that are allowed with any arguments, those first that a
// packet process makes often.
func (p Policy) calls() []uintptr { return slices.Concat(common, archCalls, p.Calls) }

// common has the calls that every process may make, on each architecture.
var common = []uintptr{
	// Packets and events.
	unix.SYS_EPOLL_PWAIT, unix.SYS_IO_URING_ENTER, unix.SYS_READ, unix.SYS_WRITE,
	unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_FUTEX, unix.SYS_CLOCK_GETTIME,

	// Other work on open files and sockets.
	unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_CLOSE, unix.SYS_PPOLL,
	unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2,
	unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_FSTAT,

	// Memory. mmap and mprotect have rules.
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MREMAP, unix.SYS_BRK,

	// Threads and signals of this process. clone, kill and tgkill have rules.
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_RESTART_SYSCALL, unix.SYS_SCHED_YIELD, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,

	// Time and chance.
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM, unix.SYS_GETCPU,
}

// killed has the calls that end a process, since no path of the program makes them.
var killed = slices.Concat(archKilled, []uintptr{
	// Other programs.
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS,

	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KCMP,
	unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,

	// The kernel.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_USERFAULTFD, unix.SYS_SYSLOG, unix.SYS_QUOTACTL, unix.SYS_ACCT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SECCOMP,

	// Mounts.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,

	// Rights.
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETGROUPS, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_CAPSET, unix.SYS_PERSONALITY,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
})

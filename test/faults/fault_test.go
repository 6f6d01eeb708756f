// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/systrace"
)

// fault is one way in which a call can fail.
type fault struct {
	name    string
	verdict func(*injector, *systrace.Call) systrace.Verdict
}

// errno makes the call fail without running.
func errno(e unix.Errno) fault {
	return fault{unix.ErrnoName(e), func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Errno: e} }}
}

// answer makes a call return other data than it did.
func answer(name string, f func([]byte) []byte) fault {
	return fault{name, func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Rewrite: f} }}
}

var (
	late     = fault{"late by 1 s", func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Delay: time.Second} }}
	ended    = fault{"end of file", func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Fake: true} }}
	shortIn  = fault{"short read", func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Short: true} }}
	shortOut = fault{"short write", func(*injector, *systrace.Call) systrace.Verdict { return systrace.Verdict{Short: true} }}
	garbage  = answer("garbage", func(b []byte) []byte {
		for i := range b {
			b[i] ^= 0xa5
		}
		return b
	})
)

// refused makes the kernel refuse a netlink request: the request is swallowed, and its answer
// is an error.
func refused(e unix.Errno) fault {
	return fault{"refused: " + unix.ErrnoName(e), func(i *injector, c *systrace.Call) systrace.Verdict {
		header := c.Read(c.Args[1], unix.NLMSG_HDRLEN)
		if len(header) < unix.NLMSG_HDRLEN {
			return systrace.Verdict{}
		}
		msg := make([]byte, 0, 36)
		msg = binary.NativeEndian.AppendUint32(msg, 36)
		msg = binary.NativeEndian.AppendUint16(msg, unix.NLMSG_ERROR)
		msg = binary.NativeEndian.AppendUint16(msg, 0)
		msg = append(msg, header[8:12]...) // sequence number
		msg = binary.NativeEndian.AppendUint32(msg, netlinkPort(c))
		msg = binary.NativeEndian.AppendUint32(msg, uint32(-int32(e)))
		msg = append(msg, header...)
		from := make([]byte, unix.SizeofSockaddrNetlink)
		binary.NativeEndian.PutUint16(from, unix.AF_NETLINK)
		i.pending[c.Link(int(int32(c.Args[0])))] = systrace.Verdict{Fake: true, Data: msg, From: from}
		return systrace.Verdict{Fake: true, Return: int64(c.Args[2])}
	}}
}

// netlinkPort returns the port of the socket of a sendto.
func netlinkPort(c *systrace.Call) uint32 {
	inode := strings.Trim(strings.TrimPrefix(c.Link(int(int32(c.Args[0]))), "socket:"), "[]")
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", c.TID))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(table), "\n") {
		if f := strings.Fields(line); len(f) > 9 && f[9] == inode {
			n, _ := strconv.ParseUint(f[2], 10, 32)
			return uint32(n)
		}
	}
	return 0
}

func errnos(list ...unix.Errno) (all []fault) {
	for _, e := range list {
		all = append(all, errno(e))
	}
	return all
}

// mayLast reports whether a failure can happen each time. Go repeats calls without end that
// were interrupted, and loads of eBPF programs that the kernel wants again. Xen's device of
// event channels does not fail for a port that is bound: one such failure is enough to see that
// the daemon lives, and an event that is lost each time is one that the guest waits for.
func mayLast(kind string, f fault) bool {
	switch {
	case f.name == unix.ErrnoName(unix.EINTR):
		return false
	case strings.HasPrefix(kind, "bpf"):
		return f.name != unix.ErrnoName(unix.EAGAIN)
	}
	return kind != "write hypercall notify" && kind != "write hypercall unmask"
}

// faultsOf lists the failures that a kind of call can have, the most likely one first.
func faultsOf(kind string) []fault {
	name, rest, _ := strings.Cut(kind, " ")
	device := strings.HasPrefix(rest, "hypercall")
	switch name {
	case "openat":
		return errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSPC, unix.EIO, unix.EINTR, unix.EACCES)
	case "socket", "epoll_create1", "eventfd2", "pipe2", "memfd_create", "io_uring_setup":
		return errnos(unix.EMFILE, unix.ENFILE, unix.ENOMEM)
	case "mmap":
		return errnos(unix.ENOMEM, unix.EAGAIN, unix.ENFILE)
	case "ioctl":
		if strings.HasPrefix(rest, "TUNSETOWNER") || strings.HasPrefix(rest, "TUNSETGROUP") {
			return nil // these only look at the number
		}
		return errnos(unix.ENOMEM, unix.EBUSY, unix.EIO, unix.EINTR, unix.EPERM, unix.ENOSPC)
	case "bpf":
		return errnos(unix.ENOMEM, unix.EPERM, unix.EAGAIN, unix.EINTR)
	case "io_uring_enter":
		return errnos(unix.EAGAIN, unix.EBUSY, unix.EINTR, unix.ENOMEM)
	case "io_uring_register":
		return errnos(unix.ENOMEM, unix.EBUSY, unix.EMFILE)
	case "epoll_ctl":
		if strings.HasPrefix(rest, "2 ") {
			return nil // a removal does not fail
		}
		return errnos(unix.ENOMEM, unix.ENOSPC)
	case "accept4":
		return errnos(unix.EMFILE, unix.ECONNABORTED, unix.EINTR)
	case "connect", "bind", "listen":
		return errnos(unix.EAGAIN, unix.ENOMEM, unix.EACCES, unix.ECONNREFUSED)
	case "sendto", "sendmsg":
		if strings.Contains(rest, "netlink") {
			return append([]fault{refused(unix.ENOMEM), refused(unix.EBUSY), refused(unix.EPERM), refused(unix.ENODEV), late},
				errnos(unix.ENOBUFS, unix.EINTR, unix.EAGAIN)...)
		}
		return append(errnos(unix.ENOBUFS, unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED), late)
	case "recvfrom", "recvmsg":
		if strings.Contains(rest, "netlink") {
			return append(errnos(unix.ENOBUFS, unix.EINTR, unix.ENOMEM), late)
		}
		if device {
			return []fault{late} // the call itself fails where it is sent
		}
		return append(errnos(unix.EINTR, unix.ENOMEM), late)
	case "read", "pread64", "readv", "preadv", "preadv2":
		switch {
		case device:
			return []fault{late}
		case strings.HasPrefix(rest, "xenstore"):
			return append([]fault{late, ended, garbage, shortIn}, errnos(unix.EIO, unix.EINTR)...)
		case strings.HasPrefix(rest, "eventfd"):
			return errnos(unix.EAGAIN, unix.EINTR)
		case name == "read" && (strings.HasPrefix(rest, "tun") || strings.HasPrefix(rest, "pipe")):
			return errnos(unix.EAGAIN, unix.EINTR, unix.EIO, unix.ENOMEM)
		case name == "read":
			return append(errnos(unix.EIO, unix.EINTR), shortIn, ended)
		}
		if strings.HasPrefix(rest, "eventfd") {
			return errnos(unix.EAGAIN, unix.EINTR)
		}
		return errnos(unix.EIO, unix.EINTR, unix.EAGAIN)
	case "write", "pwrite64", "writev", "pwritev", "pwritev2":
		switch {
		case device && (strings.HasSuffix(rest, " munmap") || strings.HasSuffix(rest, " unmap") || strings.HasSuffix(rest, " unbind") || strings.HasSuffix(rest, " dealloc")):
			return nil // they do not fail; if they did the kernel would keep what they name
		case device:
			return errnos(unix.ENOMEM, unix.ENOSPC, unix.EINVAL, unix.ENOENT, unix.EBUSY, unix.EFAULT)
		case strings.HasPrefix(rest, "xenstore"):
			return append(errnos(unix.EPIPE, unix.EIO, unix.EINTR), shortOut, late)
		case strings.HasPrefix(rest, "tun"):
			return errnos(unix.EIO, unix.EAGAIN, unix.ENOBUFS, unix.EINTR, unix.ENOMEM)
		case strings.HasPrefix(rest, "log"):
			return errnos(unix.EIO, unix.EPIPE, unix.ENOSPC, unix.EAGAIN)
		}
		return append(errnos(unix.ENOSPC, unix.EIO, unix.EINTR), shortOut)
	case "fsync", "fdatasync", "fallocate", "ftruncate", "renameat", "renameat2", "mkdirat", "unlinkat":
		return errnos(unix.ENOSPC, unix.EIO, unix.EINTR)
	case "flock", "fcntl":
		return errnos(unix.ENOLCK, unix.EINTR)
	case "sched_setscheduler", "setpriority":
		return errnos(unix.EPERM)
	default:
		return errnos(unix.ENOMEM, unix.EIO)
	}
}

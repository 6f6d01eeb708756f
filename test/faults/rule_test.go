// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/systrace"
)

// phase is a part of a device's life, in which one call fails.
type phase int

const (
	connecting phase = iota
	inTraffic
	detaching
	takeover // the start of a successor, with a connected guest
	phases
)

func (p phase) String() string { return [...]string{"connect", "traffic", "detach", "takeover"}[p] }

// rule is a failure: of a kind of call in a phase.
type rule struct {
	phase phase
	kind  string
	fault fault
	lasts bool // every such call of the phase fails, not only the first
}

func (r rule) String() string {
	s := fmt.Sprintf("%v: %s: %s", r.phase, r.kind, r.fault.name)
	if r.lasts {
		s += " (each time)"
	}
	return s
}

// names reports whether a call has the name of the rule's kind.
func (r *rule) names(c *systrace.Call) bool {
	name, _, _ := strings.Cut(r.kind, " ")
	return c.Name() == name
}

// injector counts the calls of a daemon, and makes those fail that its rule is about. Its
// methods may be called from any goroutine.
type injector struct {
	mu      sync.Mutex
	count   map[string]int              // calls by kind; nil: not counted
	rule    *rule                       // nil: nothing fails
	struck  int                         // calls that failed
	pending map[string]systrace.Verdict // answers to swallowed requests, by file
}

func newInjector() *injector { return &injector{pending: map[string]systrace.Verdict{}} }

// calls are the numbers of the calls that are traced. See docs/faults.md for those that are
// missing.
var calls = []int{
	unix.SYS_ACCEPT4, unix.SYS_BIND, unix.SYS_BPF, unix.SYS_CONNECT, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL,
	unix.SYS_EVENTFD2, unix.SYS_FALLOCATE, unix.SYS_FDATASYNC, unix.SYS_FLOCK, unix.SYS_FSTAT, unix.SYS_FSYNC,
	unix.SYS_FTRUNCATE, unix.SYS_GETDENTS64, unix.SYS_GETSOCKNAME, unix.SYS_GETSOCKOPT, unix.SYS_IOCTL,
	unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_IO_URING_SETUP, unix.SYS_LISTEN, unix.SYS_LSEEK,
	unix.SYS_MEMFD_CREATE, unix.SYS_MKDIRAT, unix.SYS_MMAP, unix.SYS_NEWFSTATAT, unix.SYS_OPENAT, unix.SYS_PIPE2,
	unix.SYS_PREAD64, unix.SYS_PREADV, unix.SYS_PREADV2, unix.SYS_PWRITE64, unix.SYS_PWRITEV, unix.SYS_PWRITEV2,
	unix.SYS_READ, unix.SYS_READLINKAT, unix.SYS_READV, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2,
	unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SENDMSG, unix.SYS_SENDTO, unix.SYS_SETNS, unix.SYS_SETPRIORITY, unix.SYS_SETSOCKOPT,
	unix.SYS_SOCKET, unix.SYS_STATX, unix.SYS_UNLINKAT, unix.SYS_WRITE, unix.SYS_WRITEV,
}

// handle is the handler of the tracer.
func (i *injector) handle(c *systrace.Call) systrace.Verdict {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.count == nil && len(i.pending) == 0 && (i.rule == nil || !i.rule.names(c)) {
		return systrace.Verdict{} // which is all that most calls cost
	}
	kind := c.Kind()
	if kind == "" {
		return systrace.Verdict{}
	}
	if c.Nr == unix.SYS_RECVFROM {
		link := c.Link(int(int32(c.Args[0])))
		if v, ok := i.pending[link]; ok {
			delete(i.pending, link)
			return v
		}
	}
	if i.count != nil {
		i.count[kind]++
	}
	if r := i.rule; r != nil && r.kind == kind && (r.lasts || i.struck == 0) {
		i.struck++
		return r.fault.verdict(i, c)
	}
	return systrace.Verdict{}
}

// counting counts the calls while f runs.
func (i *injector) counting(f func() error) (map[string]int, error) {
	i.mu.Lock()
	i.count = map[string]int{}
	i.mu.Unlock()
	err := f()
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.count
	i.count = nil
	return n, err
}

// failing has calls fail while f runs, and returns how many did.
func (i *injector) failing(r rule, f func() error) (int, error) {
	i.mu.Lock()
	i.rule, i.struck = &r, 0
	i.mu.Unlock()
	err := f()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rule = nil
	return i.struck, err
}

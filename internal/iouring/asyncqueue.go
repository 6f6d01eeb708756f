// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// As with Ring, the queueing methods make no system call and do not allocate. They return
// false when the ring is full: then take completions and queue again. user must be below
// 1<<63. Memory must stay mapped until the operation's completion is taken.

// Read queues a read of up to n bytes at offset off of the file in slot, to addr.
func (a *Async) Read(slot int, off uint64, addr uintptr, n uint32, user uint64) bool {
	return a.queue(opRead, slot, off, uint64(addr), n, 0, 0, user)
}

// Write queues a write of n bytes at addr.
func (a *Async) Write(slot int, off uint64, addr uintptr, n uint32, user uint64) bool {
	return a.queue(opWrite, slot, off, uint64(addr), n, 0, 0, user)
}

// ReadFixed queues a read to addr, inside registered buffer buf.
func (a *Async) ReadFixed(slot int, off uint64, addr uintptr, n uint32, buf uint16, user uint64) bool {
	return a.queue(opReadFixed, slot, off, uint64(addr), n, 0, buf, user)
}

// WriteFixed queues a write of n bytes at addr, inside registered buffer buf.
func (a *Async) WriteFixed(slot int, off uint64, addr uintptr, n uint32, buf uint16, user uint64) bool {
	return a.queue(opWriteFixed, slot, off, uint64(addr), n, 0, buf, user)
}

// Readv queues a read into the n parts at iov, for example Iovecs.At. The array may be
// reused after SubmitAndWait.
func (a *Async) Readv(slot int, off uint64, iov uintptr, n uint32, user uint64) bool {
	return a.queue(opReadv, slot, off, uint64(iov), n, 0, 0, user)
}

// Writev queues a write of the n parts at iov.
func (a *Async) Writev(slot int, off uint64, iov uintptr, n uint32, user uint64) bool {
	return a.queue(opWritev, slot, off, uint64(iov), n, 0, 0, user)
}

// Datasync queues an fdatasync(2). It covers operations that completed before it was
// submitted, and not those under way.
func (a *Async) Datasync(slot int, user uint64) bool {
	return a.queue(opFsync, slot, 0, 0, 0, fsyncDatasync, 0, user)
}

// Fallocate queues a fallocate(2) of n bytes at off.
func (a *Async) Fallocate(slot int, mode uint32, off, n, user uint64) bool {
	return a.queue(opFallocate, slot, off, n, mode, 0, 0, user)
}

// Nop queues an operation that does nothing.
func (a *Async) Nop(user uint64) bool {
	ok := a.queue(opNop, 0, 0, 0, 0, 0, 0, user)
	if ok {
		a.sqes[(a.tail-1)&a.sqMask].flags = 0
	}
	return ok
}

func (a *Async) queue(op uint8, slot int, off, addr uint64, n, opFlags uint32, buf uint16, user uint64) bool {
	if a.owed >= a.limit {
		return false
	}
	e := a.entry(op, int32(slot), user&^pollTag)
	e.flags, e.off, e.addr, e.len = sqeFixedFile, off, addr, n
	e.opFlags, e.bufIndex = opFlags, buf
	a.owed++
	return true
}

// entry returns the next submission entry, empty but for its arguments.
func (a *Async) entry(op uint8, fd int32, user uint64) *sqe {
	e := &a.sqes[a.tail&a.sqMask]
	*e = sqe{}
	e.opcode, e.fd, e.userData = op, fd, user
	a.tail++
	return e
}

// Poll polls fd, which must stay open, for events (POLLIN), from the next SubmitAndWait
// on. A completion comes with user when fd becomes ready, and again whenever it becomes so
// anew: read it until EAGAIN. Polls do not count as operations under way.
func (a *Async) Poll(fd int, events uint32, user uint64) error {
	switch {
	case a.fd < 0:
		return ErrClosed
	case fd < 0:
		return fmt.Errorf("poll fd %d: %w", fd, unix.EBADF)
	}
	for i := range a.polls {
		if a.polls[i].fd == fd {
			return fmt.Errorf("poll fd %d: %w", fd, unix.EEXIST)
		}
	}
	i := a.freePoll()
	if i < 0 {
		return fmt.Errorf("poll fd %d: %d files are polled: %w", fd, MaxPolls, unix.ENOSPC)
	}
	a.polls[i] = poll{fd: fd, events: events, user: user}
	a.arm(i)
	return nil
}

// Exchange queues a read of n bytes of fd to from, and behind it a write of n bytes at to to
// the same file, which must be non-blocking and ready for both. There is one completion
// with user for each of the two that fails, and none if both succeed. The write is not
// made if the read moves less. One exchange may be queued for each SubmitAndWait. It does
// not count as an operation under way. The memory must stay mapped.
func (a *Async) Exchange(fd int, from, to uintptr, n uint32, user uint64) {
	a.exchange = user
	r := a.entry(opRead, int32(fd), exchangeTag)
	r.flags, r.addr, r.len = sqeIOLink|sqeCQESkipSuccess, uint64(from), n
	w := a.entry(opWrite, int32(fd), exchangeTag)
	w.flags, w.addr, w.len = sqeCQESkipSuccess, uint64(to), n
}

// freePoll returns the index of an unused poll, or -1.
func (a *Async) freePoll() int {
	for i := range a.polls {
		if a.polls[i].fd < 0 && !a.polls[i].armed {
			return i
		}
	}
	if len(a.polls) == MaxPolls {
		return -1
	}
	a.polls = append(a.polls, poll{})
	return len(a.polls) - 1
}

func (a *Async) arm(i int) {
	p := &a.polls[i]
	e := a.entry(opPollAdd, int32(p.fd), pollTag|uint64(i))
	e.len, e.opFlags = pollAddMulti, p.events
	p.armed = true
}

// Unpoll ends the polling of fd. No completion of it comes any more. The kernel lets go
// of the file at the next SubmitAndWait.
func (a *Async) Unpoll(fd int) error {
	for i := range a.polls {
		p := &a.polls[i]
		if p.fd != fd || fd < 0 {
			continue
		}
		p.fd = -1
		if p.armed {
			a.disarm(i)
		}
		return nil
	}
	return fmt.Errorf("end poll of fd %d: %w", fd, unix.ENOENT)
}

// disarm queues the removal of poll i. It completes only if it fails.
func (a *Async) disarm(i int) {
	e := a.entry(opPollRemove, -1, pollTag|uint64(MaxPolls+i))
	e.flags, e.addr = sqeCQESkipSuccess, pollTag|uint64(i)
}

// endPolls ends all polls, and waits until the kernel has let go of their files. Closing the
// ring does that too, but some time later.
func (a *Async) endPolls() error {
	for i := range a.polls {
		if fd := a.polls[i].fd; fd >= 0 {
			if err := a.Unpoll(fd); err != nil {
				return err
			}
		}
	}
	var none [MaxPolls]Completion
	for slices.ContainsFunc(a.polls, func(p poll) bool { return p.armed }) {
		if _, err := a.SubmitAndWait(1, time.Second); err != nil {
			return fmt.Errorf("end polls: %w", err)
		}
		a.Completions(none[:])
	}
	return nil
}

// polled handles the completion of a poll and reports whether it is for the caller.
func (a *Async) polled(c *cqe, dst *Completion) bool {
	i := int(c.userData &^ pollTag)
	if i >= MaxPolls { // a removal that failed
		i -= MaxPolls
		if c.res == -int32(unix.EALREADY) && a.polls[i].armed {
			a.disarm(i) // an event was on its way, and the kernel keeps the poll
		}
		return false
	}
	p := &a.polls[i]
	if c.flags&cqeMore == 0 {
		p.armed = false
	}
	if p.fd < 0 {
		return false // removed meanwhile
	}
	*dst = Completion{User: p.user, Res: c.res}
	if c.res < 0 {
		p.fd = -1
		return true
	}
	if !p.armed {
		a.arm(i)
	}
	return true
}

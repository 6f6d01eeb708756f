// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/heldwait"
)

// MaxPolls bounds the files that one Async polls.
const MaxPolls = 8

// pollTag marks the user data of polls. User data of operations must be below it.
const pollTag = 1 << 63

// exchangeTag is the user data of an exchange.
const exchangeTag = pollTag | 1<<32

// Async is an io_uring for operations that take time, such as those of disks. It belongs
// to one OS thread, as a Ring does. Queue operations, SubmitAndWait, take the completions
// that are there; the others come later, in any order.
type Async struct {
	mapping
	fd    int
	tail  uint32 // next entry to fill
	head  uint32 // next entry that the kernel takes
	taken uint32 // next completion to take

	// owed counts operations from queueing until their completion is taken. It never
	// exceeds limit. The submission ring has room for the polls beside them.
	owed  uint32
	limit uint32

	polls    []poll
	exchange uint64 // user data of a failed exchange
	files    int    // slots in the table of files

	// The arguments of io_uring_enter(2) are kept here, so that a call allocates nothing.
	wait    timespec
	waitArg geteventsArg

	buffers [][]byte // registered, so kept reachable

	thread int // that a reserved ring belongs to; 0: it is not reserved, or was not handed out
}

// poll is one polled file.
type poll struct {
	fd     int
	events uint32
	user   uint64
	armed  bool // the kernel has it, or an entry that the kernel will take
}

// NewAsync makes a ring for up to entries operations under way, owned by the calling OS
// thread. Errors are those of New, and it takes a reserved ring as New does.
func NewAsync(entries uint32) (*Async, error) {
	a, err := reserved.async(entries)
	if a == nil && err == nil {
		a, err = makeAsync(entries, 0)
	}
	return a, err
}

// makeAsync makes a ring with the best flags that the kernel takes, and more.
func makeAsync(entries, more uint32) (*Async, error) {
	a, err := openAsync(entries, setupSubmitAll|setupTaskrunFlag|setupSingleIssuer|setupDeferTaskrun|more)
	if errors.Is(err, unix.EINVAL) {
		a, err = openAsync(entries, setupSubmitAll|setupTaskrunFlag|setupCoopTaskrun|more) // before 6.1
	}
	return a, err
}

func openAsync(entries, flags uint32) (*Async, error) {
	if entries == 0 || entries > MaxEntries {
		return nil, fmt.Errorf("io_uring with %d entries: want 1 to %d", entries, MaxEntries)
	}
	p := params{flags: flags}
	fd, errno := setup(entries+2*MaxPolls, &p)
	if errno != 0 {
		return nil, setupError(errno)
	}
	a := &Async{fd: fd, limit: entries}
	if err := a.init(&p); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Async) init(p *params) error {
	if missing := featuresNeeded &^ p.features; missing != 0 {
		return notSupported(fmt.Sprintf("the kernel is older than Linux 5.19 (io_uring features %#x are missing)", missing), nil)
	}
	var err error
	if a.mapping, err = mapRings(a.fd, p); err != nil {
		return err
	}
	return probeOpcodes(a.fd, asyncOps...)
}

// asyncOps are the operations that an Async queues.
var asyncOps = []uint8{opNop, opReadv, opWritev, opReadFixed, opWriteFixed, opRead, opWrite,
	opFsync, opFallocate, opPollAdd, opPollRemove, opAsyncCancel}

// FD returns the ring's file descriptor. It polls readable when completions are there.
func (a *Async) FD() int { return a.fd }

// Entries returns the most operations that may be under way.
func (a *Async) Entries() int { return int(a.limit) }

// Owed returns the number of operations, polls apart, whose completions have not been
// taken.
func (a *Async) Owed() int { return int(a.owed) }

// Close unregisters files and buffers and closes the ring. It returns ErrBusy, and closes
// nothing, while operations are under way: the kernel uses their memory. Close may be
// called again.
func (a *Async) Close() error {
	if a.fd < 0 {
		return nil
	}
	if a.owed != 0 {
		return fmt.Errorf("close io_uring: %w", ErrBusy)
	}
	errs := []error{a.endPolls()}
	if a.files != 0 {
		if errno := register[byte](a.fd, unregisterFiles, nil, 0); errno != 0 {
			errs = append(errs, fmt.Errorf("unregister files: %w", threadError(errno)))
		}
	}
	if a.buffers != nil {
		if errno := register[byte](a.fd, unregisterBuffers, nil, 0); errno != 0 {
			errs = append(errs, fmt.Errorf("unregister buffers: %w", threadError(errno)))
		}
	}
	if a.thread != 0 && errors.Join(errs...) == nil {
		a.files, a.buffers = 0, nil
		kept := *a
		*a = Async{fd: -1}
		reserved.giveBack(&kept)
		return nil
	}
	for _, mem := range [][]byte{a.rings, a.slots} {
		if mem != nil {
			errs = append(errs, unix.Munmap(mem))
		}
	}
	errs = append(errs, unix.Close(a.fd))
	*a = Async{fd: -1}
	return errors.Join(errs...)
}

// SubmitAndWait hands all queued operations to the kernel, and waits until at least n
// completions can be taken, or until timeout has passed: a negative timeout waits without
// limit, none only looks. It returns the number of completions to take, which is also
// valid after an error. A signal may end the wait early. It makes one io_uring_enter(2),
// and none if nothing is queued and the completions are there.
//
// After EAGAIN and EBUSY, which mean that the kernel is short of memory or of room for
// completions, take the completions and call it again.
func (a *Async) SubmitAndWait(n int, timeout time.Duration) (ready int, err error) {
	if a.fd < 0 {
		return 0, ErrClosed
	}
	ready = a.ready()
	todo := a.tail - a.head
	if timeout == 0 || ready >= n {
		n = 0
	}
	if todo == 0 && n == 0 && a.sqFlags.Load()&(sqTaskrun|sqCQOverflow) == 0 {
		return ready, nil
	}
	a.waitArg.ts = nil
	if n > 0 && timeout > 0 {
		a.setWait(timeout)
	}
	a.sqTail.Store(a.tail)
	switch errno := a.enter(uint32(n), timeout); errno {
	case 0:
	case unix.ETIME, unix.EINTR:
		// Nothing was submitted, else the call would have succeeded.
	default:
		return a.ready(), fmt.Errorf("io_uring_enter: %w", threadError(errno))
	}
	return a.ready(), nil
}

// enter submits everything that is queued and waits for n completions, if n is not 0: first
// in a held wait, and in the usual way when that is not allowed or in vain.
func (a *Async) enter(n uint32, timeout time.Duration) unix.Errno {
	if n > 0 && heldwait.Begin() {
		var start time.Time
		if timeout > 0 {
			start = time.Now()
		}
		done, errno := enterHeld(a.fd, a.tail-a.head, n, &a.waitArg)
		heldwait.End()
		a.head += done
		if errno != 0 && errno != unix.EINTR || a.ready() >= int(n) {
			return errno
		}
		if timeout > 0 {
			left := timeout - time.Since(start)
			if left <= 0 {
				return 0
			}
			a.setWait(left)
		}
	}
	done, errno := enterArg(a.fd, a.tail-a.head, n, &a.waitArg)
	a.head += done
	return errno
}

// setWait sets the time limit of the next wait.
func (a *Async) setWait(timeout time.Duration) {
	a.wait = timespec{sec: int64(timeout / time.Second), nsec: int64(timeout % time.Second)}
	a.waitArg.ts = &a.wait
}

func (a *Async) ready() int { return int(a.cqTail.Load() - a.taken) }

// Completions takes up to len(dst) completions and returns their number. Res of a poll has
// the events (POLLIN), or a negative errno: then the file is polled no more.
func (a *Async) Completions(dst []Completion) int {
	if a.fd < 0 {
		return 0
	}
	taken := min(a.ready(), len(dst))
	n := 0
	for range taken {
		c := &a.cqes[a.taken&a.cqMask]
		a.taken++
		if c.userData&pollTag == 0 {
			dst[n] = Completion{User: c.userData, Res: c.res}
			a.owed--
			n++
		} else if c.userData == exchangeTag {
			dst[n] = Completion{User: a.exchange, Res: c.res} // it failed: else there is none
			n++
		} else if a.polled(c, &dst[n]) {
			n++
		}
	}
	if taken > 0 {
		a.cqHead.Store(a.taken)
	}
	return n
}

// Queued returns whether operations wait for SubmitAndWait.
func (a *Async) Queued() bool { return a.tail != a.head }

// SetWorkers bounds the kernel threads that run this thread's operations on files, when
// these cannot complete at once. The kernel's default is the smaller of the ring's
// entries and four for each CPU.
func (a *Async) SetWorkers(n uint32) error {
	if a.fd < 0 {
		return ErrClosed
	}
	counts := [2]uint32{min(n, math.MaxInt16), 0} // bounded, unbounded; 0 changes nothing
	if errno := register(a.fd, registerMaxWorkers, &counts[0], 2); errno != 0 {
		return fmt.Errorf("bound io_uring workers: %w", threadError(errno))
	}
	return nil
}

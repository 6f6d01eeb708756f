// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxEntries bounds the operations of one ring. A batch is tens of packets.
const MaxEntries = 8192

var (
	// ErrClosed is returned for a ring that was closed.
	ErrClosed = errors.New("io_uring is closed")

	// ErrBusy is returned by calls that need a ring without queued operations and
	// untaken completions.
	ErrBusy = errors.New("io_uring has operations under way")

	// ErrStuck is returned by Submit when an operation neither completed nor could
	// be cancelled within a second. The kernel may still use its buffer: close the
	// ring before the buffers are used again.
	ErrStuck = errors.New("io_uring operation does not complete")
)

// Completion is the result of one operation.
type Completion struct {
	User uint64 // as given when the operation was queued

	// Res is the number of bytes read or written, which may be fewer than
	// requested, or a negative errno: -EAGAIN if the operation would have to wait,
	// -EBADF for an empty slot.
	Res int32
}

// Ring is an io_uring that belongs to one OS thread. It is used in rounds:
// queue operations, Submit, take every completion.
type Ring struct {
	fd    int
	rings []byte // both rings, shared with the kernel
	slots []byte // submission queue entries, shared with the kernel

	sqes   []sqe
	sqMask uint32
	sqTail *atomic.Uint32 // written here, read by the kernel
	tail   uint32         // next entry to fill
	head   uint32         // next entry the kernel takes

	cqes   []cqe
	cqMask uint32
	cqHead *atomic.Uint32 // written here, read by the kernel
	cqTail *atomic.Uint32 // written by the kernel, read here
	taken  uint32         // next completion to take

	// owed counts operations from queueing until their completion is taken.
	// It never exceeds limit, which bounds both rings: the submission ring has room
	// for one request more, and completions cannot overflow.
	owed  uint32
	limit uint32

	// cancel is set when an operation is queued that waits instead of failing.
	cancel bool

	// rwFlags has RWF_NOWAIT or zero for each file slot; see the package comment.
	rwFlags []uint32

	buffers [][]byte // registered, so kept reachable
}

// New makes a ring for batches of up to entries operations, owned by the calling OS
// thread. The error matches ErrNotSupported if the kernel lacks a feature that the package
// needs, or if the administrator has disabled it. After [Reserve] it takes a reserved ring.
func New(entries uint32) (*Ring, error) {
	r, err := reserved.ring(entries)
	if r == nil && err == nil {
		r, err = makeRing(entries, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := r.probeCancel(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// makeRing makes a ring with the best flags that the kernel takes, and more.
func makeRing(entries, more uint32) (*Ring, error) {
	r, err := open(entries, setupSingleIssuer|setupDeferTaskrun|setupSubmitAll|more)
	if errors.Is(err, unix.EINVAL) {
		r, err = open(entries, more) // before 6.1
	}
	return r, err
}

func open(entries, flags uint32) (*Ring, error) {
	if entries == 0 || entries > MaxEntries {
		return nil, fmt.Errorf("io_uring with %d entries: want 1 to %d", entries, MaxEntries)
	}
	p := params{flags: flags}
	fd, errno := setup(entries+1, &p) // one more, for the request that cancels
	if errno != 0 {
		return nil, setupError(errno)
	}
	r := &Ring{fd: fd}
	if err := r.init(&p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.limit = p.sqEntries - 1
	return r, nil
}

// init maps the rings and checks that the kernel has the features that Ring relies on.
func (r *Ring) init(p *params) error {
	if missing := featuresNeeded &^ p.features; missing != 0 {
		return notSupported(fmt.Sprintf("the kernel is older than Linux 5.19 (io_uring features %#x are missing)", missing), nil)
	}
	m, err := mapRings(r.fd, p)
	r.rings, r.slots = m.rings, m.slots
	if err != nil {
		return err
	}
	r.sqes, r.sqMask, r.sqTail = m.sqes, m.sqMask, m.sqTail
	r.cqes, r.cqMask, r.cqHead, r.cqTail = m.cqes, m.cqMask, m.cqHead, m.cqTail
	return probeOpcodes(r.fd, ringOps...)
}

// ringOps are the operations that a Ring queues.
var ringOps = []uint8{opReadv, opWritev, opReadFixed, opWriteFixed, opAsyncCancel, opRead, opWrite}

// Close unregisters files and buffers and closes the ring. Then registered memory may be
// unmapped. Without the unregistration, files would stay open until the kernel destroys
// the ring in the background, and the name of a TAP would stay in use. Close may be
// called again.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	var errs []error
	if r.rwFlags != nil {
		if errno := register[byte](r.fd, unregisterFiles, nil, 0); errno != 0 {
			errs = append(errs, fmt.Errorf("unregister files: %w", threadError(errno)))
		}
	}
	if r.buffers != nil {
		if errno := register[byte](r.fd, unregisterBuffers, nil, 0); errno != 0 {
			errs = append(errs, fmt.Errorf("unregister buffers: %w", threadError(errno)))
		}
	}
	for _, mem := range [][]byte{r.rings, r.slots} {
		if mem != nil {
			errs = append(errs, unix.Munmap(mem))
		}
	}
	errs = append(errs, unix.Close(r.fd))
	*r = Ring{fd: -1} // limit 0: no operation can be queued any more
	return errors.Join(errs...)
}

// Entries returns the maximum of operations that may be queued or untaken. It is at least
// the argument of New.
func (r *Ring) Entries() int { return int(r.limit) }

// Submit runs all queued operations, in order, and returns the number of completions to
// take: without error, one for every operation.
//
// It makes one io_uring_enter(2), unless the kernel accepts a part of the batch only. On
// error, operations that the kernel did not accept stay queued for the next Submit.
// After EAGAIN and EBUSY, which mean that the kernel is short of memory, take the
// completions and submit again. After ErrStuck only Close is possible.
func (r *Ring) Submit() (ready int, err error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	if r.cancel {
		r.queueCancel()
	}
	if errno := r.enterAll(); errno != 0 {
		if r.cancel {
			r.tail-- // it is the last one, so the kernel did not reach it
		}
		return r.ready(), fmt.Errorf("io_uring_enter: %w", threadError(errno))
	}
	r.cancel = false
	if ready = r.ready(); uint32(ready) < r.owed {
		return r.settle()
	}
	return ready, nil
}

// enterAll submits all entries up to tail.
func (r *Ring) enterAll() unix.Errno {
	r.sqTail.Store(r.tail)
	for r.head != r.tail {
		n, errno := enter(r.fd, r.tail-r.head)
		switch {
		case errno == unix.EINTR:
			// No entry was accepted, or the call would have succeeded.
		case errno != 0:
			return errno
		case n == 0:
			return unix.EAGAIN
		default:
			// Without SUBMIT_ALL the kernel stops after an entry that fails.
			r.head += n
		}
	}
	return 0
}

const (
	settleWait  = 10 * time.Millisecond
	settleTries = 100
)

// settle cancels operations that the first request did not: a write to a full TAP, or a
// read that was being retried when the request ran.
func (r *Ring) settle() (int, error) {
	for range settleTries {
		r.queueCancel()
		r.sqTail.Store(r.tail)
		n, errno := enterWait(r.fd, r.tail-r.head, r.owed, timespec{nsec: int64(settleWait)})
		if errno == 0 {
			r.head += n
		}
		r.tail = r.head
		switch errno {
		case 0, unix.EINTR, unix.ETIME, unix.EAGAIN, unix.EBUSY:
		default:
			return r.ready(), fmt.Errorf("io_uring_enter: %w", threadError(errno))
		}
		if ready := r.ready(); uint32(ready) >= r.owed {
			return ready, nil
		}
	}
	return r.ready(), ErrStuck
}

func (r *Ring) ready() int { return int(r.cqTail.Load() - r.taken) }

// Completions takes up to len(dst) completions and returns their number. Operations run
// in the order in which they were queued, but completions of those that fail may be out
// of order: identify them by User.
func (r *Ring) Completions(dst []Completion) int {
	if r.fd < 0 {
		return 0
	}
	n := min(r.ready(), len(dst))
	for i := range n {
		c := &r.cqes[r.taken&r.cqMask]
		r.taken++
		dst[i] = Completion{User: c.userData, Res: c.res}
		if c.res == -int32(unix.ECANCELED) {
			dst[i].Res = -int32(unix.EAGAIN) // cancelled, since it would have to wait
		}
	}
	if n > 0 {
		r.cqHead.Store(r.taken)
		r.owed -= min(r.owed, uint32(n))
	}
	return n
}

// threadError explains the error of a ring that belongs to another thread.
func threadError(errno unix.Errno) error {
	if errno == unix.EEXIST {
		return fmt.Errorf("called from another thread than the one that made the ring: %w", errno)
	}
	return errno
}

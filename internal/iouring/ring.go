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

	// ErrBusy is returned by calls that need a ring without operations queued
	// or completions left to take.
	ErrBusy = errors.New("io_uring has operations under way")

	// ErrStuck is returned by Submit when an operation neither completed nor
	// could be taken back within a second. The kernel may still use its buffer:
	// close the ring, and do not reuse the buffers before.
	ErrStuck = errors.New("io_uring operation does not complete")
)

// Completion is the result of one operation.
type Completion struct {
	User uint64 // as given when the operation was queued

	// Res is the number of bytes read or written, which may be fewer than
	// asked, or a negative errno: -EAGAIN when the operation would have had to
	// wait, -EBADF for an empty slot.
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
	sqTail *atomic.Uint32 // we write, the kernel reads
	tail   uint32         // next entry to fill
	head   uint32         // next entry the kernel takes

	cqes   []cqe
	cqMask uint32
	cqHead *atomic.Uint32 // we write, the kernel reads
	cqTail *atomic.Uint32 // the kernel writes, we read
	taken  uint32         // next completion to take

	// owed counts operations from queueing until their completion is taken.
	// Kept within limit, it bounds both rings: the submission ring has room for
	// one request more, and completions cannot overflow.
	owed  uint32
	limit uint32

	// takeBack is set when an operation is queued that waits rather than fail.
	takeBack bool

	// rwFlags is, for each file slot, RWF_NOWAIT or zero: see the package comment.
	rwFlags []uint32

	buffers [][]byte // registered, so kept reachable
}

// New makes a ring for batches of up to entries operations, owned by the calling
// OS thread. The error matches ErrNotSupported where the kernel, or whoever rules
// over the process, does not offer what the package needs.
func New(entries uint32) (*Ring, error) {
	r, err := open(entries, setupSingleIssuer|setupDeferTaskrun|setupSubmitAll)
	if errors.Is(err, unix.EINVAL) {
		r, err = open(entries, 0) // before 6.1
	}
	return r, err
}

func open(entries, flags uint32) (*Ring, error) {
	if entries == 0 || entries > MaxEntries {
		return nil, fmt.Errorf("io_uring with %d entries: want 1 to %d", entries, MaxEntries)
	}
	p := params{flags: flags}
	fd, errno := setup(entries+1, &p) // one more, for the request that takes back
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

// init maps the rings and makes sure that the kernel does what Ring relies on.
func (r *Ring) init(p *params) error {
	if missing := featuresNeeded &^ p.features; missing != 0 {
		return notSupported(fmt.Sprintf("the kernel is older than Linux 5.19 (io_uring features %#x are missing)", missing), nil)
	}
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*16)
	var err error
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("map io_uring: %w", err)
	}
	if r.slots, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*64, prot, flags); err != nil {
		return fmt.Errorf("map io_uring entries: %w", err)
	}
	r.sqes = view[sqe](r.slots, 0, p.sqEntries)
	r.sqMask = p.sqEntries - 1
	r.sqTail = word(r.rings, p.sqOff.tail)
	r.cqes = view[cqe](r.rings, p.cqOff.cqes, p.cqEntries)
	r.cqMask = p.cqEntries - 1
	r.cqHead = word(r.rings, p.cqOff.head)
	r.cqTail = word(r.rings, p.cqOff.tail)

	// The kernel finds entries through an array of indices, made for rings that
	// keep entries apart. Ours are used in order.
	for i, index := 0, view[uint32](r.rings, p.sqOff.array, p.sqEntries); i < len(index); i++ {
		index[i] = uint32(i)
	}
	if err := r.probeOpcodes(); err != nil {
		return err
	}
	return r.probeTakeBack()
}

// Close lets go of files and buffers, then of the ring. Registered memory may be
// unmapped afterwards. Files are unregistered first since closing alone would
// keep them open until the kernel tears the ring down in the background, which
// for a TAP means that its name stays taken. Closing again is fine.
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
	*r = Ring{fd: -1} // limit 0: nothing can be queued any more
	return errors.Join(errs...)
}

// Entries is the number of operations that may be queued and not yet taken. It
// is at least what New was asked for.
func (r *Ring) Entries() int { return int(r.limit) }

// Submit runs all queued operations, in order, and returns how many completions
// there are to take: without error, one for every operation.
//
// It is one io_uring_enter(2) unless the kernel takes less than the whole batch.
// On error, operations the kernel did not take stay queued for the next Submit:
// EAGAIN and EBUSY mean that the kernel is short of memory, so take the
// completions there are and submit again. After ErrStuck only Close is left.
func (r *Ring) Submit() (ready int, err error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	if r.takeBack {
		r.queueTakeBack()
	}
	if errno := r.enterAll(); errno != 0 {
		if r.takeBack {
			r.tail-- // it comes behind everything, so the kernel did not get there
		}
		return r.ready(), fmt.Errorf("io_uring_enter: %w", threadError(errno))
	}
	r.takeBack = false
	if ready = r.ready(); uint32(ready) < r.owed {
		return r.settle()
	}
	return ready, nil
}

// enterAll hands all entries up to tail to the kernel.
func (r *Ring) enterAll() unix.Errno {
	r.sqTail.Store(r.tail)
	for r.head != r.tail {
		n, errno := enter(r.fd, r.tail-r.head)
		switch {
		case errno == unix.EINTR:
			// Nothing was taken, or the call would have succeeded.
		case errno != 0:
			return errno
		case n == 0:
			return unix.EAGAIN
		default:
			// Without SUBMIT_ALL the kernel stops behind an entry that fails.
			r.head += n
		}
	}
	return 0
}

const (
	settleWait  = 10 * time.Millisecond
	settleTries = 100
)

// settle takes back what the first attempt did not: a write to a full TAP, or
// a read that was just being retried when the request to take it back ran.
func (r *Ring) settle() (int, error) {
	for range settleTries {
		r.queueTakeBack()
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

// Completions takes up to len(dst) completions and returns how many it took.
// Operations run in the order in which they were queued, but completions of those
// that fail may come before or after their turn: go by User.
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
			dst[i].Res = -int32(unix.EAGAIN) // taken back, since it would have had to wait
		}
	}
	if n > 0 {
		r.cqHead.Store(r.taken)
		r.owed -= min(r.owed, uint32(n))
	}
	return n
}

// threadError explains the error that a ring of another thread answers with.
func threadError(errno unix.Errno) error {
	if errno == unix.EEXIST {
		return fmt.Errorf("called from another thread than the one that made the ring: %w", errno)
	}
	return errno
}

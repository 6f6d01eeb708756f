// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/iouring"
)

const (
	// MaxEntries bounds the operations under way of one engine.
	MaxEntries = 4096

	// MaxParts bounds the parts of one Readv or Writev (UIO_MAXIOV).
	MaxParts = 1024

	// UserLimit bounds the user values of operations and polls: they must be below it.
	UserLimit = 1 << 62
)

// ErrBusy is returned by calls that need an engine without operations under way.
var ErrBusy = errors.New("disk operations are under way")

// Completion is the result of one operation, or an event of a polled file.
type Completion = iouring.Completion

// Backing is a store that is not a file, for tests.
type Backing = disk.Backing

// Config has the bounds of an engine.
type Config struct {
	Entries int // most operations under way; 0: 256

	// Threads bounds the threads that run operations which cannot complete at once: the
	// kernel's for io_uring, else those of the pool. 0: 4. Long discards have one more.
	Threads int

	// NoIOUring uses the pool of threads even where io_uring works.
	NoIOUring bool
}

// Engine runs the operations of one disk at a time. See the package comment.
type Engine struct {
	ring    *iouring.Async                    // nil: the pool runs all operations
	why     error                             // for which io_uring is not used
	epoll   int                               // without a ring: the files to wait for
	polls   []polled                          // without a ring
	ready   [iouring.MaxPolls]unix.EpollEvent // those of the last wait
	entries int
	owed    int // operations outside of the ring whose completions were not taken

	disk  *disk.Disk
	route route
	sync  int // the disk's file, opened for this engine's flushes; -1: none

	done    *results // of pool and discards
	deaf    error    // why the ring does not poll done any more
	pool    *pool
	discard *pool
	local   fifo // completions of operations that needed no system call
	events  fifo // events of polled files, without a ring

	fixed  []span // registered memory
	inline inlineWrites
}

// route tells where the operations of the disk go.
type route uint8

const (
	routeNone route = iota // no disk: every operation fails with EBADF
	routeRing
	routePool
	routeNull
)

// span is one registered buffer.
type span struct{ start, end uintptr }

// New makes an engine, owned by the calling OS thread. It uses threads where io_uring is
// not available: IOUring has the reason.
func New(cfg Config) (*Engine, error) {
	if cfg.Entries == 0 {
		cfg.Entries = 256
	}
	if cfg.Threads == 0 {
		cfg.Threads = 4
	}
	if cfg.Entries < 1 || cfg.Entries > MaxEntries || cfg.Threads < 1 {
		return nil, fmt.Errorf("disk engine for %d operations with %d threads: want 1 to %d, and 1 or more", cfg.Entries, cfg.Threads, MaxEntries)
	}
	e := &Engine{epoll: -1, sync: -1, entries: cfg.Entries, local: newFIFO(cfg.Entries)}
	var err error
	if e.done, err = newResults(cfg.Entries); err != nil {
		return nil, err
	}
	e.pool = newPool(e.done, cfg.Entries, cfg.Threads)
	e.discard = newPool(e.done, cfg.Entries, 1)
	if cfg.NoIOUring {
		e.why = errors.New("switched off")
	} else {
		e.why = e.openRing(cfg)
		e.inline.queue = make([]op, 0, cfg.Entries)
	}
	if errors.Is(e.why, iouring.ErrNotSupported) || cfg.NoIOUring {
		err = e.openEpoll()
	} else {
		err = e.why
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// doneUser marks the event of e.done among those of the ring.
const doneUser = UserLimit

// Slots of the ring's files.
const (
	diskSlot = iota
	syncSlot
	numSlots
)

func (e *Engine) openRing(cfg Config) error {
	ring, err := iouring.NewAsync(uint32(cfg.Entries))
	if err != nil {
		return err
	}
	e.ring = ring
	if err := ring.RegisterFiles(numSlots); err != nil {
		return err
	}
	if err := ring.SetWorkers(uint32(cfg.Threads)); err != nil {
		return err
	}
	return ring.Poll(e.done.event, unix.POLLIN, doneUser)
}

// IOUring returns nil if the engine uses io_uring, else the reason why not.
func (e *Engine) IOUring() error { return e.why }

// FD returns a file descriptor that polls readable when completions may be there.
func (e *Engine) FD() int {
	if e.ring != nil {
		return e.ring.FD()
	}
	return e.epoll
}

// Entries returns the most operations that may be under way.
func (e *Engine) Entries() int { return e.entries }

// UnderWay returns the number of operations, polls apart, whose completions were not taken.
func (e *Engine) UnderWay() int {
	if e.ring != nil {
		return e.owed + e.ring.Owed()
	}
	return e.owed
}

// SetDisk sets the disk of all operations to come, or with nil takes the disk away. The
// engine then has no reference to the old disk any more. No operation may be under way.
func (e *Engine) SetDisk(d *disk.Disk) error {
	if e.UnderWay() != 0 {
		return fmt.Errorf("set disk: %w", ErrBusy)
	}
	fd, r := -1, routeNone
	switch {
	case d == nil:
	case d.Kind() == disk.KindNull:
		r = routeNull
	case d.Backing() != nil || e.ring == nil:
		r = routePool
	default:
		fd, r = d.FD(), routeRing
	}
	if err := errors.Join(e.openSync(d), e.setFiles(fd)); err != nil {
		return fmt.Errorf("set disk: %w", err)
	}
	e.disk, e.route = d, r
	e.discard.stop.Store(false)
	if r == routeRing {
		e.inline.setDisk(d)
	}
	return nil
}

// openSync opens the file of d for flushes.
func (e *Engine) openSync(d *disk.Disk) (err error) {
	if e.sync >= 0 {
		err = unix.Close(e.sync)
		e.sync = -1
	}
	if err == nil && d != nil && !d.ReadOnly() {
		e.sync, err = d.OpenAgain()
	}
	return err
}

// setFiles sets the files of the ring: fd is that of the disk, -1 for none.
func (e *Engine) setFiles(fd int) error {
	if e.ring == nil {
		return nil
	}
	sync := fd
	if e.sync >= 0 && fd >= 0 {
		sync = e.sync
	}
	return errors.Join(e.ring.SetFile(diskSlot, fd), e.ring.SetFile(syncSlot, sync))
}

// RegisterBuffers pins memory, at most 1 GiB in one piece. Read and Write within one piece
// then cost less. The memory must be anonymous. Call it once. It does nothing without
// io_uring.
func (e *Engine) RegisterBuffers(mem ...[]byte) error {
	if e.ring == nil {
		return nil
	}
	if len(mem) > math.MaxUint16 {
		return fmt.Errorf("register %d buffers: want at most %d", len(mem), math.MaxUint16)
	}
	if err := e.ring.RegisterBuffers(mem...); err != nil {
		return err
	}
	for _, m := range mem {
		start := address(m)
		e.fixed = append(e.fixed, span{start, start + uintptr(len(m))})
	}
	return nil
}

// Poll reports events (POLLIN) of fd, from the next SubmitAndWait on, as completions with
// user and the events in Res: once when fd is ready, and again whenever it becomes so
// anew. So read fd until EAGAIN. fd must stay open until Unpoll.
func (e *Engine) Poll(fd int, events uint32, user uint64) error {
	if user >= UserLimit {
		return fmt.Errorf("poll fd %d: user value %#x: %w", fd, user, unix.EINVAL)
	}
	if e.ring != nil {
		return e.ring.Poll(fd, events, user)
	}
	return e.addPoll(fd, events, user)
}

// Exchange reads n bytes of fd to from and then writes n bytes at to to it, with the next
// SubmitAndWait and without a system call of its own. The file must be non-blocking and
// ready for both. There is a completion with user only for a failure. It returns false
// without io_uring: then make the calls. Once for each SubmitAndWait.
func (e *Engine) Exchange(fd int, from, to uintptr, n uint32, user uint64) bool {
	if e.ring == nil {
		return false
	}
	e.ring.Exchange(fd, from, to, n, user)
	return true
}

// Unpoll ends the polling of fd: no completion of it comes any more.
func (e *Engine) Unpoll(fd int) error {
	if e.ring != nil {
		return e.ring.Unpoll(fd)
	}
	return e.removePoll(fd)
}

// SubmitAndWait starts all queued operations, and waits until at least n completions or
// events are there, or until timeout has passed: a negative timeout waits without limit,
// none only looks. It may return early. After an error, completions may be there too.
func (e *Engine) SubmitAndWait(n int, timeout time.Duration) error {
	if e.local.n > 0 || e.done.waiting() > 0 {
		timeout = 0
	}
	if e.ring == nil {
		return e.waitEpoll(n, timeout)
	}
	if len(e.inline.queue) > 0 {
		var err error
		if e.ring.Queued() {
			_, err = e.ring.SubmitAndWait(0, 0)
		}
		e.runInline() // also after an error: no later call may succeed
		if err != nil {
			return err
		}
		if e.local.n > 0 {
			timeout = 0
		}
	}
	if e.deaf != nil {
		timeout = 0
	}
	_, err := e.ring.SubmitAndWait(n, timeout)
	if err == nil {
		err = e.deaf
	}
	return err
}

// Completions takes up to len(dst) completions and returns their number. dst must have
// room for one. Res has the bytes moved, which may be fewer than asked for, or a negative
// errno.
func (e *Engine) Completions(dst []Completion) int {
	n := e.local.take(dst)
	n += e.done.take(dst[n:])
	e.owed -= n
	if e.ring == nil {
		return n + e.events.take(dst[n:])
	}
	end := n + e.ring.Completions(dst[n:])
	announced := false
	for _, c := range dst[n:end] {
		if c.User == doneUser {
			announced = true
			if c.Res < 0 {
				e.deaf = fmt.Errorf("poll for the completions of threads: %w", unix.Errno(-c.Res))
			}
			continue
		}
		dst[n] = c
		n++
	}
	if announced {
		e.done.clear()
		more := e.done.take(dst[n:])
		e.owed -= more
		n += more
	}
	return n
}

// Close ends the engine's threads and closes its files. It returns ErrBusy, and closes
// nothing, while operations are under way: they use their memory. Close may be called
// again.
func (e *Engine) Close() error {
	if e.UnderWay() != 0 {
		return fmt.Errorf("close disk engine: %w", ErrBusy)
	}
	var errs []error
	for _, p := range []*pool{e.pool, e.discard} {
		if p != nil {
			p.close()
		}
	}
	if e.ring != nil {
		errs = append(errs, e.ring.Close())
	}
	for _, fd := range []int{e.epoll, e.sync} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if e.done != nil {
		errs = append(errs, e.done.close())
	}
	*e = Engine{epoll: -1, sync: -1, why: e.why}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/diskio"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

const (
	// spuriousLimit is the number of events in a row that may bring no request. After
	// that the port stays masked for a growing delay, up to maxUnmaskDelay: a guest
	// that only sends events must not keep a thread busy.
	spuriousLimit  = 16
	maxUnmaskDelay = 10 * time.Millisecond

	sweepTurns = 256

	portBytes = 4

	// deafLook is the time after which a queue that the bell does not wake looks for
	// commands.
	deafLook = 100 * time.Millisecond

	// idleAfter is the time without requests after which a queue returns its memory.
	idleAfter = time.Second
)

// Commands to a queue.
const (
	cmdDrain uint32 = 1 << iota
	cmdClose
)

// bell wakes a queue's thread.
type bell struct {
	mu sync.Mutex
	fd int // eventfd; -1: none. Guarded by mu, but the thread reads it without
}

func (b *bell) open() (err error) {
	if b.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		b.fd = -1
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd >= 0 {
		one := [8]byte{1}
		_, _ = unix.Write(b.fd, one[:])
	}
}

func (b *bell) clear() {
	var n [8]byte
	_, _ = unix.Read(b.fd, n[:])
}

func (b *bell) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd >= 0 {
		_ = unix.Close(b.fd)
		b.fd = -1
	}
}

// tell gives the queue's thread a command.
func (q *queue) tell(cmd uint32) {
	if old := q.commands.Or(cmd); cmd == cmdClose && old&cmdClose == 0 {
		close(q.asked)
	}
	q.bell.ring()
}

// run is the queue's thread.
func (q *queue) run() {
	// The thread ends with the goroutine: it is io_uring's only submitter.
	runtime.LockOSThread()
	debug.SetPanicOnFault(true) // a fault on a guest's page costs only its vbd
	defer q.end()
	if err := q.openEngine(); err != nil {
		q.stop(fmt.Errorf("disk engine: %w", err))
		close(q.drained) // it has consumed nothing
		<-q.asked
		return
	}
	q.guard(q.resume)
	turns := &q.conn.pool.turns
	for {
		turns.take(q)
		q.guard(q.turn)
		q.guard(q.publish)
		q.hurry()
		turns.give(q)
		if q.over() {
			return
		}
		if err := q.sleep(); err != nil {
			q.stop(fmt.Errorf("disk engine: %w", err))
			q.outlast()
			return
		}
	}
}

// end releases everything and reports that to the connection. A queue that cannot release
// its memory never ends, so its disk stays open and locked.
func (q *queue) end() {
	if !q.release() {
		return
	}
	close(q.ended)
	q.conn.queueEnded()
}

// openEngine sets up the disk's engine. It runs on the queue's thread.
func (q *queue) openEngine() (err error) {
	e, err := diskio.New(diskio.Config{Entries: RingEntries, Threads: diskThreads, NoIOUring: q.conn.pool.opts.NoUring})
	if err != nil {
		return err
	}
	err = errors.Join(
		e.SetDisk(q.conn.cfg.Disk),
		e.Poll(q.bell.fd, unix.POLLIN, userWake),
		e.Poll(q.events.FD(), unix.POLLIN, userEvents))
	if err != nil {
		return errors.Join(err, e.Close())
	}
	q.engine = e
	if err := q.openExchange(); err != nil {
		return err
	}
	q.gauges.uring.Store(e.IOUring() == nil)
	return nil
}

// portFile is implemented by doubles of the device whose FD can be read and written, as that
// of the device.
type portFile interface{ portFile() }

// openExchange prepares to read and unmask the port together with other operations, which
// saves two system calls for each event. Doubles of the device cannot do that.
func (q *queue) openExchange() (err error) {
	switch q.events.(type) {
	case *evtchn.Device, portFile:
	default:
		return nil
	}
	if q.engine.IOUring() != nil {
		return nil
	}
	if q.exchange, err = gntdev.NewArena(2 * portBytes); err != nil {
		return err
	}
	binary.NativeEndian.PutUint32(q.exchange.Bytes()[portBytes:], uint32(q.port))
	return nil
}

// exchangeFailed reads and unmasks the port with system calls, and does not try again
// without them.
func (q *queue) exchangeFailed() error {
	q.noExchange = true
	return q.readEvents()
}

// over reports whether the thread must end: it was told to, and nothing is under way.
func (q *queue) over() bool {
	if q.commands.Load()&cmdClose == 0 || q.engine.UnderWay() > 0 {
		return false
	}
	return q.state == broken || q.state == closing && len(q.reads) == 0
}

// guard runs f. An error or a panic of it ends the service of the queue.
func (q *queue) guard(f func() error) {
	defer func() {
		if r := recover(); r != nil {
			err := fmt.Errorf("internal error: %v", r)
			q.conn.pool.opts.Warn(fmt.Errorf("queue %d of domain %d: %w\n%s", q.index, q.conn.cfg.Domid, err, debug.Stack()))
			q.stop(err)
		}
	}()
	if err := f(); err != nil {
		q.stop(err)
	}
}

// stop ends the service of the ring for good. Operations under way go on, and their memory
// stays until they have ended.
func (q *queue) stop(err error) {
	if q.state == broken {
		return
	}
	q.state = broken
	q.gauges.broken.Store(true)
	q.conn.cfg.Notice(Notice{Kind: Broken, Queue: q.index, Err: err})
}

// turn does all work that there is, up to a bound.
func (q *queue) turn() error {
	if q.complete() == 0 && q.resting {
		q.rest()
	}
	q.obey()
	if q.state == broken {
		return nil
	}
	q.shareDevice()
	q.sweep()
	q.deliverReads()
	before := q.tally[Batches]
	if q.failed {
		q.failed = false
		if err := q.exchangeFailed(); err != nil {
			return err
		}
	}
	if q.fired {
		if err := q.takeEvents(); err != nil {
			return err
		}
	}
	if err := q.consume(); err != nil {
		return err
	}
	switch {
	case q.tally[Batches] != before:
		q.spurious = 0
	case q.woken:
		q.spurious++
		q.tally[SpuriousWakes]++
	}
	q.woken = false
	if q.state != closing {
		q.start()
	}
	q.answer()
	return nil
}

// hurry submits what is queued within the turn if others wait for theirs: much of the work of
// an operation is in that call, and belongs to the guest's time.
func (q *queue) hurry() {
	if q.conn.pool.turns.crowded.Load() && q.engine.UnderWay() > 0 {
		q.tally[Syscalls]++
		_ = q.engine.SubmitAndWait(0, 0) // the call of sleep reports an error
	}
}

// obey reads the commands.
func (q *queue) obey() {
	if !q.rung {
		return
	}
	q.rung = false
	q.bell.clear()
	q.tally[Syscalls]++
	c := q.commands.Load()
	if q.state < draining && c&cmdDrain != 0 {
		q.state = draining
	}
	if q.state < closing && c&cmdClose != 0 {
		q.state = closing
		q.engine.StopDiscards()
	}
}

// sleep submits what is queued, and waits for a completion or an event unless there is
// work already.
func (q *queue) sleep() error {
	q.resting = false
	q.more = false
	q.guard(q.idle)
	timeout, n := time.Duration(0), 0
	if !q.more {
		timeout, n = q.timeout(), 1
	}
	q.resting = timeout > 0
	q.tally[Syscalls]++
	q.stats.flush(&q.tally)
	err := q.engine.SubmitAndWait(n, timeout)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOMEM):
		return nil // the kernel is short of memory: take completions and try again
	}
	return err
}

// idle prepares the queue to sleep, and sets more if it must not.
func (q *queue) idle() (err error) {
	q.checkDrained()
	q.account()
	if len(q.reads) > 0 && q.state != broken {
		q.more = true
		return nil
	}
	if q.state != serving {
		return nil
	}
	if q.pending.len() > 0 || q.hungry.len() > 0 {
		return nil // a completion will free memory, and end a barrier's wait
	}
	if q.more, err = q.ring.Arm(); q.more || err != nil {
		return err
	}
	return q.unmask()
}

// checkDrained reports to a Drain that everything was answered. A queue that has stopped
// for good answers nothing: its operations have ended.
func (q *queue) checkDrained() {
	var done bool
	switch q.state {
	case draining:
		done = q.started == 0 && q.pending.len() == 0 && len(q.answers) == 0
	case broken:
		done = q.commands.Load()&cmdDrain != 0 && q.engine.UnderWay() == 0
	}
	if !done || q.drainSent {
		return
	}
	q.drainSent = true
	close(q.drained)
}

// takeEvents reads the port that fired. It stays masked until the queue sleeps.
func (q *queue) takeEvents() error {
	q.fired = false
	q.tally[Wakes]++
	if q.exchange != nil && !q.noExchange {
		q.masked, q.woken, q.unread = true, true, true
		return nil
	}
	return q.readEvents()
}

// readEvents reads the port with a system call.
func (q *queue) readEvents() error {
	q.unread = false
	q.tally[Syscalls]++
	_, err := q.events.Pending(q.ports[:])
	if errors.Is(err, evtchn.ErrOverflow) {
		q.tally[Syscalls]++
		err = q.events.Reset()
	}
	if err != nil {
		return fmt.Errorf("event channel: %w", err)
	}
	q.masked, q.woken = true, true
	return nil
}

// unmask unmasks the port if it fired. The port of a guest with spurious events stays
// masked longer.
func (q *queue) unmask() error {
	if !q.masked {
		return nil
	}
	if q.spurious > spuriousLimit {
		now := time.Now()
		if q.unmaskAt.IsZero() {
			q.unmaskAt = now.Add(min(time.Millisecond<<min(q.spurious-spuriousLimit-1, 4), maxUnmaskDelay))
		}
		if now.Before(q.unmaskAt) {
			return nil
		}
	}
	q.unmaskAt = time.Time{}
	q.masked = false
	if q.unread {
		// The port that fired is read and unmasked by the call that waits.
		q.unread = false
		if mem := q.exchange.Bytes(); q.engine.Exchange(q.events.FD(), addressOf(mem), addressOf(mem[portBytes:]), portBytes, userExchange) {
			return nil
		}
		if err := q.readEvents(); err != nil {
			return err
		}
		q.masked = false
	}
	q.tally[Syscalls]++
	q.ports[0] = q.port
	if err := q.events.Unmask(q.ports[:1]); err != nil {
		return fmt.Errorf("event channel: %w", err)
	}
	return nil
}

// timeout returns the longest time to sleep.
func (q *queue) timeout() time.Duration {
	if q.deaf {
		return deafLook
	}
	if q.state != serving {
		return -1
	}
	if !q.unmaskAt.IsZero() {
		return max(time.Until(q.unmaskAt), 0) + time.Microsecond
	}
	if q.engine.UnderWay() > 0 {
		return -1
	}
	if q.data.idle() || q.meta.idle() {
		return idleAfter
	}
	if q.persistent != nil && q.persistent.count > 0 {
		return sweepEvery
	}
	return -1
}

// rest returns memory to the host after a time without requests.
func (q *queue) rest() {
	if q.engine.UnderWay() > 0 || q.started > 0 {
		return
	}
	for _, b := range [...]*buffers{q.data, q.meta} {
		if b.idle() {
			q.tally[Syscalls]++
			if err := b.release(); err != nil {
				q.conn.pool.opts.Warn(fmt.Errorf("return memory: %w", err))
			}
		}
	}
}

// sweep unmaps grants that were not used for long. It is called in every turn, and reads
// the clock once in sweepTurns of them.
func (q *queue) sweep() {
	p := q.persistent
	if p == nil || p.count == 0 {
		return
	}
	if q.turns++; q.turns%sweepTurns != 0 && !q.resting {
		return
	}
	now := time.Now()
	if q.sweepAt.IsZero() {
		q.sweepAt = now.Add(sweepEvery)
	}
	if !now.Before(q.sweepAt) {
		q.sweepAt = now.Add(sweepEvery)
		p.expire(q)
	}
}

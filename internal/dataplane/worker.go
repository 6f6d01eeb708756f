// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/evtchn"
)

const (
	// busyLimit bounds the work of a worker between two polls for events. A poll
	// costs about as much as a small packet. A turn counts as one unit, and as one
	// more for every slotsPerBusy slots; busyLimit units take some 200 µs. Measured time
	// counts as well: roundPart is busyLimit units.
	busyLimit    = 16
	slotsPerBusy = 16

	// spuriousLimit is the number of events in a row that may bring no work. After
	// that the ports stay masked for a growing delay, up to maxUnmaskDelay: a guest
	// that only sends events must not keep a worker busy.
	spuriousLimit  = 16
	maxUnmaskDelay = 10 * time.Millisecond

	maxQueues = 4096 // queues of one worker, and file slots of its io_uring

	linearBytes = 1 << 16
	iovecs      = 256 + batchPackets // every data slot of a ring, and a head for each packet
)

// worker is one thread of the data plane.
type worker struct {
	index  int
	pool   *Pool
	mail   mailbox
	load   int           // queues attached; guarded by pool.mu
	closed bool          // by mail
	failed error         // reason to end the worker; nil: none
	done   chan struct{} // closed when the thread has ended
	meter  loadMeter

	// expected is the part of a processor that the worker is expected to take, as far as it
	// is known. Guarded by pool.mu.
	expected float64

	queues  []*Queue // by id; nil where free
	sched   scheduler
	epoll   poller
	timers  timers
	urge    urgency
	delay   delayFile // of urge
	watch   turnWatch
	low     bool // for a guest that overruns; see overrun.go
	started bool // the same has a thread; guarded by pool.mu
	clock   func() time.Time
	now     time.Time      // see time; zero: not read yet
	busy    int            // units of work since the last poll; see busyLimit
	tally   tally          // of the current turn
	ports   [4]evtchn.Port // ports that fired; on the stack it would escape

	// A batch of packets each way.
	tx       txBatch
	rx       rxBatch
	virt     *virtBatches // nil: it has had no virtqueues
	txMem    arenaMem
	rxMem    arenaMem
	own      ownState
	pullAt   int // where the next pulled head goes in txMem
	merges   merges
	out      tapWriter
	reads    tapReads
	uring    ringIO
	exchange exchanger
	plain    plainTap
}

// ringIO holds the io_uring with which a worker reads and writes TAPs in batches.
type ringIO struct {
	ring  *iouring.Ring // nil: plain system calls
	fixed bool          // the arenas are registered with it
	iov   *iouring.Iovecs
	cqes  [batchPackets]iouring.Completion
}

// plainTap is memory for packets to a TAP without vnet header.
type plainTap struct {
	linear    []byte
	segment   []byte
	segmenter offload.Segmenter
}

// timers are the deadlines of a worker.
type timers struct {
	queues []*Queue  // queues that have a deadline
	alarm  time.Time // no deadline is earlier; zero: there is none
}

func newWorker(p *Pool, index int) (_ *worker, err error) {
	w := &worker{
		index: index, pool: p,
		mail:  mailbox{fd: -1},
		done:  make(chan struct{}),
		sched: scheduler{cpu: threadTime},
		epoll: poller{fd: -1},
		clock: time.Now,
		plain: plainTap{linear: make([]byte, linearBytes), segment: make([]byte, linearBytes)},
	}
	w.out.w, w.out.oneCPU = w, runtime.NumCPU() == 1
	defer func() {
		if err != nil {
			w.release()
		}
	}()
	if err = w.epoll.open(); err != nil {
		return nil, err
	}
	if err = w.mail.open(); err != nil {
		return nil, err
	}
	if err = w.epoll.watch(unix.EPOLL_CTL_ADD, w.mail.fd, 0, onMail, unix.EPOLLIN); err != nil {
		return nil, err
	}
	if w.txMem, err = newArenaMem(txMemBytes); err != nil {
		return nil, err
	}
	if w.rxMem, err = newArenaMem(rxArenaBytes); err != nil {
		return nil, err
	}
	if w.uring.iov, err = iouring.NewIovecs(iovecs); err != nil {
		return nil, err
	}
	if err = w.exchange.open(); err != nil {
		return nil, err
	}
	return w, nil
}

// RingEntries is the number of entries of a worker's io_uring.
const RingEntries = batchPackets

// openRing sets up io_uring. It runs on the worker's thread, which is the only
// one that may submit.
func (w *worker) openRing() error {
	r, err := iouring.New(RingEntries)
	if err != nil {
		return err
	}
	// Linux before 6.5 registers anonymous memory only.
	err = r.RegisterBuffers(w.txMem.mem, w.rxMem.mem)
	if w.uring.fixed = err == nil; err != nil && w.own.granted == 0 {
		_ = r.Close()
		return err
	}
	if err := r.RegisterFiles(maxQueues); err != nil {
		_ = r.Close()
		return err
	}
	w.uring.ring = r
	return nil
}

// ringFailed closes the worker's io_uring. The worker uses plain system calls from then on.
func (w *worker) ringFailed(err error) {
	if w.uring.ring != nil {
		_ = w.uring.ring.Close()
		w.uring.ring = nil
	}
	w.pool.warn(fmt.Errorf("worker %d goes on without io_uring: %w", w.index, err))
}

// newRing replaces the io_uring, in which a turn that panicked may have left operations.
func (w *worker) newRing() {
	w.exchange.queued = false
	if w.uring.ring == nil {
		return
	}
	_ = w.uring.ring.Close()
	w.uring.ring = nil
	err := w.openRing()
	for _, q := range w.queues {
		if q != nil && err == nil {
			err = w.uring.ring.SetFile(q.id, q.tap.FD())
		}
	}
	if err != nil {
		w.ringFailed(err)
	}
}

// release frees the resources of newWorker and openRing.
func (w *worker) release() {
	if w.uring.ring != nil {
		_ = w.uring.ring.Close()
		w.uring.ring = nil
	}
	if w.uring.iov != nil {
		_ = w.uring.iov.Close()
	}
	w.exchange.close()
	w.closeOwn()
	w.txMem.close()
	w.rxMem.close()
	w.mail.close()
	w.epoll.close()
	w.delay.close()
	if w.watch.stat != nil {
		_ = w.watch.stat.Close() // only read
	}
	w.urge.level.Store(uint32(levelNormal)) // the thread ends, or never was
}

// attach starts to serve a queue. It runs on the worker's thread.
func (w *worker) attach(q *Queue) error {
	id, err := w.freeID()
	if err != nil {
		return err
	}
	// This comes before the steps that can fail. On rings that were served before,
	// the event is sent even if there was nothing to replay: a predecessor killed
	// between publishing and notifying leaves a guest that sleeps, and no response
	// published later crosses its rsp_event again.
	if q.virt == nil && (q.journal.Replay(q.tx, q.rx) || q.tx.RspProd() != 0 || q.rx.RspProd() != 0) {
		w.notify(q, q.txPort)
		if q.rxPort != q.txPort {
			w.notify(q, q.rxPort)
		}
		q.stats.flush(&w.tally)
	}
	if err := w.admit(q, id); err != nil {
		w.dismiss(q, id)
		return err
	}
	q.attached = true
	q.served.Store(true)
	w.enroll(q, id)
	return nil
}

// freeID returns a free id for a queue. It may be len(w.queues).
func (w *worker) freeID() (int, error) {
	id := slices.Index(w.queues, nil)
	if id < 0 {
		id = len(w.queues)
	}
	if id == maxQueues {
		return id, fmt.Errorf("worker %d has %d queues already", w.index, maxQueues)
	}
	return id, nil
}

// enroll lists a queue under id, and schedules it: there may be work from before admit.
func (w *worker) enroll(q *Queue, id int) {
	if id == len(w.queues) {
		w.queues = append(w.queues, nil)
	}
	w.queues[id] = q
	q.id = id
	if q.virt == nil {
		q.ahead.note(q)
	}
	q.account = w.sched.open(q.conn)
	q.tapIn.ready = !q.tapIn.gone
	w.sched.schedule(q)
}

// admit registers a queue's files with io_uring and epoll, under id.
func (w *worker) admit(q *Queue, id int) error {
	if w.registerFile(q, id) {
		q.reader.useRing(w, id, w.uring.ring.NoWait(id))
	}
	if q.virt != nil {
		return w.admitVirt(q, id)
	}
	if err := w.openOwn(q, id); err != nil {
		return err
	}
	q.tapIn.armed = true
	if err := w.epoll.watch(unix.EPOLL_CTL_ADD, q.events.FD(), id, onEvtchn, unix.EPOLLIN); err != nil || q.tapIn.gone {
		return err
	}
	return w.epoll.watch(unix.EPOLL_CTL_ADD, q.tap.FD(), id, onTap, unix.EPOLLIN)
}

// registerFile registers the TAP of a queue with the io_uring, and reports whether the queue
// may use it. A ring that fails is replaced once. No guest is refused for want of one.
func (w *worker) registerFile(q *Queue, id int) bool {
	if w.uring.ring == nil {
		return false
	}
	err := w.uring.ring.SetFile(id, q.tap.FD())
	if err != nil {
		if w.newRing(); w.uring.ring == nil {
			return false
		}
		err = w.uring.ring.SetFile(id, q.tap.FD())
	}
	if err != nil {
		w.ringFailed(err)
	}
	return err == nil
}

// dismiss undoes admit, even if admit failed half way.
func (w *worker) dismiss(q *Queue, id int) {
	w.unwatch(q)
	if w.uring.ring != nil {
		if w.uring.ring.ClearFile(id) != nil {
			w.newRing() // the old one keeps the TAP
		}
	}
}

// unwatch removes a queue's files from epoll. It ignores files that are not there.
func (w *worker) unwatch(q *Queue) {
	if v := q.virt; v != nil {
		w.unwatchKick(&v.rx)
		w.unwatchKick(&v.tx)
	} else {
		_ = w.epoll.watch(unix.EPOLL_CTL_DEL, q.events.FD(), 0, onEvtchn, 0)
	}
	_ = w.epoll.watch(unix.EPOLL_CTL_DEL, q.tap.FD(), 0, onTap, 0)
}

// detachAll detaches all queues of a connection that the worker has. It runs on the worker's
// thread.
func (w *worker) detachAll(c *Conn) {
	for _, q := range c.queues {
		if w.has(q) {
			w.detach(q)
		}
	}
}

// detach stops serving a queue and drops its backlog. It runs on the worker's thread.
func (w *worker) detach(q *Queue) {
	if !q.attached {
		return
	}
	q.attached = false
	q.served.Store(false)
	w.queues[q.id] = nil
	w.dismiss(q, q.id)
	w.sched.leave(q)
	w.timers.queues = without(w.timers.queues, q)
	q.endResteer()
	q.backlog.close()
	q.conn.cfg.Limiter.release(&q.rate.share)
	// The owner is about to unmap the pages.
	q.tx, q.rx = nil, nil
	if v := q.virt; v != nil {
		v.rx.detach()
		v.tx.detach()
		v.memory, v.log = newVirtMemory(nil), nil
	}
}

// run serves the worker's queues until the worker is closed, or fails, or ends as a spare.
func (w *worker) run(started chan<- struct{}) {
	// The thread ends with the goroutine: it is io_uring's only submitter.
	runtime.LockOSThread()
	debug.SetPanicOnFault(true) // a fault on a guest's page costs only its vif
	w.meter.tid.Store(int32(threadID()))
	w.watch.openStat()
	if w.delay.open() == nil {
		w.meter.file.Store(w.delay.file)
	}
	defer close(w.done)
	defer w.release()
	w.pool.openRing(w)
	w.pool.openClass(w)
	if w.low {
		w.lower()
	}
	close(started)

	for !w.closed {
		switch {
		case !w.sched.waits():
			w.failed = w.poll(w.urge.patience(w.timeout()))
		case w.busy >= busyLimit:
			w.failed = w.poll(0)
		default:
			w.now = time.Time{}
		}
		if w.failed == nil {
			w.expire()
			if len(w.own.missing) > 0 {
				w.moreOwn()
			}
		}
		if w.failed == nil {
			w.round()
		}
		if w.failed != nil {
			w.pool.warn(fmt.Errorf("worker %d ends: %w", w.index, w.failed))
			return
		}
		if w.watch.spare && w.giveUp() {
			return
		}
	}
}

// time returns the approximate time at which this round began or the last measured turn
// ended. It reads the clock on first use: most rounds do not need it, and where the vDSO
// cannot read Xen's clock it is a system call.
func (w *worker) time() time.Time {
	if w.now.IsZero() {
		w.now = w.clock()
	}
	return w.now
}

// poll asks the kernel for events and waits for up to timeout milliseconds, or
// for ever if that is negative.
func (w *worker) poll(timeout int) error {
	events, err := w.epoll.wait(timeout)
	w.urge.woke(len(events) > 0, timeout, w.clock)
	w.tally[Polls]++
	w.busy = 0
	w.now = time.Time{}
	if err != nil {
		return err
	}
	mail := false
	for i := range events {
		ev := &events[i]
		if ev.Pad == onMail {
			mail = true
			continue
		}
		q := w.queues[ev.Fd]
		switch {
		case q == nil:
		case ev.Pad == onEvtchn:
			q.ev.fired = true
			w.sched.schedule(q)
		case ev.Pad == onKickRx:
			q.virt.rx.fired = true
			w.sched.schedule(q)
		case ev.Pad == onKickTx:
			q.virt.tx.fired = true
			w.sched.schedule(q)
		case ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0:
			w.tapGone(q)
		default:
			q.tapIn.ready = true
			w.sched.schedule(q)
		}
	}
	// Mail comes last, because it may give an id to another queue.
	if mail {
		w.readMail()
	}
	return nil
}

// turn moves one batch each way for a queue and reports whether it needs another turn. An
// error or a panic ends the service of this queue and of no other.
func (w *worker) turn(q *Queue) (again bool) {
	start := w.clockIn(q) // first: from begin on the pool may make this worker a spare
	w.watch.begin(w.pool, q)
	defer func() {
		w.turnEnds(q)
		if r := recover(); r != nil {
			w.newRing()
			w.breach(q, w.panicked(q, r))
			again = false
		}
		w.clockOut(q, start)
		q.stats.flush(&w.tally)
	}()
	if q.breached {
		return false
	}
	again, err := w.serve(q)
	if err != nil {
		w.breach(q, err)
		return false
	}
	return again
}

// serve does the work of a turn. An error is a breach.
func (w *worker) serve(q *Queue) (again bool, err error) {
	if q.virt != nil {
		return w.serveVirt(q)
	}
	woken := q.ev.fired && !q.ev.deferred
	q.ev.late = false
	if q.ev.fired {
		if err := w.noteEvents(q); err != nil {
			return false, err
		}
	}
	before := w.tally[TxSlots] + w.tally[RxSlots]
	var txMore, rxMore bool
	if q.rate.until.IsZero() {
		if txMore, err = w.txPass(q); err != nil {
			return false, err
		}
	}
	if q.tapIn.ready || q.waitsForSlots() || q.resteer != nil {
		if rxMore, err = w.rxPass(q); err != nil {
			return false, err
		}
	}
	moved := w.tally[TxSlots] + w.tally[RxSlots] - before
	w.busy += 1 + int(moved)/slotsPerBusy
	w.urge.tx += w.tally[TxSlots]
	w.urge.rx += w.tally[RxSlots]
	switch {
	case moved != 0:
		q.ev.spurious = 0
	case woken:
		q.ev.spurious++
		w.tally[SpuriousWakes]++
	}
	if txMore || rxMore {
		return true, w.keepEvents(q)
	}
	w.armTap(q)
	err = w.settleEvents(q)
	return q.ev.late, err
}

// takeEvents reads which ports fired. They stay masked until the queue is idle
// again.
func (w *worker) takeEvents(q *Queue) error {
	q.ev.deferred = false
	w.tally[Syscalls]++
	w.tally[EventCalls]++
	n, err := q.events.Pending(w.ports[:])
	if errors.Is(err, evtchn.ErrOverflow) {
		w.tally[Syscalls]++
		w.tally[EventCalls]++
		err = q.events.Reset()
		q.ev.maskAll(q)
	}
	if err != nil {
		return fmt.Errorf("event channel: %w", err)
	}
	for _, p := range w.ports[:n] {
		if q.ev.nMasked < len(q.ev.masked) && (p == q.txPort || p == q.rxPort) {
			q.ev.masked[q.ev.nMasked] = p
			q.ev.nMasked++
		}
	}
	return nil
}

// armTap makes epoll watch the TAP for packets only while they could be taken.
func (w *worker) armTap(q *Queue) {
	want := q.backlog.empty() && (q.resteer == nil || !q.resteer.pausesTap()) && (q.virt == nil || q.virt.delivers())
	if want == q.tapIn.armed || q.tapIn.gone {
		return
	}
	events := uint32(0)
	if want {
		events = unix.EPOLLIN
	}
	w.tally[Syscalls]++
	if err := w.epoll.watch(unix.EPOLL_CTL_MOD, q.tap.FD(), q.id, onTap, events); err == nil {
		q.tapIn.armed = want
	}
}

// unmask unmasks the ports that fired. It is called when the rings were found empty after
// event requests were set. The ports of a guest with spurious events stay masked longer.
func (w *worker) unmask(q *Queue) error {
	if q.ev.nMasked == 0 {
		return nil
	}
	if q.ev.spurious > spuriousLimit {
		if q.ev.unmaskAt.IsZero() {
			q.ev.unmaskAt = w.time().Add(q.ev.delay())
		}
		if w.time().Before(q.ev.unmaskAt) {
			return nil
		}
	}
	q.ev.unmaskAt = time.Time{}
	w.tally[Syscalls]++
	w.tally[EventCalls]++
	err := q.events.Unmask(q.ev.masked[:q.ev.nMasked])
	q.ev.nMasked = 0
	if err != nil {
		return fmt.Errorf("event channel: %w", err)
	}
	return nil
}

// delay returns the time for which the events of a guest with too many spurious ones are
// not watched.
func (e *eventState) delay() time.Duration {
	return min(time.Millisecond<<min(e.spurious-spuriousLimit-1, 4), maxUnmaskDelay)
}

// notify sends the guest an event. It ignores errors: if the domain is dying, the owner
// of the vif learns that elsewhere.
func (w *worker) notify(q *Queue, p evtchn.Port) {
	w.tally[Notifies]++
	w.tally[Syscalls]++
	_ = q.events.Notify(p)
}

// tapGone stops watching a TAP that was deleted, since epoll would report its error again
// and again.
func (w *worker) tapGone(q *Queue) {
	_ = w.epoll.watch(unix.EPOLL_CTL_DEL, q.tap.FD(), 0, onTap, 0)
	q.tapIn.gone, q.tapIn.ready = true, false
	q.conn.cfg.Notice(Notice{Kind: TapGone, Queue: q.index})
}

// breach stops serving a queue until its connection is closed, and reports err to the
// owner. The queue's ports stay masked.
func (w *worker) breach(q *Queue, err error) {
	if q.virt != nil {
		w.breakPair(q, err)
		return
	}
	q.breached = true
	q.endResteer()
	q.backlog.close()
	q.conn.cfg.Limiter.release(&q.rate.share)
	w.unwatch(q)
	q.rate.until, q.ev.unmaskAt, q.blocked.pollAt = time.Time{}, time.Time{}, time.Time{}
	q.conn.cfg.Notice(Notice{Kind: Breach, Queue: q.index, Err: err})
}

// setTimer updates the list of queues that have a deadline, and the alarm.
func (w *worker) setTimer(q *Queue) {
	d := q.deadline()
	if has := !d.IsZero(); has != q.timed {
		q.timed = has
		if has {
			w.timers.queues = append(w.timers.queues, q)
		} else {
			w.timers.queues = without(w.timers.queues, q)
		}
	}
	w.timers.alarm = earlier(w.timers.alarm, d)
}

// earlier returns the earlier of two instants. The zero time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// expire schedules the queues whose deadline has come, and the vifs whose rest is over.
func (w *worker) expire() {
	if w.timers.alarm.IsZero() || w.time().Before(w.timers.alarm) {
		return
	}
	w.timers.alarm = time.Time{}
	w.wake()
	for _, q := range w.timers.queues {
		d := q.deadline()
		if w.time().Before(d) {
			w.timers.alarm = earlier(w.timers.alarm, d)
			continue
		}
		if !w.time().Before(q.rate.until) {
			q.rate.until = time.Time{}
		}
		if !w.time().Before(q.blocked.pollAt) {
			q.blocked.pollAt = time.Time{}
		}
		w.sched.schedule(q)
	}
}

// timeout returns the time to the next deadline in milliseconds, rounded up, or -1 if
// there is none.
func (w *worker) timeout() int {
	if w.timers.alarm.IsZero() {
		return -1
	}
	d := w.timers.alarm.Sub(w.clock())
	if d <= 0 {
		return 0
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

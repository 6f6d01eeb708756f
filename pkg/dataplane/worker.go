// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/offload"
)

const (
	// busyRounds is how many rounds a worker that has work goes without
	// asking the kernel for events: asking costs as much as a batch of small
	// packets shares on everything else.
	busyRounds = 8

	// spuriousLimit is how many events in a row may bring no work before the
	// next are heard later and later, up to maxUnmaskDelay: a guest that only
	// sends events must not keep a worker busy.
	spuriousLimit  = 16
	maxUnmaskDelay = 10 * time.Millisecond

	maxQueues = 4096 // queues of one worker, and file slots of its io_uring

	linearBytes = 1 << 16
	iovecs      = 256 + batchPackets // every data slot of a ring, and a head for each packet
)

// pullBase is where pulled-up heads go in the tx arena.
const pullBase = txArenaBytes

// worker is one thread of the data plane.
type worker struct {
	index  int
	pool   *Pool
	epfd   int
	wakefd int
	calls  chan func()
	done   chan struct{}

	ring *iouring.Ring // nil: plain system calls

	queues []*Queue // by id; nil where free
	ready  []*Queue // have work
	timed  []*Queue // have a deadline
	load   int      // queues attached; guarded by pool.mu

	now    time.Time
	tally  tally
	closed bool

	tx     txBatch
	rx     rxBatch
	out    tapOut
	txMem  arenaMem
	rxMem  arenaMem
	pullAt int
	iov    *iouring.Iovecs
	cqes   [batchPackets]iouring.Completion

	// For TAPs without vnet header.
	linear    []byte
	segment   []byte
	segmenter offload.Segmenter
}

// What an epoll event is about, in EpollEvent.Pad; Fd has the queue's id.
const (
	onWake = iota
	onEvtchn
	onTap
)

func newWorker(p *Pool, index int) (_ *worker, err error) {
	w := &worker{
		index: index, pool: p, epfd: -1, wakefd: -1,
		calls:   make(chan func(), 16),
		done:    make(chan struct{}),
		linear:  make([]byte, linearBytes),
		segment: make([]byte, linearBytes),
	}
	w.out.w = w
	defer func() {
		if err != nil {
			w.release()
		}
	}()
	if w.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if w.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err = w.watch(unix.EPOLL_CTL_ADD, w.wakefd, 0, onWake, unix.EPOLLIN); err != nil {
		return nil, err
	}
	if w.txMem, err = newArenaMem(txArenaBytes + batchPackets*pullStride); err != nil {
		return nil, err
	}
	if w.rxMem, err = newArenaMem(rxArenaBytes); err != nil {
		return nil, err
	}
	if w.iov, err = iouring.NewIovecs(iovecs); err != nil {
		return nil, err
	}
	return w, nil
}

// openRing sets up io_uring. It runs on the worker's thread, which is the only
// one that may submit.
func (w *worker) openRing() error {
	r, err := iouring.New(batchPackets)
	if err != nil {
		return err
	}
	if err := r.RegisterBuffers(w.txMem.mem, w.rxMem.mem); err != nil {
		_ = r.Close()
		return err
	}
	if err := r.RegisterFiles(maxQueues); err != nil {
		_ = r.Close()
		return err
	}
	w.ring = r
	return nil
}

// ringFailed gives io_uring up for this worker. What was queued is lost; plain
// calls serve from here on.
func (w *worker) ringFailed(err error) {
	_ = w.ring.Close()
	w.ring = nil
	w.pool.warn(fmt.Errorf("io_uring failed, going on without: %w", err))
}

// newRing replaces the io_uring, in which a turn that panicked may have left
// operations that belong to nobody.
func (w *worker) newRing() {
	if w.ring == nil {
		return
	}
	_ = w.ring.Close()
	w.ring = nil
	err := w.openRing()
	for _, q := range w.queues {
		if q != nil && err == nil {
			err = w.ring.SetFile(q.file, q.tap.FD())
		}
	}
	if err != nil && w.ring != nil {
		w.ringFailed(err)
	}
}

func (w *worker) release() {
	if w.ring != nil {
		_ = w.ring.Close()
		w.ring = nil
	}
	if w.iov != nil {
		_ = w.iov.Close()
	}
	w.txMem.close()
	w.rxMem.close()
	if w.epfd >= 0 {
		_ = unix.Close(w.epfd)
	}
	if w.wakefd >= 0 {
		_ = unix.Close(w.wakefd)
	}
}

// watch changes what epoll tells of fd.
func (w *worker) watch(op, fd, id int, kind int32, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(id), Pad: kind}
	if err := unix.EpollCtl(w.epfd, op, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// post has the worker run f between two rounds. It reports whether the worker
// is still there.
func (w *worker) post(f func()) bool {
	select {
	case <-w.done:
		return false
	case w.calls <- f:
	}
	var one = [8]byte{1}
	_, _ = unix.Write(w.wakefd, one[:])
	return true
}

// call is post and waits until f has run.
func (w *worker) call(f func()) bool {
	ran := make(chan struct{})
	if !w.post(func() { defer close(ran); f() }) {
		return false
	}
	select {
	case <-ran:
		return true
	case <-w.done:
		return false
	}
}

func (w *worker) attach(q *Queue) (err error) {
	q.worker = w
	if !w.call(func() { err = w.attachHere(q) }) {
		return ErrClosed
	}
	return err
}

func (w *worker) attachHere(q *Queue) error {
	id := len(w.queues)
	for i, other := range w.queues {
		if other == nil {
			id = i
			break
		}
	}
	if id == maxQueues {
		return fmt.Errorf("worker %d has %d queues already", w.index, maxQueues)
	}
	if id == len(w.queues) {
		w.queues = append(w.queues, nil)
	}
	q.id, q.file = id, id
	if w.ring != nil {
		if err := w.ring.SetFile(q.file, q.tap.FD()); err != nil {
			return err
		}
	}
	if err := w.watch(unix.EPOLL_CTL_ADD, q.events.FD(), id, onEvtchn, unix.EPOLLIN); err != nil {
		return err
	}
	if err := w.watch(unix.EPOLL_CTL_ADD, q.tap.FD(), id, onTap, unix.EPOLLIN); err != nil {
		_ = w.watch(unix.EPOLL_CTL_DEL, q.events.FD(), id, onEvtchn, 0)
		return err
	}
	q.tapArmed = true
	q.attached = true
	w.queues[id] = q
	if q.journal.Replay(q.tx, q.rx) {
		w.notify(q, q.txPort)
		if q.rxPort != q.txPort {
			w.notify(q, q.rxPort)
		}
		q.stats.flush(&w.tally)
	}
	// There may be work from before the ports were bound.
	q.tapReady = true
	w.schedule(q)
	return nil
}

func (w *worker) detach(q *Queue) {
	w.call(func() {
		if !q.attached {
			return
		}
		q.attached = false
		_ = w.watch(unix.EPOLL_CTL_DEL, q.events.FD(), q.id, onEvtchn, 0)
		_ = w.watch(unix.EPOLL_CTL_DEL, q.tap.FD(), q.id, onTap, 0)
		if w.ring != nil {
			_ = w.ring.ClearFile(q.file)
		}
		w.queues[q.id] = nil
		w.ready = without(w.ready, q)
		w.timed = without(w.timed, q)
		q.dropHeld()
		q.hold.close()
		// The pages are about to be unmapped; nothing here may reach them.
		q.tx, q.rx = nil, nil
	})
	w.pool.dropped(w)
}

func without(list []*Queue, q *Queue) []*Queue {
	for i := range list {
		if list[i] == q {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

func (w *worker) schedule(q *Queue) {
	if !q.ready && !q.breached {
		q.ready = true
		w.ready = append(w.ready, q)
	}
}

// run is the worker's life.
func (w *worker) run(started chan<- error) {
	runtime.LockOSThread()
	// The thread dies with the goroutine: it was io_uring's only submitter.
	debug.SetPanicOnFault(true) // a page gone bad costs the vif it belongs to
	defer close(w.done)
	defer w.release()
	started <- w.pool.openRing(w)

	var events [64]unix.EpollEvent
	for round := 0; !w.closed; round++ {
		wait := 0
		if len(w.ready) == 0 {
			wait = w.nextTimeout()
		} else if round%busyRounds != 0 {
			wait = -2
		}
		if wait != -2 {
			n, err := w.epollWait(events[:], wait)
			if err != nil && !errors.Is(err, unix.EINTR) {
				w.pool.warn(fmt.Errorf("worker %d: epoll_wait: %w", w.index, err))
				return
			}
			w.now = time.Now()
			for i := range events[:max(n, 0)] {
				w.handle(&events[i])
			}
		} else {
			w.now = time.Now()
		}
		w.expire()
		w.round()
	}
}

// epollWait waits for events, timeout in milliseconds or -1. A wait of 0 cannot
// block, so the scheduler need not hear of it.
func (w *worker) epollWait(events []unix.EpollEvent, timeout int) (int, error) {
	return unix.EpollWait(w.epfd, events, timeout)
}

func (w *worker) handle(ev *unix.EpollEvent) {
	if ev.Pad == onWake {
		var b [8]byte
		_, _ = unix.Read(w.wakefd, b[:])
		for {
			select {
			case f := <-w.calls:
				f()
				continue
			default:
			}
			return
		}
	}
	q := w.queues[ev.Fd]
	if q == nil {
		return // detached while the event was on its way
	}
	if ev.Pad == onTap && ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		w.tapGone(q)
		return
	}
	if ev.Pad == onTap {
		q.tapReady = true
		w.schedule(q)
		return
	}
	w.takeEvents(q)
}

// takeEvents reads which ports fired. They stay masked until the queue is idle
// again.
func (w *worker) takeEvents(q *Queue) {
	var ports [4]evtchn.Port
	w.tally[Syscalls]++
	w.tally[Wakes]++
	n, err := q.events.Pending(ports[:])
	switch {
	case errors.Is(err, evtchn.ErrOverflow):
		_ = q.events.Reset()
		q.masked = [2]evtchn.Port{q.txPort, q.rxPort}
		q.nMasked = 2
	case err != nil:
		w.breach(q, fmt.Errorf("event channel: %w", err))
		return
	default:
		for _, p := range ports[:n] {
			if q.nMasked < len(q.masked) && (p == q.txPort || p == q.rxPort) {
				q.masked[q.nMasked] = p
				q.nMasked++
			}
		}
	}
	q.spurious++
	w.schedule(q)
	q.stats.flush(&w.tally)
}

// round gives every queue that has work one turn.
func (w *worker) round() {
	n := len(w.ready)
	for i := range n {
		q := w.ready[i]
		q.ready = false
		if w.turn(q) {
			w.schedule(q)
		}
		w.setTimer(q)
	}
	w.ready = w.ready[:copy(w.ready, w.ready[n:])]
}

// turn lets a queue do one batch each way and reports whether it wants another
// turn. Whatever goes wrong in it stays within this vif.
func (w *worker) turn(q *Queue) (again bool) {
	defer func() {
		if r := recover(); r != nil {
			w.newRing()
			w.breach(q, fmt.Errorf("internal error: %v", r))
			again = false
		}
		q.stats.flush(&w.tally)
	}()
	if q.breached {
		return false
	}
	var txMore, rxMore bool
	var err error
	before := w.tally[TxSlots] + w.tally[RxSlots]
	if q.rateUntil.IsZero() {
		if txMore, err = w.txPass(q); err != nil {
			w.breach(q, err)
			return false
		}
	}
	if q.tapReady || !q.hold.empty() || !q.blockedSince.IsZero() {
		if rxMore, err = w.rxPass(q); err != nil {
			w.breach(q, err)
			return false
		}
		w.armTap(q)
	}
	if w.tally[TxSlots]+w.tally[RxSlots] != before {
		q.spurious = 0
	}
	if txMore || rxMore {
		return true
	}
	w.unmask(q)
	return false
}

// armTap has epoll tell of packets only while they could be taken.
func (w *worker) armTap(q *Queue) {
	want := q.hold.empty()
	if want == q.tapArmed {
		return
	}
	events := uint32(0)
	if want {
		events = unix.EPOLLIN
	}
	w.tally[Syscalls]++
	if err := w.watch(unix.EPOLL_CTL_MOD, q.tap.FD(), q.id, onTap, events); err == nil {
		q.tapArmed = want
	}
}

// unmask lets the ports that fired fire again, now that the rings have been
// found empty after event requests were set. A guest that sends events for
// nothing waits.
func (w *worker) unmask(q *Queue) {
	if q.nMasked == 0 {
		return
	}
	if q.spurious > spuriousLimit {
		w.tally[SpuriousWakes]++
		if q.unmaskAt.IsZero() {
			delay := time.Millisecond << min(q.spurious-spuriousLimit-1, 4)
			q.unmaskAt = w.now.Add(min(delay, maxUnmaskDelay))
			return
		}
		if w.now.Before(q.unmaskAt) {
			return
		}
	}
	q.unmaskAt = time.Time{}
	w.tally[Syscalls]++
	if err := q.events.Unmask(q.masked[:q.nMasked]); err != nil {
		w.breach(q, fmt.Errorf("event channel: %w", err))
	}
	q.nMasked = 0
}

// notify sends the guest an event. That it cannot be sent, say because the
// domain is dying, is for the owner of the vif to find out.
func (w *worker) notify(q *Queue, p evtchn.Port) {
	w.tally[Notifies]++
	w.tally[Syscalls]++
	_ = q.events.Notify(p)
}

// tapGone stops watching a TAP that somebody deleted; epoll would tell of it for
// ever.
func (w *worker) tapGone(q *Queue) {
	_ = w.watch(unix.EPOLL_CTL_DEL, q.tap.FD(), q.id, onTap, 0)
	q.tapReady = false
	q.conn.cfg.Notice(Notice{Kind: TapGone, Queue: q.index})
}

// breach puts a queue to rest. Its ports stay masked.
func (w *worker) breach(q *Queue, err error) {
	if q.breached {
		return
	}
	q.breached = true
	q.dropHeld()
	_ = w.watch(unix.EPOLL_CTL_DEL, q.tap.FD(), q.id, onTap, 0)
	_ = w.watch(unix.EPOLL_CTL_DEL, q.events.FD(), q.id, onEvtchn, 0)
	q.rateUntil, q.unmaskAt, q.pollAt = time.Time{}, time.Time{}, time.Time{}
	q.conn.cfg.Notice(Notice{Kind: Breach, Queue: q.index, Err: err})
}

// setTimer keeps the list of queues that have a deadline.
func (w *worker) setTimer(q *Queue) {
	has := !q.deadline().IsZero()
	if has == q.timed {
		return
	}
	q.timed = has
	if has {
		w.timed = append(w.timed, q)
	} else {
		w.timed = without(w.timed, q)
	}
}

// expire schedules the queues whose deadline has come.
func (w *worker) expire() {
	for _, q := range w.timed {
		if d := q.deadline(); d.IsZero() || w.now.Before(d) {
			continue
		}
		if !w.now.Before(q.rateUntil) {
			q.rateUntil = time.Time{}
		}
		if !w.now.Before(q.pollAt) {
			q.pollAt = time.Time{}
		}
		w.schedule(q)
	}
}

// nextTimeout is the time to the next deadline in milliseconds, rounded up, or
// -1 if there is none.
func (w *worker) nextTimeout() int {
	var next time.Time
	for _, q := range w.timed {
		if d := q.deadline(); !d.IsZero() && (next.IsZero() || d.Before(next)) {
			next = d
		}
	}
	if next.IsZero() {
		return -1
	}
	d := time.Until(next)
	if d <= 0 {
		return 0
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

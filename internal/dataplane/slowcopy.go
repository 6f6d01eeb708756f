// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
)

// A page that a guest granted may be paged out, or shared with another domain. Xen
// then answers a grant copy with GNTST_eagain, and Linux tries that operation again
// within the system call, with waits of 1 ms, 2 ms and so on up to 256 of them, which
// cannot be interrupted (gnttab_retry_eagain_gop in drivers/xen/grant-table.c): half
// a minute for each page. There is no call that does not wait, and no way to know
// before.
//
// So the pool watches the copies that are under way. If one keeps its worker's thread
// asleep, a new worker replaces that worker and serves the vifs of all other guests. The
// blocked worker becomes a spare. When its copy has returned it serves the slow guest's
// vifs as a slow lane. If there are maxLanes lanes already, it hands the vifs to one of
// them and ends. Only vifs of the same lane wait for each other's copies. A vif that had
// no slow copy for the time of probation leaves its lane.
//
//	worker 3 ---- slow copy ----> spare, held ---- copy over ----> slow lane
//	   |                                     |                      ^    |
//	   | vifs of other guests                '-- its vifs to one ---'    | vifs that were not
//	   v                                         of maxLanes, and ends   | slow for probation
//	new worker 3 <-------------------------------------------------------'
//
// This costs two atomic operations per copy.
const (
	// copyTick is the interval of the checks for slow copies. A copy that two checks
	// find under way has taken between one and two ticks. Other vifs wait that long
	// for the first slow copy of a guest.
	copyTick = 50 * time.Millisecond

	// quietTicks is the number of ticks without a copy under way after which the
	// checks stop. The next copy starts them again.
	quietTicks = 10

	// probation is the time without a slow copy after which a vif shares a worker
	// with others again.
	probation = 10 * time.Second

	// maxLanes bounds the threads that serve slow vifs between their copies.
	maxLanes = 8
)

// MaxSpares bounds the threads for slow grant copies: those blocked in a copy, and the
// slow lanes. A copy cannot be interrupted, so each guest blocks one thread while its
// first slow copy is under way. Beyond the bound a slow copy blocks its worker with all
// its vifs. Each thread has some 8 MiB of buffers.
const MaxSpares = 128

// stolen is the value of underWay after the pool has moved the other vifs away.
const stolen = math.MaxUint64

// copyWatch is the state of a worker's grant copies.
type copyWatch struct {
	tid      int           // thread ID of the worker
	seq      uint64        // number of the last copy
	queue    *Queue        // queue of the last copy
	underWay atomic.Uint64 // number of the copy under way, 0 if there is none, or stolen
	seen     uint64        // last copy that a check found under way; only watchCopies uses it
	slow     atomic.Uint64 // last copy that was found to be slow
	relieved chan struct{} // closed when the other vifs have been moved away

	spare bool // the other vifs have been moved away
	lane  bool // serves slow vifs as long as there are any; guarded by pool.mu
}

// grantCopy makes a grant copy for a queue and reports whether all segments were copied.
// With an error the call as a whole failed, and no segment's status is valid.
func (w *worker) grantCopy(q *Queue, segs []gntdev.Segment) (okay bool, err error) {
	w.tally[GrantOps] += uint32(len(segs))
	w.tally[GrantOwnOps] += ownSegments(segs)
	err = w.copyOnce(q, segs)
	if err == nil && allOkay(segs) {
		return true, nil
	}
	if w.hasOwn() {
		err = w.copyAgain(q, segs, err)
	}
	return err == nil && allOkay(segs), err
}

// copyOnce makes a call for a grant copy. The pool watches how long it takes.
func (w *worker) copyOnce(q *Queue, segs []gntdev.Segment) error {
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	w.copyBegins(q)
	defer w.copied()
	return q.grants.Copy(segs)
}

// copyBegins notes the start of a copy, which copied ends.
func (w *worker) copyBegins(q *Queue) {
	c := &w.copies
	c.seq++
	c.queue = q
	c.underWay.Store(c.seq)
	w.pool.watch()
}

// copied notes the end of a copy. If the pool is moving the other vifs away it waits
// until that is done.
func (w *worker) copied() {
	c := &w.copies
	if !c.underWay.CompareAndSwap(c.seq, 0) {
		<-c.relieved
		c.underWay.Store(0)
	}
	if c.slow.Load() == c.seq {
		w.tally[SlowCopies]++
		w.now = time.Time{}
		until := w.time().Add(probation)
		if a := w.sched.find(c.queue.conn.guest()); a != nil {
			a.homeAt = until
		}
	}
}

// watch makes watchCopies start its checks.
func (p *Pool) watch() {
	if !p.watching.Load() && p.watching.CompareAndSwap(false, true) {
		select {
		case p.wakeup <- struct{}{}:
		default:
		}
	}
}

// watchCopies checks the copies of all workers until the pool is closed.
func (p *Pool) watchCopies() {
	defer close(p.watchDone)
	tick := time.NewTicker(copyTick)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-p.wakeup:
		case <-p.stop:
			return
		}
		tick.Reset(copyTick)
		for quiet := 0; quiet < quietTicks; quiet++ {
			select {
			case <-tick.C:
			case <-p.stop:
				return
			}
			if p.checkCopies() {
				quiet = 0
			}
		}
		p.watching.Store(false)
		if p.checkCopies() { // a copy that began meanwhile did not wake this loop
			p.watch()
		}
	}
}

// checkCopies reports whether there are copies under way, and relieves the workers of
// those that are slow.
func (p *Pool) checkCopies() (some bool) {
	for _, w := range p.all() {
		c := &w.copies
		seq := c.underWay.Load()
		if seq == 0 || seq == stolen {
			continue
		}
		some = true
		switch {
		case seq != c.seen:
			c.seen = seq
		case seq == c.slow.Load():
			_ = p.relieve(w, seq) // if there was no thread before, there may be one now
		case asleep(c.tid):
			c.slow.Store(seq)
			if err := p.relieve(w, seq); err != nil {
				p.warn(fmt.Errorf("worker %d is held up by a slow grant copy: %w", w.index, err))
			}
		}
	}
	return some
}

// asleep reports whether a thread of this process sleeps in the kernel. One that runs, or
// is ready to run, does not.
func asleep(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	_, state, ok := bytes.Cut(b, []byte(") ")) // the state follows "tid (name) "
	return err != nil || !ok || state[0] != 'R'
}

// errNoSpare is the error of relieve if there are [MaxSpares] spares.
var errNoSpare = fmt.Errorf("%d threads are for slow grant copies already", MaxSpares)

// relieve starts a worker that replaces w, whose copy seq is slow, and gives it the
// queues of other guests. It does nothing if w is a spare, which only serves slow vifs.
func (p *Pool) relieve(w *worker, seq uint64) error {
	p.mu.Lock()
	spare, full := slices.Contains(p.spares, w), len(p.spares) >= MaxSpares
	p.mu.Unlock()
	switch {
	case spare:
		return nil
	case full:
		return errNoSpare
	}
	heir, err := newWorker(p, w.index)
	if err != nil {
		return fmt.Errorf("start another worker: %w", err)
	}
	heir.clock, heir.reads.compared, heir.reads.ringSlow = w.clock, w.reads.compared, w.reads.ringSlow
	w.copies.relieved = make(chan struct{})
	if !w.copies.underWay.CompareAndSwap(seq, stolen) {
		heir.release()
		return nil // the copy has just ended
	}
	p.replace(w, heir)
	close(w.copies.relieved)
	go heir.run(make(chan struct{}))
	return nil
}

// replace puts heir in the place of w in the pool and gives it the queues of all guests
// except the one whose copy is slow. The thread of w is in the copy or waits for replace,
// and that of heir does not run yet, so the caller may change both workers.
func (p *Pool) replace(w, heir *worker) {
	slow := w.copies.queue.conn.guest()
	stay := make(map[*Conn]bool)
	var others []*Queue
	for _, q := range w.queues {
		switch {
		case q == nil:
		case q.conn.guest() == slow:
			stay[q.conn] = true
		default:
			others = append(others, q)
		}
	}
	for _, q := range others {
		w.drop(q)
	}
	if w.uring.ring != nil {
		// It has files of the queues that move, and only its own thread could remove them.
		_ = w.uring.ring.Close()
		w.uring.ring = nil
	}
	p.mu.Lock()
	heir.load, w.load = w.load, 0
	for c := range stay {
		for _, q := range c.queues {
			if q.counted && q.worker.Load() == w {
				heir.load--
				w.load++
			}
		}
	}
	p.workers[w.index] = heir
	p.spares = append(p.spares, w)
	p.mu.Unlock()

	m := &w.mail
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heir = heir
	for c := range stay {
		for _, q := range c.queues {
			if q.worker.Load() == w {
				q.onSpare.Store(true) // also a queue that is not attached yet
			}
		}
	}
	w.handOn(heir, others, func(w *worker) { w.adopt(others) })
	w.copies.spare = true
}

// handOn gives queues to another worker, which runs adopt to take them over. Mail that is
// not for this worker any more is forwarded after that. Preconditions: w.mail.mu held;
// the queues have been dropped.
func (w *worker) handOn(to *worker, queues []*Queue, adopt func(*worker)) {
	if len(queues) > 0 {
		to = to.putFirst(letter{queues[0], adopt})
	}
	for _, q := range queues {
		for _, o := range q.conn.queues { // also queues that are not attached yet
			o.worker.CompareAndSwap(w, to)
		}
	}
	stays := w.mail.mail[:0]
	for _, l := range w.mail.mail {
		if w.owns(l.q) {
			stays = append(stays, l)
		} else {
			w.next(l.q).post(l.q, l.f)
		}
	}
	w.mail.mail = stays
}

// drop removes a queue from the worker's lists, its epoll and its io_uring. The queue
// keeps its state for the worker that adopts it.
func (w *worker) drop(q *Queue) {
	w.unwatch(q)
	if w.uring.ring != nil {
		_ = w.uring.ring.ClearFile(q.id)
	}
	w.queues[q.id] = nil
	w.timers.queues = without(w.timers.queues, q)
	w.sched.leave(q)
	q.ready, q.timed, q.account = false, false, nil
}

// adopt takes over queues from a worker that has dropped them. It runs on the
// worker's thread.
func (w *worker) adopt(queues []*Queue) {
	for _, q := range queues {
		q.worker.Store(w)
		id, err := w.freeID()
		if err == nil && !q.breached {
			err = w.admit(q, id)
		}
		w.enroll(q, id)
		if err != nil {
			w.breach(q, fmt.Errorf("internal error: worker %d cannot take over: %w", w.index, err))
			q.stats.flush(&w.tally)
		}
		w.setTimer(q)
	}
}

// giveUp hands on the vifs that a spare need not serve any more, and reports whether the
// spare must end. It runs on the spare's thread, between rounds.
func (w *worker) giveUp() (end bool) {
	for _, a := range slices.Clone(w.sched.accounts) {
		if w.time().Before(a.homeAt) {
			w.timers.alarm = earlier(w.timers.alarm, a.homeAt)
		} else {
			w.giveHome(a)
		}
	}
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.copies.lane && len(w.sched.accounts) > 0 {
		lane := p.lane()
		if lane == nil {
			w.copies.lane = true
			return false
		}
		for _, a := range slices.Clone(w.sched.accounts) {
			w.giveLane(a, lane)
		}
	}
	// Another spare may have just handed a vif to this one, under the lock.
	if len(w.sched.accounts) > 0 || w.mail.waiting.Load() {
		return false
	}
	p.spares = without(p.spares, w)
	p.workers[w.index].load += w.load // queues of vifs that are being closed; see dropped
	w.load = 0
	return true
}

// lane returns the slow lane for the next vif, or nil if there are fewer than maxLanes.
// Preconditions: mu held.
func (p *Pool) lane() (best *worker) {
	lanes := 0
	better := func(a, b *worker) bool { // not in a copy now; else with fewer queues
		if x, y := a.copies.underWay.Load() == 0, b.copies.underWay.Load() == 0; x != y {
			return x
		}
		return a.load < b.load
	}
	for _, w := range p.spares {
		if !w.copies.lane {
			continue
		}
		lanes++
		if best == nil || better(w, best) {
			best = w
		}
	}
	if lanes < maxLanes {
		return nil
	}
	return best
}

// giveHome moves the vifs of a guest of a spare back to the worker that has replaced the
// spare.
func (w *worker) giveHome(a *account) {
	vifs, queues := w.take(a)
	p := w.pool
	p.mu.Lock()
	home := p.workers[w.index]
	p.moveLoad(vifs, w, home)
	p.mu.Unlock()

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	for _, c := range vifs {
		for _, q := range c.queues {
			if q.worker.Load() == w {
				q.onSpare.Store(false)
			}
		}
	}
	w.handOn(home, queues, func(w *worker) { w.adopt(queues) })
}

// giveLane moves the vifs of a guest of a spare to a slow lane. Preconditions: pool.mu held.
func (w *worker) giveLane(a *account, lane *worker) {
	vifs, queues := w.take(a)
	homeAt := a.homeAt
	w.pool.moveLoad(vifs, w, lane)

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	w.handOn(lane, queues, func(w *worker) {
		w.adopt(queues)
		queues[0].account.homeAt = homeAt
	})
}

// take drops all queues of a guest that are attached here, and returns them and their vifs.
func (w *worker) take(a *account) (vifs []*Conn, queues []*Queue) {
	for _, v := range a.vifs {
		vifs = append(vifs, v.conn)
	}
	for _, c := range vifs {
		for _, q := range c.queues {
			if q.attached && q.worker.Load() == w {
				queues = append(queues, q)
				w.drop(q)
			}
		}
	}
	return vifs, queues
}

// moveLoad moves the queues of connections from the load of one worker to that of another.
// Preconditions: mu held.
func (p *Pool) moveLoad(vifs []*Conn, from, to *worker) {
	for _, c := range vifs {
		for _, q := range c.queues {
			if q.counted && q.worker.Load() == from {
				from.load--
				to.load++
			}
		}
	}
}

// threadID returns the number of the calling thread (gettid(2)).
func threadID() int { return unix.Gettid() }

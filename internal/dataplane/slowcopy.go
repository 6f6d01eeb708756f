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
// asleep, the vifs of all other guests go to a new worker, which takes the worker's
// place. The thread that is held is a spare from there on. When its copy is over it
// goes on to serve the slow guest's vifs, as a slow lane, or hands them to a lane if
// there are enough of these, and ends. Vifs in one lane wait for each other's copies,
// and no other vif does. A vif that had no slow copy for a while leaves its lane.
//
//	worker 3 ---- slow copy ----> spare, held ---- copy over ----> slow lane
//	   |                                     |                      ^    |
//	   | vifs of other guests                '-- its vifs to one ---'    | vifs that were not
//	   v                                         of maxLanes, and ends   | slow for probation
//	new worker 3 <-------------------------------------------------------'
//
// A copy costs two atomic operations for that.
const (
	// copyTick separates the looks at copies, while there are any. A copy that
	// was under way twice has taken between one and two ticks. That is how long
	// others wait for the first slow copy of a guest.
	copyTick = 50 * time.Millisecond

	// quietTicks is for how many ticks without a copy under way the pool goes on
	// looking. Then it sleeps until there is one.
	quietTicks = 10

	// probation is for how long no copy of a vif may be slow before it shares a
	// worker with others again.
	probation = 10 * time.Second

	// maxLanes bounds the threads that serve slow vifs between their copies.
	maxLanes = 8
)

// MaxSpares bounds the threads for slow grant copies: those that are held by one, and
// the slow lanes. No call gets a thread out of a copy, so each guest whose first slow
// copy is under way holds one. Beyond the bound a copy holds its worker up. Each
// thread has some 8 MiB of buffers.
const MaxSpares = 128

// stolen is the state of a copy during which the other vifs were taken away.
const stolen = math.MaxUint64

// copyWatch is the state of a worker's grant copies.
type copyWatch struct {
	tid      int           // of the worker's thread
	seq      uint64        // number of the last copy
	queue    *Queue        // that the copy is for
	underWay atomic.Uint64 // the number of the copy while it is under way, or stolen
	seen     uint64        // the last copy that was seen under way; the pool's
	slow     atomic.Uint64 // the last copy that was found to be slow
	relieved chan struct{} // closed when the other vifs have been taken away

	spare bool // the other vifs have been taken away
	lane  bool // serves slow vifs for as long as there are any; guarded by pool.mu
}

// grantCopy makes a grant copy for a queue, under the eyes of the pool.
func (w *worker) grantCopy(q *Queue, segs []gntdev.Segment) error {
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	w.tally[GrantOps] += uint32(len(segs))
	c := &w.copies
	c.seq++
	c.queue = q
	c.underWay.Store(c.seq)
	w.pool.watch()
	defer w.copied()
	return q.grants.Copy(segs)
}

// copied ends a copy. If the other vifs are being taken away it waits until they are.
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
		for _, a := range w.accounts {
			if a.conn.cfg.Domid == c.queue.conn.cfg.Domid {
				a.homeAt = until
			}
		}
	}
}

// watch has the pool look at copies.
func (p *Pool) watch() {
	if !p.watching.Load() && p.watching.CompareAndSwap(false, true) {
		select {
		case p.wakeup <- struct{}{}:
		default:
		}
	}
}

// watchCopies looks at the copies of all workers until the pool is closed.
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
			if p.lookAtCopies() {
				quiet = 0
			}
		}
		p.watching.Store(false)
		if p.lookAtCopies() { // one that began meanwhile did not wake this loop
			p.watch()
		}
	}
}

// lookAtCopies reports whether there are copies under way, and relieves the workers
// of those that are slow.
func (p *Pool) lookAtCopies() (some bool) {
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

// asleep reports whether a thread of this process sleeps in the kernel, rather than
// runs or waits for a processor.
func asleep(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	_, state, ok := bytes.Cut(b, []byte(") ")) // behind a name
	return err != nil || !ok || state[0] != 'R'
}

// errNoSpare is why a worker is not relieved if there are [MaxSpares] spares.
var errNoSpare = fmt.Errorf("%d threads are for slow grant copies already", MaxSpares)

// relieve starts a worker that takes the place of w, whose copy seq is slow, and gives
// it the queues of other guests. On a spare, a slow copy concerns slow vifs alone.
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

// replace has heir take the place of w in the pool, with the queues of all guests but
// the one whose copy is slow. The thread of w is in the copy, or waits for this to be
// done, and heir's does not run yet: both are the caller's.
func (p *Pool) replace(w, heir *worker) {
	domid := w.copies.queue.conn.cfg.Domid
	stay := make(map[*Conn]bool)
	var others []*Queue
	for _, q := range w.queues {
		switch {
		case q == nil:
		case q.conn.cfg.Domid == domid:
			stay[q.conn] = true
		default:
			others = append(others, q)
		}
	}
	for _, q := range others {
		w.drop(q)
	}
	if w.ring != nil {
		// It has files of those that go, and other threads may not change that.
		_ = w.ring.Close()
		w.ring = nil
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
				q.onSpare.Store(true) // one that is not attached yet, too
			}
		}
	}
	w.handOn(heir, others, func(w *worker) { w.adopt(others) })
	w.copies.spare = true
}

// handOn gives queues to another worker: adopt is the letter that has it take them.
// All mail that is not for this worker any more goes on as well, behind that.
// Preconditions: w.mail.mu held; the queues have been dropped.
func (w *worker) handOn(to *worker, queues []*Queue, adopt func(*worker)) {
	if len(queues) > 0 {
		to = to.putFirst(letter{queues[0], adopt})
	}
	for _, q := range queues {
		for _, o := range q.conn.queues { // those that are not attached yet, too
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

// drop takes a queue out of the worker's books and ends its events, but lets go of
// nothing that is the queue's.
func (w *worker) drop(q *Queue) {
	w.unwatch(q)
	if w.ring != nil {
		_ = w.ring.ClearFile(q.id)
	}
	w.queues[q.id] = nil
	w.timed = without(w.timed, q)
	w.leave(q)
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

// giveUp has a spare give up the vifs that it need not serve any more, and reports
// whether it is to end. It runs on the spare's thread, between rounds.
func (w *worker) giveUp() (end bool) {
	for _, a := range slices.Clone(w.accounts) {
		if w.time().Before(a.homeAt) {
			w.alarm = earlier(w.alarm, a.homeAt)
		} else {
			w.giveHome(a)
		}
	}
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.copies.lane && len(w.accounts) > 0 {
		lane := p.lane()
		if lane == nil {
			w.copies.lane = true
			return false
		}
		for _, a := range slices.Clone(w.accounts) {
			w.giveLane(a, lane)
		}
	}
	// A vif that was handed here, under the lock, may be on its way.
	if len(w.accounts) > 0 || w.mail.waiting.Load() {
		return false
	}
	p.spares = without(p.spares, w)
	p.workers[w.index].load += w.load // of vifs that are being closed; see dropped
	w.load = 0
	return true
}

// lane returns the slow lane that is to get the next vif, or nil if there is to be one
// more. Preconditions: mu held.
func (p *Pool) lane() (best *worker) {
	lanes := 0
	better := func(a, b *worker) bool { // one that is in no copy now, or else with fewer queues
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

// giveHome gives a vif of a spare back to the workers.
func (w *worker) giveHome(a *account) {
	queues := w.take(a.conn)
	p := w.pool
	p.mu.Lock()
	home := p.workers[w.index]
	p.moveLoad(a.conn, w, home)
	p.mu.Unlock()

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	for _, q := range a.conn.queues {
		if q.worker.Load() == w {
			q.onSpare.Store(false)
		}
	}
	w.handOn(home, queues, func(w *worker) { w.adopt(queues) })
}

// giveLane gives a vif of a spare to a slow lane. Preconditions: pool.mu held.
func (w *worker) giveLane(a *account, lane *worker) {
	queues, homeAt := w.take(a.conn), a.homeAt
	w.pool.moveLoad(a.conn, w, lane)

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	w.handOn(lane, queues, func(w *worker) {
		w.adopt(queues)
		queues[0].account.homeAt = homeAt
	})
}

// take drops all queues of a connection that are attached here, and returns them.
func (w *worker) take(c *Conn) (queues []*Queue) {
	for _, q := range c.queues {
		if q.attached && q.worker.Load() == w {
			queues = append(queues, q)
			w.drop(q)
		}
	}
	return queues
}

// moveLoad counts the queues of a connection that are at worker from as those of
// worker to. Preconditions: mu held.
func (p *Pool) moveLoad(c *Conn, from, to *worker) {
	for _, q := range c.queues {
		if q.counted && q.worker.Load() == from {
			from.load--
			to.load++
		}
	}
}

// threadID returns the number of the calling thread (gettid(2)).
func threadID() int { return unix.Gettid() }

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A turn may hold its worker up. A page that a guest granted may be paged out, or shared with
// another domain. Xen then answers a grant copy with GNTST_eagain, and Linux tries that
// operation again within the system call, with waits of 1 ms, 2 ms and so on up to 256 of
// them, which cannot be interrupted (gnttab_retry_eagain_gop in drivers/xen/grant-table.c):
// half a minute for each page. There is no call that does not wait, and no way to know before.
// A call of the TAP, or the memory of a device of vhost-user, may hang as well.
//
// So the pool watches the turns that are under way. If one keeps its worker's thread asleep,
// or takes very long, a new worker replaces that worker and serves the vifs of all other guests.
// The blocked worker becomes a spare. When its turn is over it serves the slow guest's vifs as a
// slow lane. If there are maxLanes lanes already, it hands the vifs to one of them and ends. Only
// vifs of the same lane wait for each other. A guest that had no slow turn for the time of
// probation leaves its lane.
//
//	worker 3 ---- slow turn ----> spare, held ---- turn over ----> slow lane
//	   |                              |    |                         ^    |
//	   | vifs of other guests         |    '---- its vifs to one ----'    | guests that were not
//	   v                              |          of maxLanes, and ends    | slow for probation
//	new worker 3 <--------------------|-----------------------------------'
//	                                  '-- hungTime: breach of its guest's vifs
//
// This costs two atomic operations per turn.
const (
	// turnTick is the interval of the checks for slow turns. A turn that two checks
	// find under way has taken between one and two ticks. Other vifs wait that long
	// for the first slow turn of a guest.
	turnTick = 50 * time.Millisecond

	// longTicks is the number of checks after which a turn is slow although its thread is
	// not asleep.
	longTicks = 20

	// quietTicks is the number of ticks without a turn under way after which the
	// checks stop. The next turn starts them again.
	quietTicks = 10

	// hungTime is the time of a turn after which it is not expected to return. It is more
	// than the kernel takes for a grant copy of one page.
	hungTime = time.Minute
)

// MaxSpares bounds the threads for slow turns: those blocked in one, and the slow lanes. A
// system call cannot be interrupted, so each guest blocks one thread while its first slow turn
// is under way. Beyond the bound a slow turn blocks its worker with all its vifs. Each thread
// has some 8 MiB of buffers.
const MaxSpares = 128

// stolen is the value of underWay after the pool has moved the other vifs away.
const stolen = math.MaxUint64

// turnWatch is the state of a worker's turns.
type turnWatch struct {
	stat     *os.File              // the state of the thread in /proc; nil: it could not be opened
	seq      uint64                // number of the last turn
	last     *Queue                // the queue of the last turn, as queue has it
	queue    atomic.Pointer[Queue] // of the last turn
	underWay atomic.Uint64         // number of the turn under way, 0 if there is none, or stolen
	slow     atomic.Uint64         // last turn that was found to be slow
	relieved chan struct{}         // closed when the other vifs have been moved away

	// These belong to watchTurns.
	seen  uint64 // last turn that a check found under way
	since time.Time
	ticks int
	hung  bool // its guest was told

	spare bool // the other vifs have been moved away
	lane  bool // serves slow vifs as long as there are any; guarded by pool.mu
}

// begin notes the start of a turn of a queue, which end ends. The pool watches how long it
// takes.
func (c *turnWatch) begin(p *Pool, q *Queue) {
	if c.last != q {
		c.last = q
		c.queue.Store(q)
	}
	c.seq++
	c.underWay.Store(c.seq)
	p.watch()
}

// turnEnds notes the end of a turn. If the pool is moving the other vifs away it waits until
// that is done, and forgets them. Until then the turn may change nothing of other guests.
func (w *worker) turnEnds(q *Queue) {
	c := &w.watch
	if !c.underWay.CompareAndSwap(c.seq, 0) {
		<-c.relieved
		c.underWay.Store(0)
		w.forgetOthers(q.conn.guest())
	}
	if c.slow.Load() == c.seq {
		w.now = time.Time{}
		q.account.homeAt = w.time().Add(probation)
	}
}

// forgetOthers removes the queues of all other guests, which another worker has taken over,
// from this worker. It must not look at what a worker changes of a queue.
func (w *worker) forgetOthers(g guestID) {
	others := func(q *Queue) bool { return q.conn.guest() != g }
	for id, q := range w.queues {
		if q != nil && others(q) {
			w.queues[id] = nil
			if w.uring.ring != nil {
				_ = w.uring.ring.ClearFile(id)
			}
		}
	}
	w.timers.queues = slices.DeleteFunc(w.timers.queues, others)
	for _, a := range slices.Clone(w.sched.accounts) {
		if a.guest != g {
			w.sched.remove(a)
		}
	}
	if err := w.newEpoll(); err != nil {
		w.failed = err
	}
}

// newEpoll replaces the epoll by one that watches the present queues.
func (w *worker) newEpoll() error {
	w.epoll.close()
	if err := w.epoll.open(); err != nil {
		return err
	}
	if err := w.epoll.watch(unix.EPOLL_CTL_ADD, w.mail.fd, 0, onMail, unix.EPOLLIN); err != nil {
		return err
	}
	for id, q := range w.queues {
		if q == nil || q.breached {
			continue
		}
		if err := w.admit(q, id); err != nil {
			w.breach(q, err)
		}
	}
	return nil
}

// watch makes watchTurns start its checks.
func (p *Pool) watch() {
	if !p.watching.Load() && p.watching.CompareAndSwap(false, true) {
		select {
		case p.wakeup <- struct{}{}:
		default:
		}
	}
}

// watchTurns checks the turns of all workers until the pool is closed.
func (p *Pool) watchTurns() {
	defer close(p.watchDone)
	tick := time.NewTicker(turnTick)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-p.wakeup:
		case <-p.stop:
			return
		}
		tick.Reset(turnTick)
		for quiet := 0; quiet < quietTicks; quiet++ {
			select {
			case <-tick.C:
			case <-p.stop:
				return
			}
			if p.checkTurns() {
				quiet = 0
			}
			p.measure(time.Now())
		}
		p.forgetLoads()
		p.watching.Store(false)
		if p.checkTurns() { // a turn that began meanwhile did not wake this loop
			p.watch()
		}
	}
}

// checkTurns reports whether there are turns under way, and relieves the workers of those that
// are slow.
func (p *Pool) checkTurns() (some bool) {
	p.moveOverruns()
	now := time.Now()
	for _, w := range p.all() {
		c := &w.watch
		seq := c.underWay.Load()
		if seq == 0 {
			continue
		}
		some = true
		if seq == stolen {
			p.checkHung(w, now)
			continue
		}
		if seq != c.seen {
			c.seen, c.since, c.ticks, c.hung = seq, now, 0, false
			continue
		}
		c.ticks++
		switch {
		case seq == c.slow.Load():
			_ = p.relieve(w, seq) // if there was no thread before, there may be one now
			p.checkHung(w, now)
		case c.asleep() || c.ticks >= longTicks:
			c.slow.Store(seq)
			if err := p.relieve(w, seq); err != nil {
				p.warn(fmt.Errorf("%s is held up by %s: %w", w, c.turn(), err))
			}
		}
	}
	return some
}

// errHung is the error of a breach.
var errHung = errors.New("a turn of the guest does not return: a system call of the host hangs, or takes very long")

// checkHung tells the owners of a guest's vifs, once, that the turn of one does not return.
// These cannot be closed before it does.
func (p *Pool) checkHung(w *worker, now time.Time) {
	c := &w.watch
	if c.hung || now.Sub(c.since) < p.hungTime {
		return
	}
	c.hung = true
	q := c.queue.Load()
	p.warn(fmt.Errorf("%s is held up by %s for %v", w, c.turn(), now.Sub(c.since).Round(time.Second)))
	type part struct {
		conn  *Conn
		queue int
	}
	p.mu.Lock()
	var parts []part
	for conn := range p.conns {
		if conn.guest() != q.conn.guest() {
			continue
		}
		if i := slices.IndexFunc(conn.queues, func(q *Queue) bool { return q.worker.Load() == w }); i >= 0 {
			parts = append(parts, part{conn, i})
		}
	}
	p.mu.Unlock()
	for _, v := range parts {
		v.conn.cfg.Notice(Notice{Kind: Breach, Queue: v.queue, Err: errHung})
	}
}

// turn names the turn under way, or the last one.
func (c *turnWatch) turn() string {
	if q := c.queue.Load(); q != nil {
		return fmt.Sprintf("a turn of %s", q)
	}
	return "no turn"
}

// String names a queue, its vif and its guest.
func (q *Queue) String() string {
	name := q.conn.cfg.Name
	if name == "" {
		name = "a vif"
	}
	if q.conn.virt {
		return fmt.Sprintf("%s, pair %d", name, q.index)
	}
	return fmt.Sprintf("%s of domain %d, queue %d", name, q.conn.cfg.Domid, q.index)
}

// String names a worker.
func (w *worker) String() string { return fmt.Sprintf("worker %d", w.index) }

// openStat opens what /proc says of the calling thread. A process in a sandbox cannot: it has
// the files of the workers that it had before.
func (c *turnWatch) openStat() {
	if f, err := os.Open("/proc/thread-self/stat"); err == nil {
		c.stat = f
	}
}

// asleep reports whether the worker's thread sleeps in the kernel. One that runs, or is ready
// to run, does not. One whose state cannot be read does.
func (c *turnWatch) asleep() bool {
	if c.stat == nil {
		return true
	}
	var b [64]byte
	n, _ := c.stat.ReadAt(b[:], 0)                 // an error comes with the end of the file
	_, state, ok := bytes.Cut(b[:n], []byte(") ")) // the state follows "tid (name) "
	return !ok || len(state) == 0 || state[0] != 'R'
}

// errNoSpare is the error of relieve if there are [MaxSpares] spares.
var errNoSpare = fmt.Errorf("%d threads are for slow guests already", MaxSpares)

// relieve starts a worker that replaces w, whose turn seq is slow, and gives it the queues of
// other guests. A spare only serves slow vifs, which wait for each other unless the turn hangs.
func (p *Pool) relieve(w *worker, seq uint64) error {
	p.mu.Lock()
	spare, full := slices.Contains(p.spares, w), len(p.spares) >= MaxSpares
	p.mu.Unlock()
	switch {
	case spare && !w.watch.hung:
		return nil
	case full:
		return errNoSpare
	}
	heir, err := p.heir(w)
	if err != nil {
		return err
	}
	w.watch.relieved = make(chan struct{})
	if !w.watch.underWay.CompareAndSwap(seq, stolen) {
		heir.release()
		return nil // the turn has just ended
	}
	p.replace(w, heir)
	close(w.watch.relieved)
	p.threads.Go(func() { heir.run(make(chan struct{})) })
	return nil
}

// heir makes a worker with the number and the experience of w. Its thread does not run yet.
func (p *Pool) heir(w *worker) (*worker, error) {
	heir, err := newWorker(p, w.index)
	if err != nil {
		return nil, fmt.Errorf("start another worker: %w", err)
	}
	heir.clock, heir.reads.compared, heir.reads.ringSlow = w.clock, w.reads.compared, w.reads.ringSlow
	return heir, nil
}

// threadID returns the number of the calling thread (gettid(2)).
func threadID() int { return unix.Gettid() }

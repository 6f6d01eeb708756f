// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
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
// asleep the other vifs go to a new worker, with all that is theirs. The thread serves
// its vif alone from there on, and when no copy was slow for a while, the vif goes back
// to the others and the thread ends. A copy costs two atomic operations for that.
const (
	// copyTick separates the looks at copies, while there are any. A copy that
	// was under way twice has taken between one and two ticks.
	copyTick = 20 * time.Millisecond

	// quietTicks is for how many ticks without a copy under way the pool goes on
	// looking. Then it sleeps until there is one.
	quietTicks = 10

	// probation is for how long no copy of a vif may be slow before it shares a
	// worker again.
	probation = 10 * time.Second

	// maxSpares bounds the threads for slow vifs. If there are as many, a copy
	// that is slow holds all vifs of its worker up.
	maxSpares = 8
)

// stolen is the state of a copy during which the other vifs were taken away.
const stolen = math.MaxUint64

// grantCopy is the Copy of a queue's grants.
func (w *worker) grantCopy(q *Queue, segs []gntdev.Segment) error {
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	w.tally[GrantOps] += uint32(len(segs))
	w.copySeq++
	w.copyOf = q
	w.copying.Store(w.copySeq)
	w.pool.watch()
	defer w.copied()
	return q.grants.Copy(segs)
}

// copied ends a copy. If the other vifs are being taken away it waits until they are.
func (w *worker) copied() {
	if !w.copying.CompareAndSwap(w.copySeq, 0) {
		<-w.relieved
		w.copying.Store(0)
	}
	if w.copySlow.Load() == w.copySeq {
		w.tally[SlowCopies]++
		w.now = time.Time{}
		w.homeAt = w.time().Add(probation)
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
		seq := w.copying.Load()
		if seq == 0 || seq == stolen {
			continue
		}
		some = true
		switch {
		case seq != w.copySeen:
			w.copySeen = seq
		case seq != w.copySlow.Load() && asleep(w.tid):
			w.copySlow.Store(seq)
			p.slowCopy(w, seq)
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

// slowCopy deals with a copy that is slow. On a spare it concerns no other vif.
func (p *Pool) slowCopy(w *worker, seq uint64) {
	p.mu.Lock()
	room := len(p.spares) < maxSpares
	spare := slices.Contains(p.spares, w)
	p.mu.Unlock()
	if spare || !room {
		return
	}
	heir, err := newWorker(p, w.index)
	if err != nil {
		p.warn(fmt.Errorf("worker %d is held up by a slow grant copy, and there is no other: %w", w.index, err))
		return
	}
	heir.clock, heir.compared, heir.ringDear = w.clock, w.compared, w.ringDear
	w.relieved = make(chan struct{})
	if !w.copying.CompareAndSwap(seq, stolen) {
		heir.release()
		return // it has just ended
	}
	p.relieve(w, heir)
	close(w.relieved)
	go heir.run(make(chan struct{}))
}

// relieve gives the queues of w that are not of the vif whose copy is slow to heir,
// which takes the place of w in the pool. The thread of w is in the copy, or waits for
// this to be done, and heir's does not run yet: both are the caller's.
func (p *Pool) relieve(w, heir *worker) {
	keeps := w.copyOf.conn
	var others []*Queue
	for _, q := range w.queues {
		if q != nil && q.conn != keeps {
			others = append(others, q)
		}
	}
	p.mu.Lock()
	heir.load, w.load = w.load, 0
	for _, q := range keeps.queues {
		if q.counted && q.worker.Load() == w {
			heir.load--
			w.load++
		}
	}
	p.workers[w.index] = heir
	p.spares = append(p.spares, w)
	p.mu.Unlock()
	for _, q := range others {
		w.drop(q)
	}
	if w.ring != nil {
		// It has files of those that go, and other threads may not change that.
		_ = w.ring.Close()
		w.ring = nil
	}
	w.bequeath(heir, keeps, others)
	w.spare = true
}

// bequeath has heir adopt queues, and hand on all mail but that for vif keeps.
func (w *worker) bequeath(heir *worker, keeps *Conn, queues []*Queue) {
	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	w.mail.heir, w.mail.keeps = heir, keeps
	if len(queues) > 0 {
		// First: mail that comes may be for them.
		heir.post(queues[0], func(w *worker) { w.adopt(queues) })
		for _, q := range queues {
			q.worker.CompareAndSwap(w, heir)
		}
	}
	mine := w.mail.mail[:0]
	for _, l := range w.mail.mail {
		if w.mail.mine(l.q) {
			mine = append(mine, l)
			continue
		}
		if l.q != nil {
			l.q.worker.CompareAndSwap(w, heir)
		}
		heir.post(l.q, l.f)
	}
	w.mail.mail = mine
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

// goesHome gives the vif of a spare back to the worker of the others, if its copies
// were not slow for a while, and reports whether the spare is to end.
func (w *worker) goesHome() bool {
	if len(w.accounts) > 0 && w.time().Before(w.homeAt) {
		w.alarm = earlier(w.alarm, w.homeAt)
		return false
	}
	w.goHome()
	return true
}

// goHome gives what a spare has left to the worker that took its place.
func (w *worker) goHome() {
	var queues []*Queue
	for _, q := range w.queues {
		if q != nil {
			queues = append(queues, q)
			w.drop(q)
		}
	}
	p := w.pool
	p.mu.Lock()
	heir := p.workers[w.index]
	heir.load += w.load
	w.load = 0
	p.spares = without(p.spares, w)
	p.mu.Unlock()
	w.bequeath(heir, nil, queues)
}

// threadID is that of the calling thread.
func threadID() int { return unix.Gettid() }

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Each queue has a thread. If many want to run, schedulers give each the same time, so a guest
// with 8 queues of 16 disks had 128 times the time of a guest with one. So the queues that are
// in a turn at the same time are bounded while several guests have work:
//
//   - A guest always has as many turns at a time as its weight, which is 1 unless it was set.
//     The kernel gives their threads the same time, whatever a turn costs. A guest that has no
//     turn waits for no other guest.
//   - Further turns are for processors that would be idle otherwise. They go to the guest that
//     has the fewest turns for its weight.
//
// A guest that has been alone for aloneAfter has no bound.
//
// A turn that takes longer than stuckAfter waits for a disk or a page of its guest, and not
// for a processor. It is not counted any more.
//
// (Lower priorities for the threads of such a guest do not share Go's Ps, without which a
// thread does not run: one of high priority waits until one of low priority gives up its P.)

const (
	aloneAfter = time.Second

	// stuckAfter is the time after which a turn is not counted any more, if others wait;
	// twice as long at the most.
	stuckAfter = 10 * time.Millisecond

	// MaxWeight is the largest weight of a guest. The least is 1.
	MaxWeight = 16
)

// turns admits queues to their turns.
type turns struct {
	most int // at a time, but for those that each guest always has

	crowded atomic.Bool // queues wait

	mu      sync.Mutex // guards all below, and visit
	inside  []*queue   // those in a turn that counts
	wait    []*party   // guests with queues that wait
	last    *party     // guest of the last turn
	mixed   time.Time  // last turn of another guest than that before
	check   *time.Timer
	looks   bool // check runs, which calls look: queues wait
	parties map[*Guest]*party
	queues  []*queue // that are open
}

// party is a guest among others.
type party struct {
	guest       *Guest
	queues      int    // that are open
	inside      int    // of its queues
	first, last *queue // those that wait; nil: none
}

// visit is a queue's part of the turns.
type visit struct {
	party   *party
	next    *queue        // of those that wait
	enter   chan struct{} // holds one: admitted
	inside  bool          // its turn counts
	turn    uint64        // number of the turn
	seen    uint64        // turn that the last look has seen
	busy    bool          // it is in a turn
	since   time.Time     // time at which watch has first seen the turn watched
	watched uint64
	named   bool // watch has reported that turn
}

func newTurns(most int) turns {
	if most <= 0 {
		most = runtime.NumCPU()
	}
	return turns{most: most, parties: map[*Guest]*party{}}
}

// open makes a queue of a guest known.
func (t *turns) open(q *queue, guest *Guest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.parties[guest]
	if p == nil {
		p = &party{guest: guest}
		t.parties[guest] = p
	}
	p.queues++
	q.visit = visit{party: p, enter: make(chan struct{}, 1)}
	t.queues = append(t.queues, q)
}

// close forgets a queue, which is in no turn.
func (t *turns) close(q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := q.visit.party
	if p == nil {
		return
	}
	q.visit.party = nil
	if i := slices.Index(t.queues, q); i >= 0 {
		t.queues = slices.Delete(t.queues, i, i+1)
	}
	if p.queues--; p.queues == 0 {
		delete(t.parties, p.guest)
	}
}

// take waits until the queue may take a turn.
func (t *turns) take(q *queue) {
	if t.enter(q) {
		return
	}
	<-q.visit.enter
}

// enter lets a queue into a turn, or lines it up and returns false.
func (t *turns) enter(q *queue) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := &q.visit
	p := v.party
	v.turn++
	if p != t.last {
		if t.last != nil {
			t.mixed = time.Now()
		}
		t.last = p
	}
	if p.owed() || len(t.inside) < t.most && len(t.wait) == 0 || time.Since(t.mixed) > aloneAfter {
		t.admit(q)
		return true
	}
	if p.first == nil {
		t.wait = append(t.wait, p)
		p.first = q
	} else {
		p.last.visit.next = q
	}
	p.last = q
	t.crowded.Store(true)
	if !t.looks {
		t.looks = true
		if t.check == nil {
			t.check = time.AfterFunc(stuckAfter, t.look)
		} else {
			t.check.Reset(stuckAfter)
		}
	}
	return false
}

// owed reports whether the guest has fewer turns than it always may have.
func (p *party) owed() bool { return p.inside < p.guest.Weight() }

// less reports whether p has fewer turns for its weight than o.
func (p *party) less(o *party) bool { return p.inside*o.guest.Weight() < o.inside*p.guest.Weight() }

func (t *turns) admit(q *queue) {
	q.visit.inside, q.visit.busy = true, true
	q.visit.party.inside++
	t.inside = append(t.inside, q)
}

// give ends the turn of a queue.
func (t *turns) give(q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q.visit.busy = false
	if !q.visit.inside {
		return
	}
	q.visit.inside = false
	q.visit.party.inside--
	i := slices.Index(t.inside, q)
	t.inside[i] = t.inside[len(t.inside)-1]
	t.inside = t.inside[:len(t.inside)-1]
	t.fill()
}

// fill admits queues that wait and may enter.
func (t *turns) fill() {
	for len(t.wait) > 0 {
		least := 0
		for i, p := range t.wait {
			if p.less(t.wait[least]) {
				least = i
			}
		}
		p := t.wait[least]
		if !p.owed() && len(t.inside) >= t.most {
			return
		}
		q := p.first
		p.first, q.visit.next = q.visit.next, nil
		if p.first == nil {
			p.last = nil
			t.wait = slices.Delete(t.wait, least, least+1)
		}
		t.admit(q)
		q.visit.enter <- struct{}{}
	}
	t.crowded.Store(false)
}

// look stops to count turns that were the same at the last look, and goes on while queues
// wait.
func (t *turns) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.wait) == 0 {
		t.looks = false
		return
	}
	left := t.inside[:0]
	for _, q := range t.inside {
		v := &q.visit
		if v.seen == v.turn {
			v.inside = false
			v.party.inside--
			continue
		}
		v.seen = v.turn
		left = append(left, q)
	}
	clear(t.inside[len(left):])
	t.inside = left
	t.fill()
	t.check.Reset(stuckAfter)
}

// heldAfter is the time after which Watch reports a queue that does not come back.
const heldAfter = 5 * time.Second

// Watch reports each queue that has not come back from its turn since earlier calls, once, by a
// [Notice] to its connection: its thread is held up in a call of the kernel. No other queue
// waits for it. A daemon calls Watch now and then.
func (p *Pool) Watch() {
	for _, q := range p.turns.watch(time.Now()) {
		q.conn.cfg.Notice(Notice{Kind: Held, Queue: q.index, Err: fmt.Errorf("it has not come back from the kernel for more than %v", heldAfter)})
	}
}

// watch returns the queues that have been in the same turn for heldAfter, those that it has not
// returned yet.
func (t *turns) watch(now time.Time) (held []*queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range t.queues {
		switch v := &q.visit; {
		case !v.busy:
			v.watched, v.named = 0, false
		case v.watched != v.turn:
			v.watched, v.since, v.named = v.turn, now, false
		case !v.named && now.Sub(v.since) >= heldAfter:
			v.named = true
			q.gauges.stuck.Store(true)
			held = append(held, q)
		}
	}
	return held
}

// weights are those of a guest's connections.
type weights struct {
	most atomic.Int32 // 0: 1
	mu   sync.Mutex   // guards each
	each map[any]int
}

// weigh sets the weight of a connection; 0 forgets it.
func (w *weights) weigh(c any, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.each == nil {
		w.each = map[any]int{}
	}
	if w.each[c] = n; n == 0 {
		delete(w.each, c)
	}
	most := 0
	for _, n := range w.each {
		most = max(most, n)
	}
	w.most.Store(int32(most))
}

// Weigh sets the weight of a connection that another process serves, for [Guest.Weight]; 0
// forgets it. c is comparable.
func (w *weights) Weigh(c any, n int) { w.weigh(c, n) }

// Weight returns the guest's weight, the largest of its connections.
func (w *weights) Weight() int { return max(int(w.most.Load()), 1) }

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"time"
)

const (
	// probation is the time without a slow turn after which a guest shares a worker
	// with others again.
	probation = 10 * time.Second

	// maxLanes bounds the threads that serve slow guests between their slow turns.
	maxLanes = 8
)

// replace puts heir in the place of w and gives it the queues of all guests except the one
// whose turn is slow. The thread of w is in that turn, in which it looks at no other guest, or
// waits for replace. The thread of heir does not run yet.
func (p *Pool) replace(w, heir *worker) {
	slow := w.watch.queue.Load().conn.guest()
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
	p.mu.Lock()
	defer p.mu.Unlock()
	heir.load, w.load = w.load, 0
	for c := range stay {
		for _, q := range c.queues {
			if q.counted && q.worker.Load() == w {
				heir.load--
				w.load++
			}
		}
	}
	if w.watch.spare { // a lane of several guests
		heir.watch.spare, heir.watch.lane, heir.mail.heir = true, true, w.mail.heir
		p.spares = append(p.spares, heir)
	} else {
		p.workers[w.index] = heir
		p.spares = append(p.spares, w)
	}

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
	w.handOn(heir, others, true, func(w *worker) { w.adopt(others) })
	w.watch.spare = true
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
	if !w.watch.lane && len(w.sched.accounts) > 0 {
		lane := p.lane()
		if lane == nil {
			w.watch.lane = true
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
		if x, y := a.watch.underWay.Load() == 0, b.watch.underWay.Load() == 0; x != y {
			return x
		}
		return a.load < b.load
	}
	for _, w := range p.spares {
		if !w.watch.lane {
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
	defer p.mu.Unlock()
	home := p.workers[w.index]
	p.moveLoad(vifs, queues, w, home)

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	for _, c := range vifs {
		for _, q := range c.queues {
			if w.gives(q, queues) {
				q.onSpare.Store(false)
			}
		}
	}
	w.handOn(home, queues, true, func(w *worker) { w.adopt(queues) })
}

// giveLane moves the vifs of a guest to a slow lane. Preconditions: pool.mu held.
func (w *worker) giveLane(a *account, lane *worker) {
	vifs, queues := w.take(a)
	homeAt := a.homeAt
	w.pool.moveLoad(vifs, queues, w, lane)

	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	for _, c := range vifs {
		for _, q := range c.queues {
			if w.gives(q, queues) {
				q.onSpare.Store(true)
			}
		}
	}
	w.handOn(lane, queues, true, func(w *worker) {
		w.adopt(queues)
		queues[0].account.homeAt = homeAt
	})
}

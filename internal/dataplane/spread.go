// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"
	"time"
)

// While turns are under way the pool reads once a second how busy each worker's thread was. A new
// queue goes to the worker that is the least busy. If the loads of workers differ, the pool looks
// at the counters of queues as well. If the same worker is to give a queue away in settleSamples
// samples in a row, it does: between two turns it drops the queue, which the other worker adopts.
//
//	each second              the same settleSamples times        between two turns
//	loads of workers ----> choose ----------------------> letter ------------------> moveAway
//	                         ^
//	counters of queues ------'  only if loads differ
//
// A guest whose turns are slow or costly has threads of its own, and does not move in this way.
const (
	sampleTime    = time.Second
	settleSamples = 3

	// moveEvery is the time between two moves.
	moveEvery = 5 * time.Second

	// A queue that has moved stays for stayTime, and for twice as long after each further
	// move, up to maxStay.
	stayTime = time.Minute
	maxStay  = time.Hour

	// newLoad is the load that a queue is expected to have until the next sample.
	newLoad = 0.25

	// loadStep is the difference of loads below which the number of queues decides.
	loadStep = 0.1
)

// spreader decides when a queue moves. It belongs to watchTurns.
type spreader struct {
	at       time.Time // of the last sample; zero: there is none
	number   uint64    // of samples in which the counters of queues were read
	based    bool      // they were read in the last one
	from     int       // the worker that was to give a queue away
	times    int       // samples in a row in which it was
	next     time.Time // no move before that
	loads    []float64
	portions []portion
}

// queueSpread has the last measurement of a queue's load, and its moves.
type queueSpread struct {
	number    uint64 // of the last sample in which its counters were read
	ns, slots uint64 // these counters
	stays     time.Time
	moves     int
}

// measure takes a sample, if it is time for that, and makes a queue move that is to move.
func (p *Pool) measure(now time.Time) {
	s := &p.spread
	took, first := now.Sub(s.at), s.at.IsZero()
	if p.opts.Workers < 2 || !first && took < sampleTime {
		return
	}
	s.at = now
	p.mu.Lock()
	defer p.mu.Unlock()
	s.loads = s.loads[:0]
	for _, w := range p.workers {
		load := w.meter.sample(took)
		if w.stuck() {
			load = 1 // it takes no queue
		}
		s.loads = append(s.loads, load)
	}
	if first {
		return
	}
	p.measured = true
	for i, w := range p.workers {
		w.expected = s.loads[i]
	}
	if !differ(s.loads) {
		s.based, s.times = false, 0
		return
	}
	based := s.based
	p.weighPortions(now)
	defer func() { clear(s.portions) }() // vifs may be closed before the next time
	if s.based = true; !based {
		return
	}
	best, to, ok := choose(s.loads, s.portions)
	switch {
	case !ok:
		s.times = 0
	case best.from != s.from:
		s.from, s.times = best.from, 1
	default:
		s.times++
	}
	if s.times < settleSamples || now.Before(s.next) {
		return
	}
	s.times, s.next = 0, now.Add(moveEvery)
	q := best.queue
	know := &q.conn.spread[q.index]
	know.stays = now.Add(min(stayTime<<min(know.moves, 10), maxStay))
	know.moves++
	why := fmt.Sprintf("%.0f %% of worker %d with %.0f %% of a processor, worker %d has %.0f %%",
		100*best.load, best.from, 100*s.loads[best.from], to, 100*s.loads[to])
	q.worker.Load().post(q, func(w *worker) { w.moveAway(q, to, why) })
}

// stuck reports whether a turn has been under way for more than a tick, or the worker has ended.
func (w *worker) stuck() bool {
	select {
	case <-w.done:
		return true
	default:
	}
	c := &w.watch
	seq := c.underWay.Load()
	return seq == stolen || seq != 0 && seq == c.seen && c.ticks > 0
}

// forgetLoads ends the measurement: nothing moves.
func (p *Pool) forgetLoads() {
	s := &p.spread
	s.at, s.based, s.times = time.Time{}, false, 0
	p.mu.Lock()
	defer p.mu.Unlock()
	p.measured = false
	for _, w := range p.workers {
		w.expected = 0
	}
}

// weighPortions lists what could move, with the load of each: its part in the time of turns on
// its worker, or, if a guest is alone there and its turns are not measured, in the slots.
// Preconditions: mu held.
func (p *Pool) weighPortions(now time.Time) {
	s := &p.spread
	s.number++
	s.portions = s.portions[:0]
	for c := range p.conns {
		if c.spread == nil {
			c.spread = make([]queueSpread, len(c.queues))
		}
		for i, q := range c.queues {
			if i == 0 || !c.cfg.OneWorker {
				s.add(p, q, now)
			}
			c.spread[i].read(q, s.number, &s.portions[len(s.portions)-1])
		}
	}
	ns, slots := make([]uint64, len(p.workers)), make([]uint64, len(p.workers))
	s.portions = slices.DeleteFunc(s.portions, func(o portion) bool {
		if o.from < 0 || o.ns+o.slots == 0 {
			return true
		}
		ns[o.from] += o.ns
		slots[o.from] += o.slots
		return false
	})
	for i := range s.portions {
		switch o := &s.portions[i]; {
		case ns[o.from] > 0:
			o.load = s.loads[o.from] * float64(o.ns) / float64(ns[o.from])
		default:
			o.load = s.loads[o.from] * float64(o.slots) / float64(slots[o.from])
		}
	}
}

// add lists a portion that begins with q. It is not of any worker if a spare has it.
func (s *spreader) add(p *Pool, q *Queue, now time.Time) {
	w := q.worker.Load()
	o := portion{queue: q, guest: q.conn.guest(), from: -1}
	if w != nil && p.workers[w.index] == w && q.served.Load() {
		o.from = w.index
	}
	o.stays = q.conn.closing.Load() || now.Before(q.conn.spread[q.index].stays)
	s.portions = append(s.portions, o)
}

// read reads a queue's counters for the sample with the given number, and adds what is new since
// the one before to a portion.
func (m *queueSpread) read(q *Queue, number uint64, o *portion) {
	before := *m
	m.number, m.ns, m.slots = number, q.stats.Load(WorkerNS), q.stats.Load(TxSlots)+q.stats.Load(RxSlots)
	if before.number+1 == number {
		o.ns += m.ns - before.ns
		o.slots += m.slots - before.slots
	}
}

// moveAway moves a queue to the worker with the number to, or all of its vif if that has one
// worker. It runs on the worker's thread, between two turns. It does nothing if the queue must
// stay.
func (w *worker) moveAway(q *Queue, to int, why string) {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	queues := []*Queue{q}
	if q.conn.cfg.OneWorker {
		queues = q.conn.queues
	}
	other := p.workers[to]
	if other == w || p.workers[w.index] != w || other.mail.isClosed() || !w.mayLeave(queues) {
		return
	}
	for _, q := range queues {
		w.drop(q)
	}
	p.moveLoad([]*Conn{q.conn}, queues, w, other)
	w.mail.mu.Lock()
	defer w.mail.mu.Unlock()
	w.handOn(other, queues, false, func(w *worker) {
		w.adopt(queues)
		for _, q := range queues {
			q.stats.n[WorkerMoves].Add(1)
		}
	})
	p.note(fmt.Sprintf("%s moves from %s to %s: %s", q, w, other, why))
}

// mayLeave reports whether queues may move to another worker: all of them are served, none is in
// breach or takes part in a resteering, and their guest is not one that delays others.
func (w *worker) mayLeave(queues []*Queue) bool {
	for _, q := range queues {
		if !w.has(q) || q.breached || q.resteer != nil || q.conn.closing.Load() || q.account.costly || !q.account.rest.IsZero() {
			return false
		}
	}
	return true
}

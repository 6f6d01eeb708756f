// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"
)

// A queue moves to another worker between two turns: its worker drops it, changes the queue's
// worker, and sends a letter to the other one, which adopts it. All of the queue's state moves
// with it: indices, journal, events masked and not read, backlog, deadlines, its part in a
// resteering. The worker's part is made anew: epoll, a file number in the io_uring, an account.
// Mail about the queue follows it, behind the letter that makes the worker adopt it. All moves
// hold the pool's mu, so no two of them wait for each other's mail.

// handOn gives queues to another worker, which runs adopt to take them over. Mail that is
// not for this worker any more is forwarded after that. With whole, queues of their vifs that
// are not attached yet go there, too. Preconditions: pool.mu and w.mail.mu held; the queues
// have been dropped.
func (w *worker) handOn(to *worker, queues []*Queue, whole bool, adopt func(*worker)) {
	if len(queues) > 0 {
		to.receive(w, letter{queues[0], adopt, queues}, whole)
	}
	stays := w.mail.mail[:0]
	for _, l := range w.mail.mail {
		if w.owns(l.q) {
			stays = append(stays, l)
		} else {
			w.forward(l)
		}
	}
	w.mail.mail = stays
}

// has reports whether a queue is in the worker's table. One that is attached, is this worker's,
// and is not there comes with a letter that was not read yet. It runs on the worker's thread.
func (w *worker) has(q *Queue) bool {
	return q.worker.Load() == w && q.attached && q.id < len(w.queues) && w.queues[q.id] == q
}

// gives reports whether a queue of this worker goes with a vif of which taken were dropped: those,
// and the ones that are not attached yet.
func (w *worker) gives(q *Queue, taken []*Queue) bool {
	return q.worker.Load() == w && (!q.attached || slices.Contains(taken, q))
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
}

// adopt takes over queues from a worker that has dropped them. It runs on the
// worker's thread.
func (w *worker) adopt(queues []*Queue) {
	for _, q := range queues {
		q.worker.Store(w)
		q.ready, q.timed, q.account = false, false, nil // those of the other worker
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

// take drops all queues of a guest that are attached here, and returns them and their vifs.
func (w *worker) take(a *account) (vifs []*Conn, queues []*Queue) {
	for _, v := range a.vifs {
		vifs = append(vifs, v.conn)
	}
	for _, c := range vifs {
		for _, q := range c.queues {
			if w.has(q) {
				queues = append(queues, q)
				w.drop(q)
			}
		}
	}
	return vifs, queues
}

// moveLoad moves the queues of connections that go along with the ones taken from the load of
// one worker to that of another. Preconditions: mu held.
func (p *Pool) moveLoad(vifs []*Conn, taken []*Queue, from, to *worker) {
	for _, c := range vifs {
		for _, q := range c.queues {
			if from.gives(q, taken) && q.counted {
				from.load--
				to.load++
			}
		}
	}
}

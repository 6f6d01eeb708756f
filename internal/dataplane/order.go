// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
)

// When it changes which queue packets to the guest come on, those of a flow that
// came before the change may still wait on the old queue, in the TAP or for rx
// slots, while those after it are at hand on the new one. A move keeps them in
// order: packets that may have such predecessors are set aside by the queue they
// have moved to, until every queue has published all from before the change.
//
// Which packets these are the old configuration tells. So the order in which the
// kernel's queues change over does not matter, as long as a move is known to all of
// them before the first packet moves.

const (
	// maxOrderWait bounds how long packets are set aside, if the guest does not
	// take what came before them. A flow that waits much longer than it takes to
	// empty a queue is hurt more by that than by packets out of order.
	maxOrderWait = time.Second

	// asideBytes is the room of the packets that a queue sets aside: as long as
	// there is room for one more read of the largest.
	asideBytes = 4<<20 + holdBytes

	// tapFrames is more than a TAP queue keeps. Of what is read after that many,
	// nothing was in it at the start.
	tapFrames = 1024
)

// move is one change of the queues of packets, from configuration from to to; nil
// is the host's choice.
type move struct {
	from, to *steer.Config
	kernel   bool // the queue of a packet is the TAP queue it is read from

	before atomic.Int32  // queues that may have packets from before
	broken atomic.Bool   // one of them has given that up
	left   atomic.Int32  // queues that are not through
	over   chan struct{} // closed when all are
}

// moving is what a queue has to do with a move. It belongs to the queue's worker,
// and is there from before the change until the packets set aside are published.
type moving struct {
	*move
	aside hold

	begun   bool // the change is made: what comes into the TAP is of after it
	empty   bool // since then the TAP was
	read    int  // packets since then
	until   time.Time
	drained bool // nothing is left from before
	free    bool // those set aside may go, once those in the hold have
	gone    bool // they have taken the place of those
}

// moveTo has the data path follow a change of the queues of packets. change makes
// it, and returns when no packet comes any more as it was before. Order is kept
// but for packets of a queue that the guest does not take for too long.
func (c *Conn) moveTo(m *move, change func() error) error {
	if c.moved != nil {
		// Packets on a queue that is new to them are those of the old queue of
		// the next change.
		t := time.NewTimer(maxOrderWait)
		defer t.Stop()
		select {
		case <-c.moved.over:
		case <-c.hurry:
		case <-t.C:
		}
	}
	n := int32(len(c.queues))
	m.before.Store(n)
	m.left.Store(n)
	m.over = make(chan struct{})
	c.moved = m
	for _, q := range c.queues {
		if err := q.call(func() error { q.startMoving(m); return nil }); err != nil {
			return err
		}
	}
	err := change()
	for _, q := range c.queues {
		if e := q.call(func() error { q.moveBegun(m); return nil }); e != nil && err == nil {
			err = e
		}
	}
	return err
}

// startMoving prepares a queue for a move.
func (q *Queue) startMoving(m *move) {
	if q.moving != nil {
		q.stopMoving() // the guest takes nothing
	}
	q.moving = &moving{move: m, aside: hold{room: asideBytes, vif: &q.conn.waiting}}
	if !q.attached || q.breached {
		q.stopMoving()
	}
}

// moveBegun has the queue see to it that what is from before the change goes.
func (q *Queue) moveBegun(m *move) {
	v := q.moving
	if v == nil || v.move != m {
		return
	}
	w := q.worker.Load()
	v.begun = true
	// What a queue that was handed packets has of them is in its hold.
	v.empty = !m.kernel
	v.until = w.time().Add(min(q.drainAfter, maxOrderWait))
	q.tapReady = !q.tapGone
	w.schedule(q)
}

// stopMoving ends the queue's part in a move, wherever that is. Packets that are
// still set aside and find no room to wait elsewhere are dropped.
func (q *Queue) stopMoving() {
	v := q.moving
	q.moving = nil
	for ; !v.aside.empty(); v.aside.pop() {
		p := v.aside.head()
		drop := DropRxBacklog
		if q.attached && !q.breached {
			drop = q.hold.push(v.aside.frame(p), &p.plan, p.since)
		}
		if drop != kept {
			q.worker.Load().tally[drop]++
		}
	}
	v.aside.close()
	q.stats.flush(&q.worker.Load().tally) // this may be no turn of the queue
	if !v.drained {
		v.broken.Store(true)
		q.drained(v)
	}
	if v.left.Add(-1) == 0 {
		close(v.over)
	}
}

// drained notes that the queue has published all it had from before the change.
// The last one wakes the others.
func (q *Queue) drained(v *moving) {
	v.drained = true
	if v.before.Add(-1) > 0 {
		return
	}
	for _, other := range q.conn.queues {
		other.worker.Load().post(other, func(w *worker) {
			if other.attached {
				w.schedule(other)
			}
		})
	}
}

// sawTap takes note of a read of so many packets of the TAP, and reports whether
// the next is to follow at once.
func (v *moving) sawTap(got, want int) (more bool) {
	if v.begun {
		v.read += got
		v.empty = v.empty || got < want || v.read >= tapFrames
	}
	return got == want
}

// full reports whether there may be no room to set packets aside.
func (v *moving) full() bool { return v.aside.next+holdBytes > asideBytes }

// waits reports whether the TAP is to be left alone until packets set aside have
// gone.
func (v *moving) waits() bool { return !v.free && v.full() }

// follows reports whether a packet that is of queue to may have to wait for packets
// before it on another queue.
func (v *moving) follows(frame []byte, to, queues int) bool {
	switch {
	case v.gone:
		return false // behind those set aside
	case v.from != nil:
		return v.from.Choose(frame).Queue%queues != to
	case !v.kernel:
		// It comes from the TAP queue that those before it came from, which is
		// not read before they are published.
		return false
	}
	// The host may have had it on any queue. What is not where it would be now
	// is from before.
	return v.to == nil || v.to.Choose(frame).Queue%queues == to
}

// redirect takes a packet that was read from q's TAP queue if it is of another
// queue, or has to wait for others.
func (w *worker) redirect(q *Queue, frame []byte, plan *offload.RxPlan) bool {
	to, n := q, len(q.conn.queues)
	if q.steer != nil {
		to = q.conn.queues[q.steer.Choose(frame).Queue%n]
	}
	if v := to.moving; v != nil && v.follows(frame, to.index, n) {
		if to != q {
			w.tally[RxSteered]++
		}
		w.setAside(to, frame, plan)
		return true
	}
	if to == q {
		return false
	}
	w.handOver(to, frame, plan)
	return true
}

// setAside has a packet wait for those before it on other queues.
func (w *worker) setAside(to *Queue, frame []byte, plan *offload.RxPlan) {
	w.tally[RxMoved]++
	if drop := to.moving.aside.push(frame, plan, w.time()); drop != kept {
		w.tally[drop]++
	}
	if to.moving.full() {
		w.schedule(to)
	}
}

// settle goes on with a move after a pass, and reports whether that made work.
func (w *worker) settle(q *Queue) (more bool) {
	v := q.moving
	if !v.begun {
		return false
	}
	if !v.drained && (v.empty || q.tapGone) && q.hold.empty() {
		q.drained(v)
	}
	if !v.free {
		inTime := v.before.Load() == 0
		if !inTime && !v.full() && w.time().Before(v.until) {
			return false
		}
		v.free = true
		if !inTime || v.broken.Load() {
			w.tally[RxUnordered] += uint32(v.aside.len())
		}
		if !v.drained {
			v.broken.Store(true)
			q.drained(v)
		}
	}
	if !q.hold.empty() {
		return false // of other flows
	}
	if v.aside.empty() {
		q.hold.close() // perhaps with the room of those set aside
		q.stopMoving()
		q.tapReady = !q.tapGone
		return true
	}
	now := w.time()
	for i := range v.aside.queue {
		v.aside.queue[i].since = now
	}
	q.hold.close()
	q.hold, v.aside, v.gone = v.aside, hold{}, true
	return true
}

// letGo ends the queue's part in a move, if it has one.
func (q *Queue) letGo() {
	if q.moving != nil {
		q.stopMoving()
	}
}

// held is the number of packets that wait to be published.
func (q *Queue) held() int {
	if q.moving != nil {
		return q.hold.len() + q.moving.aside.len()
	}
	return q.hold.len()
}

// heldBytes is the memory they take.
func (q *Queue) heldBytes() int {
	if q.moving != nil {
		return q.hold.bytes() + q.moving.aside.bytes()
	}
	return q.hold.bytes()
}

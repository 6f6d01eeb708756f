// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
)

// A resteering moves flows to other queues. When the change is made, packets of a flow
// from before it may still wait on the old queue, in the TAP or in the backlog, while
// those from after it arrive on the new one. To keep them in order, the new queue sets
// aside packets that may have predecessors elsewhere, until every queue has published
// all its packets from before the change.
//
// The old configuration tells which packets these are. So the kernel may switch its
// queues in any order, as long as every queue knows of the resteering before the first
// packet is steered the new way.

const (
	// maxAside bounds the time that packets are set aside if the guest does not
	// take their predecessors. A flow that waits much longer than it takes to empty
	// a queue suffers more from the wait than from packets out of order.
	maxAside = time.Second

	// asideBytes is the room for packets that a queue sets aside. The TAP is read
	// as long as one more read of the largest packets fits.
	asideBytes = 4<<20 + backlogBytes

	// tapFrames is more than a TAP queue keeps. Packets read after that many were
	// not in it at the change.
	tapFrames = 1024
)

// resteering is one change from configuration from to to; nil is the host's choice.
type resteering struct {
	from, to *steer.Config
	kernel   bool // packets are read from the TAP queue of their guest queue

	undrained  atomic.Int32  // queues that may have packets from before the change
	broken     atomic.Bool   // a queue gave up before it had published its old packets
	unfinished atomic.Int32  // queues that still have a part in the resteering
	over       chan struct{} // closed when unfinished becomes 0
}

// phase is a queue's progress in a resteering. Phases only go forward, and a queue may
// leave at any of them:
//
//	preparing         the change is not made yet; packets may be set aside already
//	    | changed
//	drainingTAP       the TAP may have packets from before the change
//	    | read found it empty, or tapFrames were read, or the TAP is gone
//	drainingBacklog   the backlog may have such packets
//	    | backlog published
//	drained           waits until all other queues have drained
//	    | all have drained, or time is up, or there is no room to set more aside
//	released          set-aside packets may follow the backlog
//	    | backlog published
//	spliced           the set-aside packets are now the backlog
//	    | backlog published
//	(finished)
type phase uint8

const (
	preparing phase = iota
	drainingTAP
	drainingBacklog
	drained
	released
	spliced
)

func (p phase) String() string {
	switch p {
	case preparing:
		return "preparing"
	case drainingTAP:
		return "draining the TAP"
	case drainingBacklog:
		return "draining the backlog"
	case drained:
		return "drained"
	case released:
		return "released"
	case spliced:
		return "spliced"
	}
	return fmt.Sprintf("unknown(%d)", uint8(p))
}

// queueResteer is one queue's part in a resteering, from before the change until its
// set-aside packets are published. It belongs to the queue's worker.
type queueResteer struct {
	*resteering
	phase phase
	aside backlog   // packets set aside
	read  int       // packets read while draining the TAP
	until time.Time // set-aside packets are released then at the latest
}

// resteer runs change, which must return only after the last packet was steered the
// old way, and keeps each flow in order across it, except for flows whose old queue
// the guest does not empty in time.
func (c *Conn) resteer(s *resteering, change func() error) error {
	if c.resteering != nil {
		// Packets that this change moved to a queue would be old ones for the next.
		t := time.NewTimer(maxAside)
		defer t.Stop()
		select {
		case <-c.resteering.over:
		case <-c.hurry:
		case <-t.C:
		}
	}
	n := int32(len(c.queues))
	s.undrained.Store(n)
	s.unfinished.Store(n)
	s.over = make(chan struct{})
	c.resteering = s
	for _, q := range c.queues {
		if err := q.call(func() error { q.prepareResteer(s); return nil }); err != nil {
			return err
		}
	}
	err := change()
	for _, q := range c.queues {
		if e := q.call(func() error { q.resteered(s); return nil }); e != nil && err == nil {
			err = e
		}
	}
	return err
}

// prepareResteer begins the queue's part in a resteering.
func (q *Queue) prepareResteer(s *resteering) {
	if q.resteer != nil {
		q.endResteer() // the guest does not take its packets
	}
	q.resteer = &queueResteer{resteering: s, aside: backlog{room: asideBytes, vif: &q.conn.waiting}}
	if !q.attached || q.breached {
		q.endResteer()
	}
}

// resteered is called when the change has been made.
func (q *Queue) resteered(s *resteering) {
	v := q.resteer
	if v == nil || v.resteering != s {
		return
	}
	w := q.worker.Load()
	v.phase = drainingTAP
	if !s.kernel {
		v.phase = drainingBacklog // other queues' packets do not come from its TAP
	}
	v.until = w.time().Add(min(q.blocked.drainAfter, maxAside))
	q.tapIn.ready = !q.tapIn.gone
	w.sched.schedule(q)
}

// endResteer ends the queue's part in a resteering in any phase, if it has one.
// Packets that are still set aside move to the backlog or are dropped.
func (q *Queue) endResteer() {
	v := q.resteer
	if v == nil {
		return
	}
	q.resteer = nil
	for ; !v.aside.empty(); v.aside.pop() {
		p := v.aside.head()
		drop := DropRxBacklog
		if q.attached && !q.breached {
			drop = q.backlog.push(v.aside.frame(p), &p.plan, p.since)
		}
		if drop != notDropped {
			q.worker.Load().tally[drop]++
		}
	}
	v.aside.close()
	q.stats.flush(&q.worker.Load().tally) // this may not be a turn of the queue
	if v.phase < drained {
		v.broken.Store(true)
		q.drained(v)
	}
	if v.unfinished.Add(-1) == 0 {
		close(v.over)
	}
}

// drained notes that the queue has published all packets from before the change. The
// last queue to do so wakes the others.
func (q *Queue) drained(v *queueResteer) {
	v.phase = drained
	if v.undrained.Add(-1) > 0 {
		return
	}
	for _, other := range q.conn.queues {
		other.worker.Load().post(other, func(w *worker) {
			if other.attached {
				w.sched.schedule(other)
			}
		})
	}
}

// noteRead notes a read of got packets, after which the TAP may have been found empty,
// and reports whether to read again at once.
func (v *queueResteer) noteRead(got int, empty bool) (more bool) {
	if v.phase == drainingTAP {
		v.read += got
		if empty || v.read >= tapFrames {
			v.phase = drainingBacklog
		}
	}
	return !empty
}

// full reports whether there may be no room to set packets aside.
func (v *queueResteer) full() bool { return v.aside.next+backlogBytes > asideBytes }

// pausesTap reports whether the TAP is not read until set-aside packets are released.
func (v *queueResteer) pausesTap() bool { return v.phase < released && v.full() }

// mayHaveOlder reports whether packets of the frame's flow may still wait on another
// queue than queue number to, the frame's own.
func (v *queueResteer) mayHaveOlder(frame []byte, to, queues int) bool {
	switch {
	case v.phase == spliced:
		return false // it follows the set-aside packets in the backlog
	case v.from != nil:
		return v.from.Choose(frame).Queue%queues != to
	case !v.kernel:
		// A flow stays on one TAP queue, which was not read again until the packets
		// before this one were published.
		return false
	}
	// The host may have steered its flow to any queue. A packet that is not on its
	// new queue is from before the change.
	return v.to == nil || v.to.Choose(frame).Queue%queues == to
}

// redirect takes over a packet that was read from q's TAP queue if it goes to another
// queue, or has to be set aside. Otherwise it reports false.
func (w *worker) redirect(q *Queue, frame []byte, plan *offload.RxPlan) bool {
	to, n := q, len(q.conn.queues)
	if q.steer != nil {
		to = q.conn.queues[q.steer.Choose(frame).Queue%n]
	}
	if v := to.resteer; v != nil && v.mayHaveOlder(frame, to.index, n) {
		if to != q {
			w.tally[RxSteered]++
		}
		w.setAside(to, frame, plan)
		return true
	}
	if to == q {
		return false
	}
	w.enqueueOn(to, frame, plan)
	return true
}

// setAside makes a packet of queue to wait for its predecessors on other queues.
func (w *worker) setAside(to *Queue, frame []byte, plan *offload.RxPlan) {
	w.tally[RxMoved]++
	if drop := to.resteer.aside.push(frame, plan, w.time()); drop != notDropped {
		w.tally[drop]++
	}
	if to.resteer.full() {
		w.sched.schedule(to)
	}
}

// enqueueOn puts a packet in the backlog of another queue of the vif, which has the
// same worker and publishes it in its own turn.
func (w *worker) enqueueOn(to *Queue, frame []byte, plan *offload.RxPlan) {
	w.tally[RxSteered]++
	drop := DropRxBacklog
	if to.attached && !to.breached {
		drop = to.backlog.push(frame, plan, w.time())
	}
	if drop != notDropped {
		w.tally[drop]++
		return
	}
	w.sched.schedule(to)
}

// advance moves the queue's part in a resteering forward after a pass, and reports
// whether that made work.
func (w *worker) advance(q *Queue) (more bool) {
	v := q.resteer
	switch {
	case v.phase == preparing:
		return false
	case v.phase == drainingTAP && q.tapIn.gone:
		v.phase = drainingBacklog
	}
	if v.phase == drainingBacklog && q.backlog.empty() {
		q.drained(v)
	}
	if v.phase < released && !w.releaseAside(q, v) {
		return false
	}
	if !q.backlog.empty() {
		return false
	}
	q.backlog.close() // it may still have the larger size of set-aside packets
	if v.aside.empty() {
		q.endResteer()
		q.tapIn.ready = !q.tapIn.gone
		return true
	}
	now := w.time()
	for i := range v.aside.queue {
		v.aside.queue[i].since = now
	}
	q.backlog, v.aside, v.phase = v.aside, backlog{}, spliced
	return true
}

// releaseAside enters phase released if all queues have drained, if time is up, or if
// there is no room for more set-aside packets. It reports whether it did.
func (w *worker) releaseAside(q *Queue, v *queueResteer) bool {
	allDrained := v.undrained.Load() == 0
	if !allDrained && !v.full() && w.time().Before(v.until) {
		return false
	}
	if !allDrained || v.broken.Load() {
		w.tally[RxUnordered] += uint32(v.aside.len())
	}
	if v.phase < drained {
		v.broken.Store(true)
		q.drained(v)
	}
	v.phase = released
	return true
}

// waiting returns the number of packets that wait to be published.
func (q *Queue) waiting() int {
	if q.resteer != nil {
		return q.backlog.len() + q.resteer.aside.len()
	}
	return q.backlog.len()
}

// waitingBytes returns the bytes of memory that packets waiting to be published take.
func (q *Queue) waitingBytes() int {
	if q.resteer != nil {
		return q.backlog.bytes() + q.resteer.aside.bytes()
	}
	return q.backlog.bytes()
}

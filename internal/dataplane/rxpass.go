// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
)

// staleFrames is the number of packets that are dropped from the TAP behind one that
// was dropped from the backlog for its age: more than a TAP keeps, but not all that a
// flood may bring.
const staleFrames = 1024

// rxBatch is the work of one rx pass. It belongs to a worker, which reuses it for
// every queue.
type rxBatch struct {
	segs   [netif.RxRingSize]gntdev.Segment
	slotOf [netif.RxRingSize]uint16 // segs[i] fills slots[slotOf[i]]
	pktOf  [netif.RxRingSize]uint16 // and belongs to pkts[pktOf[i]]
	slots  [netif.RxRingSize]netif.RxSlot
	pkts   [netif.RxRingSize]rxPacket

	nSegs, nSlots int

	free    uint32 // requests not yet consumed
	packets uint32
	failed  uint32 // packets that failed
	bytes   uint32 // bytes of the packets that did not fail
}

// rxPacket is a packet of the batch.
type rxPacket struct {
	n      uint32 // bytes
	failed bool   // a page of it could not be written
}

// begin makes the batch empty, with free requests at hand.
func (b *rxBatch) begin(free uint32) {
	b.nSegs, b.nSlots, b.free = 0, 0, free
	b.packets, b.failed, b.bytes = 0, 0, 0
	b.pkts[0].failed = false
}

// rxPass moves one batch of packets from the TAP to the guest. It reports whether
// there may be more to do at once. An error is a breach of the ring's protocol.
//
// A queue has either a backlog or reads its TAP, never both in one pass:
//
//	TAP --read--> plan --place--> slots --copy, journal, publish--> guest
//	               |                ^
//	               v                |
//	            backlog ------------+  in a pass of its own
func (w *worker) rxPass(q *Queue) (more bool, err error) {
	b := &w.rx
	free, err := q.rx.Available()
	if err != nil {
		return false, fmt.Errorf("rx ring: %w", err)
	}
	b.begin(free)
	w.reads.places.reset()
	if q.backlog.empty() {
		more = w.rxFromTap(q, b) || !q.backlog.empty()
	} else {
		more = w.rxFromBacklog(q, b)
	}
	w.deliver(q, b)
	q.backlog.trim()
	if b.nSlots > 0 {
		q.unblocked()
	}
	if q.resteer != nil && w.advance(q) {
		more = true
	}
	if more {
		return true, nil
	}
	if !q.backlog.empty() {
		q.blocked.need = q.slotsForHead()
	} else if q.blocked.since.IsZero() {
		return false, nil
	}
	if more, err = w.rxBlocked(q); err != nil {
		return false, fmt.Errorf("rx ring: %w", err)
	}
	return more, nil
}

// rxFromTap reads packets and plans them into b. A packet that finds too few slots,
// and all behind it, go to the backlog. It reports whether the TAP may have more.
func (w *worker) rxFromTap(q *Queue, b *rxBatch) (more bool) {
	if b.free >= q.blocked.need {
		q.blocked.stale = 0
	}
	if q.resteer != nil && q.resteer.pausesTap() {
		return false
	}
	r := &q.reader
	for left := rxParts * rxReads; left > 0 && q.tapIn.ready; {
		if r.large.last && q.readsToPages() && w.rxToPages(q, b) {
			break
		}
		t := r.next(w, int(b.free), left, q.blocked.stale)
		left -= t.asked
		w.planFrames(q, b, t.frames)
		if b.nSegs == 0 {
			w.reads.places.reset() // all of them have been copied
		}
		q.tapIn.ready = t.more
		if q.resteer != nil {
			q.tapIn.ready = q.resteer.noteRead(len(t.frames), t.empty)
		}
		if t.empty {
			q.blocked.stale = 0
		}
		if !q.backlog.empty() {
			r.run.restart() // segments pass through the backlog even if there are slots
			break
		}
		if t.large || b.free == 0 {
			break
		}
	}
	return q.tapIn.ready
}

// rxFromBacklog plans as many packets of the backlog as the slots at hand can take.
// Segments are made in the rx arena, which holds no packets of the TAP in such a pass.
func (w *worker) rxFromBacklog(q *Queue, b *rxBatch) (more bool) {
	l := &q.backlog
	made := 0
	for !l.empty() {
		p := l.head()
		if p.plan.Action != offload.ActSegment {
			if p.n > q.maxRx {
				w.tally[DropRxSize]++ // the guest has asked for headroom since it was read
				l.pop()
				continue
			}
			if !w.place(q, b, &l.mem, p.at, p.n, &p.plan) {
				return false
			}
			l.pop()
			continue
		}
		s := &l.segmenter
		if !l.cutting {
			if err := s.Init(l.frame(p), int(p.plan.GSOSize)); err != nil {
				w.tally[DropRxCsum]++
				l.pop()
				continue
			}
			if s.MaxLen() > q.maxRx {
				w.tooBig(q)
				l.pop()
				continue
			}
			l.cutting = true
			w.tally[Segmented]++
		}
		if s.MaxLen() > q.maxRx {
			w.tally[DropRxCsum]++
			l.pop()
			continue
		}
		for s.Left() > 0 {
			if made == rxReads {
				return true
			}
			if b.free < q.slotsForSegment(s.MaxLen()) {
				return false
			}
			at, ok := w.reads.places.page()
			if !ok {
				return true
			}
			made++
			n, err := s.Next(w.rxMem.mem[at : at+maxFrame])
			if err != nil {
				break
			}
			w.reads.places.took(at + n)
			w.place(q, b, &w.rxMem, at, n, &offload.RxPlan{DataValidated: p.plan.DataValidated})
		}
		l.pop()
	}
	return true
}

// armRx requests an event for when there are as many slots as the queue needs, and reports
// whether there are.
func (q *Queue) armRx() (there bool, err error) {
	if q.virt != nil {
		return q.virt.rx.armFor(int(q.blocked.need))
	}
	return q.rx.ArmFor(q.blocked.need)
}

// rxBlocked is called when packets wait for more slots than there are, or were dropped
// because they waited too long. It requests an event for when the guest has posted the
// slots, marks the queue as stalled after [Config.Stall], and drops packets of the
// backlog that are older than the drain time.
func (w *worker) rxBlocked(q *Queue) (more bool, err error) {
	cfg := &q.conn.cfg
	there, err := q.armRx()
	if err != nil {
		return false, err
	}
	if there {
		q.unblocked()
		return !q.backlog.empty(), nil
	}
	if q.blocked.since.IsZero() {
		q.blocked.since = w.time()
	}
	if q.canStall() && w.time().Sub(q.blocked.since) >= cfg.Stall {
		q.blocked.stalled = true
		cfg.Notice(Notice{Kind: Stalled, Queue: q.index})
	}
	dropped := false
	for !q.backlog.empty() && w.time().Sub(q.backlog.head().since) >= q.blocked.drainAfter {
		q.backlog.pop()
		w.tally[DropRxStalled]++
		dropped = true
	}
	if q.backlog.empty() {
		if dropped {
			q.blocked.stale = staleFrames
			q.tapIn.ready = !q.tapIn.gone
			return true, nil
		}
		return false, nil
	}
	if !cfg.RxNotify {
		q.blocked.pollAt = w.time().Add(noNotifyPoll)
	}
	q.backlog.trim()
	// A new head may need fewer slots.
	return dropped, nil
}

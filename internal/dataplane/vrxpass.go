// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/internal/offload"

// vrxPass moves one batch of packets from the TAP to a virtqueue, as rxPass does to a vif's
// ring. An error is a broken rule of the ring; the packets before it have been delivered.
func (w *worker) vrxPass(q *Queue) (more bool, err error) {
	r := &q.virt.rx
	before := w.tally[RxSlots]
	w.reads.places.reset()
	w.virt.to.n = 0
	if q.backlog.empty() {
		more, err = w.vrxFromTap(q)
		more = more || !q.backlog.empty()
	} else {
		more, err = w.vrxFromBacklog(q)
	}
	w.vrxDeliver(q)
	if err != nil {
		return false, err
	}
	q.backlog.trim()
	if w.tally[RxSlots] != before {
		q.unblocked()
		r.disarm()
	}
	switch {
	case more:
		return true, nil
	case q.backlog.empty() && q.blocked.since.IsZero():
		return false, nil
	}
	return w.rxBlocked(q)
}

// vrxFromTap reads packets and places them in chains. A packet that finds too few, and all
// behind it, go to the backlog. It reports whether the TAP may have more.
func (w *worker) vrxFromTap(q *Queue) (more bool, err error) {
	r := &q.reader
	for left := rxParts * rxReads; left > 0 && q.tapIn.ready; {
		if r.large.last && q.readsToChains() {
			if end, err := w.vrxToChains(q); end {
				return q.tapIn.ready, err
			}
		}
		free, all, err := q.chainsFor()
		if err != nil {
			return false, err
		}
		t := r.next(w, free, left, q.blocked.stale)
		left -= t.asked
		for i := range t.frames {
			if err := w.vrxFrame(q, t.frames[i]); err != nil {
				return false, err
			}
		}
		if w.virt.copies.n == 0 {
			w.reads.places.reset() // all of them have been copied
		}
		q.tapIn.ready = t.more
		if t.empty {
			q.blocked.stale = 0
		}
		if !q.backlog.empty() {
			r.run.restart()
			break
		}
		if t.large || all && free == len(t.frames) {
			break
		}
	}
	return q.tapIn.ready, nil
}

// chainsFor returns how many chains are available, at most as many as the next read can
// use: a packed ring has to be looked at one descriptor after the other. all says that there
// are no others.
func (q *Queue) chainsFor() (free int, all bool, err error) {
	r := &q.reader
	most := r.run.want(true)
	if r.large.some {
		most *= r.slots
	}
	if q.blocked.stale > 0 {
		most = max(most, int(q.blocked.need))
	}
	free, err = q.virt.rx.availableUpTo(most)
	if free >= int(q.blocked.need) {
		q.blocked.stale = 0
	}
	return free, free < most, err
}

// vrxFrame makes the vnet header of a packet fit the guest, and places the packet in
// chains, puts it in the backlog, or drops it.
func (w *worker) vrxFrame(q *Queue, f rxFrame) error {
	at, n := f.at, f.n-q.vnetLen
	if n < minLinear || n > maxFrame {
		w.tally[DropRxSize]++
		return nil
	}
	mem := w.rxMem.mem
	if q.vnetLen == 0 {
		clear(mem[at-vrxHead : at])
	}
	var plan offload.RxPlan
	if mem[at-vrxHead]|mem[at-vrxHead+1] != 0 && !w.vrxPlan(q, mem[at-vrxHead:at+n], &plan) {
		w.tally[DropRxCsum]++
		return nil
	}
	if plan.Action != offload.ActSegment && q.backlog.empty() {
		count, err := w.vrxTake(q, n)
		if count > 0 {
			w.vrxFill(q, &w.rxMem, at, n, count)
		}
		if count != vrxBlocked {
			return err
		}
	}
	if q.blocked.stale > 0 {
		q.blocked.stale--
		w.tally[DropRxStalled]++
		return nil
	}
	if drop := q.backlog.push(mem[at-vrxHead:at+n], &plan, w.time()); drop != notDropped {
		w.tally[drop]++
		return nil
	}
	if plan.Action != offload.ActSegment {
		w.tally[RxParked]++
	}
	return nil
}

// vrxFromBacklog places as many packets of the backlog as the chains at hand can take.
// Segments are made in the rx arena.
func (w *worker) vrxFromBacklog(q *Queue) (more bool, err error) {
	l := &q.backlog
	made := 0
	for !l.empty() {
		p := l.head()
		if p.plan.Action != offload.ActSegment {
			at, n := p.at+vrxHead, p.n-vrxHead
			count, err := w.vrxTake(q, n)
			if err != nil || count == vrxBlocked {
				return false, err
			}
			if count > 0 {
				w.vrxFill(q, &l.mem, at, n, count)
			}
			l.pop()
			continue
		}
		if !l.cutting {
			if err := l.segmenter.Init(l.frame(p)[vrxHead:], int(p.plan.GSOSize)); err != nil {
				w.tally[DropRxCsum]++
				l.pop()
				continue
			}
			l.cutting = true
			w.tally[Segmented]++
		}
		if more, err := w.vrxSegments(q, &made); err != nil || l.cutting {
			return more, err
		}
	}
	return true, nil
}

// vrxSegments places segments of the head of the backlog and removes it with the last one.
// made counts the segments of the pass. It reports whether more can be done at once.
func (w *worker) vrxSegments(q *Queue, made *int) (more bool, err error) {
	l := &q.backlog
	s := &l.segmenter
	for s.Left() > 0 {
		if *made == rxReads {
			return true, nil
		}
		n := s.MaxLen()
		count, err := w.vrxTake(q, n)
		if err != nil || count == vrxBlocked {
			return false, err
		}
		if count == 0 {
			break // the others are as large
		}
		at, ok := w.reads.places.page()
		if !ok {
			return true, nil
		}
		*made++
		w.reads.places.took(at + n)
		_, _ = s.Next(w.rxMem.mem[at : at+n]) // it needs n bytes, so there is no error
		q.virt.finished(w.rxMem.mem[at-vrxHead:at], l.head().plan.DataValidated)
		w.vrxFill(q, &w.rxMem, at, n, count)
	}
	l.pop()
	return true, nil
}

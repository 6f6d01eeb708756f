// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"time"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// resume ends what a predecessor began: it publishes the responses that the journal has and
// the ring lacks, and starts the requests in flight again. The frontend is notified in any
// case, since its event may have been lost, and no later response crosses its rsp_event
// again.
func (q *queue) resume() error {
	for e := int(q.ring.Size()) - 1; e >= 0; e-- {
		q.free = append(q.free, uint16(e))
	}
	if !q.adopted {
		return nil
	}
	if len(q.found.replay) > 0 {
		q.ring.Commit(q.found.replay)
		q.journal.at(stepPublish)
	}
	q.journal.settle(&q.found)
	q.free = q.free[:0]
	used := make([]bool, q.ring.Size())
	for _, e := range q.found.entries {
		used[e] = true
		q.admit(e, q.journal.indexOf(e))
		q.tally[Readopted]++
	}
	for e := len(used) - 1; e >= 0; e-- {
		if !used[e] {
			q.free = append(q.free, uint16(e))
		}
	}
	q.found = found{}
	q.notify()
	return nil
}

// consume copies the requests that there are into the journal, and admits them.
func (q *queue) consume() error {
	if q.state != serving || q.pending.len() > 0 {
		return nil
	}
	n, err := q.ring.Available()
	if err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	n = min(n, maxBatch, uint32(len(q.free)))
	if n == 0 {
		return nil
	}
	q.tally[Batches]++
	first := q.ring.ReqCons()
	for i := range n {
		e := q.free[len(q.free)-1]
		q.free = q.free[:len(q.free)-1]
		index := first.Add(i)
		q.ring.Copy(index, q.journal.slot(e))
		q.journal.enter(e, index)
		q.admit(e, index)
	}
	q.journal.consumed(first.Add(n))
	q.ring.Consume(n)
	return nil
}

// admit puts a request, which is in the journal, behind those that wait to be started.
func (q *queue) admit(e uint16, index blkif.Index) {
	r := &q.requests[e]
	r.index, r.pages, r.segs, r.next, r.ops, r.failed = index, none, nil, 0, 0, noError
	r.phase, r.secure, r.extent = flushBefore, false, blkif.Extent{}
	q.pending.push(e)
}

// start starts requests in the order of the ring until there are no more, or the next one
// must wait.
func (q *queue) start() {
	q.readLimits()
	for {
		q.feed()
		if q.hungry.len() > 0 || !q.startBatch() {
			break
		}
	}
	q.sync()
}

// readLimits reads the limits that requests must keep to.
func (q *queue) readLimits() {
	c := &q.conn.cfg
	d := c.Disk.Discard()
	q.limits = blkif.Limits{
		Sectors:     q.conn.sectors.Load(),
		BlockSize:   uint16(c.Disk.SectorSize()),
		MaxSegments: uint16(c.MaxSegments),
		ReadOnly:    c.ReadOnly,
		Discard:     d.OK() && !c.NoDiscard,
		Secure:      d.Secure && !c.NoDiscard,
	}
}

// startBatch starts the next requests, with one grant copy for all their indirect pages. It
// reports whether there were any.
func (q *queue) startBatch() bool {
	q.batch, q.copies = q.batch[:0], q.copies[:0]
	moved := false
	for q.pending.len() > 0 && len(q.batch) < maxBatch && q.barrier == none {
		e := q.pending.first()
		r, d := &q.requests[e], &q.decoded[len(q.batch)]
		q.journal.slot(e).Decode(q.conn.cfg.Protocol, d)
		r.rsp, r.kind = d.Response(blkif.StatusOkay), d.Operation()
		if d.IsBarrier() {
			r.kind = blkif.OpBarrier
		}
		reason := d.Check(&q.limits)
		if reason == blkif.ReasonNone && d.IsBarrier() && q.started+len(q.batch) > 0 {
			if !q.barrierWaits {
				q.barrierWaits = true
				q.tally[BarrierWaits]++
			}
			break
		}
		if reason == blkif.ReasonNone && d.Op == blkif.OpIndirect && !q.fetch(r, d) {
			q.tally[MemoryWaits]++
			break
		}
		q.pending.pop()
		moved = true
		if reason != blkif.ReasonNone {
			q.started++
			q.refuse(e, reason)
			continue
		}
		q.batch = append(q.batch, e)
		if d.IsBarrier() {
			q.barrier, q.barrierWaits = int32(e), false
		}
	}
	q.grantCopy()
	for i, e := range q.batch {
		q.started++
		if reason := q.check(i, e); reason != blkif.ReasonNone {
			q.refuse(e, reason)
		} else {
			q.begin(e)
		}
	}
	return moved
}

// fetch plans copies of the indirect pages of a request, of the part that is used. It
// returns false if there is no memory for them now.
func (q *queue) fetch(r *request, d *blkif.Request) bool {
	pages := d.IndirectPages()
	if r.pages = q.meta.alloc(orderOf(pages * blkif.PageSize)); r.pages == none {
		return false
	}
	q.fetched[len(q.batch)] = int32(len(q.copies))
	mem := q.meta.bytes(r.pages, pages*blkif.PageSize)
	for i := range pages {
		at := i * blkif.PageSize
		q.copies = append(q.copies, gntdev.Segment{})
		q.copies[len(q.copies)-1].FromGuest(q.conn.cfg.Domid, d.Grefs[i], 0,
			mem[at:at+blkif.IndirectBytes(d.IndirectSegments(i))])
	}
	return true
}

// check checks the segments of request i of the batch, and where it goes on the disk. The copies of its
// indirect pages are there.
func (q *queue) check(i int, e uint16) (reason blkif.Reason) {
	r, d := &q.requests[e], &q.decoded[i]
	if d.Op == blkif.OpIndirect {
		at := int(q.fetched[i])
		pages := d.IndirectPages()
		for i := range pages {
			if q.copies[at+i].Status() != gntdev.StatusOkay {
				return blkif.ReasonIndirectGrant
			}
		}
		// The checked segments take the place of those that were copied.
		r.segs = segmentsIn(q.meta.bytes(r.pages, int(d.NrSegments)*segmentBytes))
		for i := range pages {
			n := d.IndirectSegments(i)
			part := r.segs[i*blkif.SegmentsPerPage:][:n]
			if reason = blkif.DecodeIndirect(q.meta.bytes(r.pages+int32(i), blkif.IndirectBytes(n)), part); reason != blkif.ReasonNone {
				return reason
			}
		}
		q.tally[Indirect]++
	} else {
		n, reason := d.Direct(r.direct[:])
		if reason != blkif.ReasonNone {
			return reason
		}
		r.segs = r.direct[:n]
	}
	if r.extent, reason = d.Place(&q.limits, r.segs); reason == blkif.ReasonNone {
		r.off, r.secure = r.extent.Off, d.Secure(&q.limits)
	}
	return reason
}

// refuse answers a request that breaks a rule.
func (q *queue) refuse(e uint16, reason blkif.Reason) {
	r := &q.requests[e]
	r.rsp.Status, r.failed = reason.Status(), refusal(reason)
	q.tally[r.failed]++
	q.warn(BadRequest, r.failed, reason)
	if int32(e) == q.barrier {
		q.barrier = none
	}
	q.finish(e)
}

// warn sends a notice, at most one of its kind a second.
func (q *queue) warn(kind NoticeKind, reason Counter, err error) {
	last := &q.noticed[kind-BadRequest]
	if now := time.Now(); now.Sub(*last) >= time.Second {
		*last = now
		q.conn.cfg.Notice(Notice{Kind: kind, Queue: q.index, Reason: reason, Err: err})
	}
}

// begin begins the work of a request that was checked.
func (q *queue) begin(e uint16) {
	r := &q.requests[e]
	q.tally[Segments] += uint64(len(r.segs))
	switch r.kind {
	case blkif.OpRead:
		q.tally[Reads]++
		q.hungry.push(e)
	case blkif.OpWrite:
		q.tally[Writes]++
		q.hungry.push(e)
	case blkif.OpFlush:
		q.tally[Flushes]++
		q.waiting = append(q.waiting, e)
	case blkif.OpBarrier:
		q.tally[Barriers]++
		r.phase = flushBefore
		q.waiting = append(q.waiting, e)
	case blkif.OpDiscard:
		if r.secure {
			q.tally[SecureDiscards]++
		} else {
			q.tally[Discards]++
		}
		q.hungry.push(e)
	}
}

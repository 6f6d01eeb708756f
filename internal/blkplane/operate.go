// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// feed begins operations for the requests that have segments left, in order, until there
// are no more or an operation or memory is not to be had. The data of writes is fetched
// with one grant copy, or a few if it is much.
func (q *queue) feed() {
	for q.hungry.len() > 0 {
		q.copies, q.begun = q.copies[:0], q.begun[:0]
		more := q.plan()
		q.grantCopy()
		failed := q.writeOut()
		if !more && !failed {
			return
		}
		// The disk works on this part while the next is copied.
		q.tally[Syscalls]++
		if err := q.engine.SubmitAndWait(0, 0); err != nil {
			return // the turn ends with a call that reports it
		}
	}
}

// plan begins operations: reads are queued, writes wait for their data. It returns true if
// it stopped because the grant copy is full.
func (q *queue) plan() (full bool) {
	for q.hungry.len() > 0 {
		e := q.hungry.first()
		r := &q.requests[e]
		if r.failed != noError {
			q.hungry.pop()
			r.next = len(r.segs)
			if r.ops == 0 {
				q.finish(e)
			}
			continue
		}
		if len(q.freeOps) == 0 {
			return false
		}
		if r.kind == blkif.OpDiscard {
			q.hungry.pop()
			r.ops++
			id := q.newOperation(operation{entry: e, block: none})
			q.journal.at(stepSubmit)
			q.engine.Discard(uint64(r.extent.Off), uint64(r.extent.Len), r.secure, uint64(id))
			q.tally[DiskOps]++
			continue
		}
		op := operation{entry: e, first: r.next, off: r.off}
		op.end, op.len = chunk(r.segs, r.next)
		if r.kind != blkif.OpRead && len(q.copies) > 0 && len(q.copies)+op.end-op.first > maxCopies {
			return true
		}
		op.block, op.units = none, units(op.len)
		if !q.lane.take(op.units, q.units) {
			q.tally[DeviceWaits]++
			return false
		}
		id := q.newOperation(op)
		if !q.gather(id) {
			if q.operations[id].block = q.memory(op.len); q.operations[id].block == none {
				q.freeOps = append(q.freeOps, id)
				q.lane.give(op.units)
				q.tally[MemoryWaits]++
				return false
			}
		}
		q.units += op.units
		r.next, r.off = op.end, r.off+int64(op.len)
		r.ops++
		if r.next == len(r.segs) {
			q.hungry.pop()
		}
		if r.kind == blkif.OpRead || q.operations[id].vectored {
			q.transfer(id)
		} else {
			q.load(id)
		}
	}
	return false
}

// chunk returns the end of the segments that the next operation has, and their bytes.
func chunk(segs []blkif.Segment, first int) (end, bytes int) {
	for end = first; end < len(segs) && end-first < maxChunkSegments; end++ {
		n := int(segs[end].Len)
		if bytes+n > maxChunk {
			break
		}
		bytes += n
	}
	return end, bytes
}

// memory allocates a block for n bytes within the budgets, or returns none.
func (q *queue) memory(n int) int32 {
	order := orderOf(n)
	size := int64(sizeOf(order))
	if !q.share.take(size) {
		return none
	}
	block := q.data.alloc(order)
	if block == none {
		q.share.give(size)
	}
	return block
}

func (q *queue) newOperation(op operation) uint16 {
	id := q.freeOps[len(q.freeOps)-1]
	q.freeOps = q.freeOps[:len(q.freeOps)-1]
	q.operations[id] = op
	return id
}

// load plans the copies of the data of a write.
func (q *queue) load(id uint16) {
	op := &q.operations[id]
	r := &q.requests[op.entry]
	mem := q.data.bytes(op.block, op.len)
	op.copies = len(q.copies)
	if q.persistent != nil {
		q.persistent.prepare(q, r.segs[op.first:op.end])
	}
	for i := op.first; i < op.end; i++ {
		s := &r.segs[i]
		dst := mem[:s.Len]
		mem = mem[s.Len:]
		if q.persistent != nil && q.persistent.read(q, s, dst) {
			continue
		}
		q.copies = append(q.copies, gntdev.Segment{})
		q.copies[len(q.copies)-1].FromGuest(q.conn.cfg.Domid, s.Gref, s.Off, dst)
	}
	op.copiesEnd = len(q.copies)
	q.begun = append(q.begun, id)
}

// writeOut queues the writes whose data was fetched. It reports whether any have failed: no
// completion will tell that their memory is free.
func (q *queue) writeOut() (failed bool) {
	for _, id := range q.begun {
		op := &q.operations[id]
		if q.copied(op) {
			q.transfer(id)
		} else {
			q.fail(op.entry, refusal(blkif.ReasonGrant), nil)
			q.endOperation(id)
			failed = true
		}
	}
	q.begun = q.begun[:0]
	return failed
}

// copied reports whether all copies of an operation were made.
func (q *queue) copied(op *operation) bool {
	for i := op.copies; i < op.copiesEnd; i++ {
		if q.copies[i].Status() != gntdev.StatusOkay {
			return false
		}
	}
	return true
}

// grantCopy makes the copies that were planned.
func (q *queue) grantCopy() {
	if len(q.copies) == 0 {
		return
	}
	q.tally[GrantCalls]++
	q.tally[Syscalls]++
	q.tally[GrantOps] += uint64(len(q.copies))
	if err := q.grants.Copy(q.copies); err != nil {
		q.conn.pool.opts.Warn(err) // every segment has an error
	}
}

// transfer queues the rest of an operation.
func (q *queue) transfer(id uint16) {
	op := &q.operations[id]
	q.tally[DiskOps]++
	q.journal.at(stepSubmit)
	if op.vectored {
		q.transferVectored(id)
		return
	}
	off, addr, n := uint64(op.off)+uint64(op.moved), q.data.addr(op.block)+uintptr(op.moved), uint32(op.len-op.moved)
	if q.requests[op.entry].kind == blkif.OpRead {
		q.engine.Read(off, addr, n, uint64(id))
	} else {
		q.engine.Write(off, addr, n, uint64(id))
	}
}

// complete takes the completions and events that there are, and returns their number.
func (q *queue) complete() int {
	n := q.engine.Completions(q.done)
	for _, c := range q.done[:n] {
		switch {
		case c.User == userWake:
			q.rung = true
			if c.Res < 0 {
				q.deaf = true
				q.stop(fmt.Errorf("poll for commands: %w", unix.Errno(-c.Res)))
			}
		case q.state == broken:
			// The operation has ended, and its memory is not used any more.
		case c.User == userEvents && c.Res < 0:
			q.stop(fmt.Errorf("poll the event channel: %w", unix.Errno(-c.Res)))
		case c.User == userExchange:
			q.failed = true
		case c.User == userEvents:
			q.fired = true
		case c.User == userSync:
			q.synced(c.Res)
		case c.User < maxOperations:
			q.completed(uint16(c.User), c.Res)
		}
	}
	return n
}

// interrupted returns whether an operation ended with res without a result, and has to be made
// again. io_uring cancels operations that wait for a thread if it cannot start one, because of
// signals that come at the same time.
func interrupted(res int32) bool {
	return res == -int32(unix.EINTR) || res == -int32(unix.EAGAIN) || res == -int32(unix.ECANCELED)
}

// completed handles the completion of a transfer or discard.
func (q *queue) completed(id uint16, res int32) {
	q.journal.at(stepDone)
	op := &q.operations[id]
	r := &q.requests[op.entry]
	switch {
	case r.kind == blkif.OpDiscard:
		if res == -int32(unix.ECANCELED) && q.state == closing {
			return // ended by close: it stays in the journal
		}
		if interrupted(res) && op.again < maxAgain {
			op.again++
			q.engine.Discard(uint64(r.extent.Off), uint64(r.extent.Len), r.secure, uint64(id))
			q.tally[DiskOps]++
			return
		}
		if res < 0 {
			q.discardFailed(op.entry, unix.Errno(-res))
		}
	case interrupted(res) && op.again < maxAgain:
		op.again++
		q.transfer(id)
		return
	case res < 0:
		q.fail(op.entry, ErrDisk, unix.Errno(-res))
	case res == 0:
		q.fail(op.entry, ErrShort, unix.EIO)
	case op.moved+int(res) < op.len:
		op.moved += int(res)
		q.tally[DiskShort]++
		q.transfer(id)
		return
	case r.kind == blkif.OpRead && !op.vectored:
		q.reads = append(q.reads, id)
		return
	}
	q.endOperation(id)
}

// discardFailed fails a discard. The frontend stops sending them if the disk has none.
func (q *queue) discardFailed(e uint16, errno unix.Errno) {
	q.fail(e, ErrDiscard, errno)
	if errno == unix.EOPNOTSUPP || errno == unix.ENOTTY {
		q.requests[e].rsp.Status = blkif.StatusNotSupported
	}
}

// deliverReads copies the data of reads that are done to the guest, with one grant copy and
// up to its bound. The guest can work on these while the rest follows in the next turn.
func (q *queue) deliverReads() {
	if len(q.reads) == 0 {
		return
	}
	q.copies = q.copies[:0]
	n := 0
	for n < min(len(q.reads), maxDeliver) && q.unload(q.reads[n]) {
		n++
	}
	q.grantCopy()
	for _, id := range q.reads[:n] {
		op := &q.operations[id]
		if !q.copied(op) {
			q.fail(op.entry, refusal(blkif.ReasonGrant), nil)
		}
		q.endOperation(id)
	}
	q.reads = q.reads[:copy(q.reads, q.reads[n:])]
}

// unload plans the copies of the data of a read. It returns false if they do not fit.
func (q *queue) unload(id uint16) bool {
	op := &q.operations[id]
	if len(q.copies) > 0 && len(q.copies)+op.end-op.first > maxCopies {
		return false
	}
	r := &q.requests[op.entry]
	mem := q.data.bytes(op.block, op.len)
	op.copies = len(q.copies)
	if q.persistent != nil {
		q.persistent.prepare(q, r.segs[op.first:op.end])
	}
	for i := op.first; i < op.end; i++ {
		s := &r.segs[i]
		src := mem[:s.Len]
		mem = mem[s.Len:]
		if q.persistent != nil && q.persistent.write(q, s, src) {
			continue
		}
		q.copies = append(q.copies, gntdev.Segment{})
		q.copies[len(q.copies)-1].ToGuest(q.conn.cfg.Domid, s.Gref, s.Off, src)
	}
	op.copiesEnd = len(q.copies)
	return true
}

// fail makes the response of a request an error. The first reason counts. err is that of
// the disk, or nil for a grant.
func (q *queue) fail(e uint16, reason Counter, err error) {
	r := &q.requests[e]
	if r.failed != noError {
		return
	}
	r.failed, r.rsp.Status = reason, blkif.StatusError
	q.tally[reason]++
	if err != nil {
		q.warn(DiskError, reason, err)
	} else {
		q.warn(BadRequest, reason, blkif.ReasonGrant)
	}
}

// endOperation frees an operation and its memory, and finishes its request if it was the
// last one.
func (q *queue) endOperation(id uint16) {
	op := &q.operations[id]
	if op.block != none {
		q.data.free(op.block)
		q.share.give(int64(sizeOf(orderOf(op.len))))
	}
	q.lane.give(op.units)
	q.units -= op.units
	if op.vectored {
		q.unpin(q.requests[op.entry].segs[op.first:op.end])
	}
	q.freeOps = append(q.freeOps, id)
	r := &q.requests[op.entry]
	if r.ops--; r.ops > 0 || r.kind != blkif.OpDiscard && r.next < len(r.segs) {
		return
	}
	if r.kind == blkif.OpBarrier && r.failed == noError {
		r.phase = flushAfter
		q.waiting = append(q.waiting, op.entry)
		return
	}
	q.finish(op.entry)
}

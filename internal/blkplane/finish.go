// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// sync begins a flush of the disk for all requests that wait for one, unless one is under
// way: that one began before they did.
func (q *queue) sync() {
	if len(q.waiting) == 0 || len(q.syncing) > 0 {
		return
	}
	q.waiting, q.syncing = q.syncing[:0], q.waiting
	q.tally[Syncs]++
	q.tally[FlushesShared] += uint64(len(q.syncing) - 1)
	q.journal.at(stepSubmit)
	q.engine.Sync(userSync)
}

// synced handles the end of a flush.
//
// A flush that fails may be the only one to report that data was lost: the kernel marks
// the pages clean and reports the error once. So from then on no flush of the connection
// succeeds, also if a successor serves it. One that was interrupted is made again; it reports
// nothing.
func (q *queue) synced(res int32) {
	q.journal.at(stepDone)
	switch {
	case interrupted(res) && q.syncAgain < maxAgain:
		q.syncAgain++
		q.tally[Syncs]++
		q.journal.at(stepSubmit)
		q.engine.Sync(userSync)
		return
	case res < 0 && !interrupted(res):
		q.journal.lose()
		q.conn.lost.Store(true)
	}
	q.syncAgain = 0
	lost := res < 0 || q.conn.lost.Load()
	for _, e := range q.syncing {
		r := &q.requests[e]
		switch {
		case lost:
			errno := unix.EIO
			if res < 0 {
				errno = unix.Errno(-res)
			}
			q.fail(e, ErrSync, errno)
			q.finish(e)
		case r.kind == blkif.OpBarrier && r.phase == flushBefore && len(r.segs) > 0:
			r.phase = barrierWrite
			q.hungry.push(e)
		default:
			q.finish(e)
		}
	}
	q.syncing = q.syncing[:0]
}

// finish ends a request and puts its response into the turn's batch.
func (q *queue) finish(e uint16) {
	r := &q.requests[e]
	if r.pages != none {
		q.meta.free(r.pages)
		r.pages = none
	}
	r.segs = nil
	if q.barrier == int32(e) {
		q.barrier = none
	}
	q.started--
	if r.rsp.Status == blkif.StatusOkay {
		q.tally[OKs]++
		switch r.kind {
		case blkif.OpRead:
			q.tally[ReadBytes] += uint64(r.extent.Len)
		case blkif.OpDiscard:
			q.tally[DiscardBytes] += uint64(r.extent.Len)
		default:
			q.tally[WriteBytes] += uint64(r.extent.Len)
		}
	}
	q.answers = append(q.answers, answer{rsp: r.rsp, index: r.index, entry: e})
}

// answer publishes the responses of the turn: recorded first, then written, then published
// with one store.
func (q *queue) answer() {
	if len(q.answers) == 0 {
		return
	}
	q.replies = q.replies[:0]
	for i := range q.answers {
		q.replies = append(q.replies, q.answers[i].rsp)
	}
	q.journal.record(q.ring.RspProd(), q.answers)
	notify := q.ring.Commit(q.replies)
	q.journal.at(stepPublish)
	for i := range q.answers {
		e := q.answers[i].entry
		q.journal.release(e)
		q.free = append(q.free, e)
	}
	q.answers = q.answers[:0]
	if notify {
		q.notify()
	} else {
		q.tally[NotifiesSaved]++
	}
}

// notify sends the guest an event. It ignores errors: if the domain is dying, the owner of
// the vbd learns that elsewhere.
func (q *queue) notify() {
	q.tally[Notifies]++
	q.tally[Syscalls]++
	_ = q.events.Notify(q.port)
	q.journal.at(stepNotify)
}

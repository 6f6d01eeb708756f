// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// rxChains is the most chains that are published at once to a guest: those of a batch of
// small packets, or of 8 packets of 64 KiB in the smallest buffers that Linux posts.
const rxChains = 512

// virtBatches is a worker's memory for the passes over virtqueues.
type virtBatches struct {
	tx, rx *virtqueue.Batch
	to     vrxPackets // of rx
	copies virtCopies
	kick   [1][]byte // what is read of a descriptor for kicks
}

// openVirt makes the memory for virtqueues, when the worker gets the first pair.
func (w *worker) openVirt() {
	if w.virt == nil {
		w.virt = new(virtBatches)
		w.emptyVirt()
	}
}

// emptyVirt makes empty batches: those of a turn that panicked have chains.
func (w *worker) emptyVirt() {
	v := w.virt
	v.tx, v.rx = virtqueue.NewBatch(batchPackets), virtqueue.NewBatch(rxChains)
	v.copies = virtCopies{}
	v.kick[0] = make([]byte, 64)
}

// admitVirt registers the descriptors of a pair with epoll, under id.
func (w *worker) admitVirt(q *Queue, id int) error {
	w.openVirt()
	q.id = id
	for _, r := range q.virt.rings() {
		if !r.started() || r.broken != nil {
			continue
		}
		if err := w.watchKick(q, r); err != nil {
			return err
		}
	}
	q.tapIn.armed = false // until packets can be delivered
	if q.tapIn.gone {
		return nil
	}
	return w.epoll.watch(unix.EPOLL_CTL_ADD, q.tap.FD(), id, onTap, 0)
}

// serveVirt does the work of a turn of a pair of virtqueues.
func (w *worker) serveVirt(q *Queue) (again bool, err error) {
	v := q.virt
	woken := v.rx.fired || v.tx.fired
	if woken {
		w.takeKick(&v.rx)
		w.takeKick(&v.tx)
	}
	before := w.tally[TxSlots] + w.tally[RxSlots]
	var txMore, rxMore bool
	if v.tx.runs() && q.rate.until.IsZero() {
		if txMore, err = w.vtxPass(q); err != nil {
			w.breakRing(q, &v.tx, err)
		}
	}
	if v.delivers() && (q.tapIn.ready || q.waitsForSlots()) {
		if rxMore, err = w.vrxPass(q); err != nil {
			w.breakRing(q, &v.rx, err)
		}
	}
	moved := w.tally[TxSlots] + w.tally[RxSlots] - before
	w.busy += 1 + int(moved)/slotsPerBusy
	w.urge.tx += w.tally[TxSlots]
	w.urge.rx += w.tally[RxSlots]
	switch {
	case moved != 0:
		q.ev.spurious = 0
	case woken:
		q.ev.spurious++
		w.tally[SpuriousWakes]++
	}
	if txMore || rxMore {
		return true, nil
	}
	w.armTap(q)
	w.restKicks(q, woken && moved == 0)
	w.pollRings(q)
	return false, nil
}

// restKicks stops watching the kicks of a guest that sends them without work, for a delay
// that grows, and watches them again when it is over. spurious says that this turn was for
// such a kick.
func (w *worker) restKicks(q *Queue, spurious bool) {
	e := &q.ev
	switch {
	case spurious && e.spurious > spuriousLimit:
		e.unmaskAt = w.time().Add(e.delay())
	case e.unmaskAt.IsZero() || w.time().Before(e.unmaskAt):
		return
	default:
		e.unmaskAt = time.Time{}
	}
	rest := !e.unmaskAt.IsZero()
	w.restKick(q, &q.virt.rx, rest)
	w.restKick(q, &q.virt.tx, rest)
}

// pollRings makes the queue look again soon if a ring has no descriptor for kicks.
func (w *worker) pollRings(q *Queue) {
	v := q.virt
	if v.rx.runs() && v.rx.set.Kick < 0 && q.waitsForSlots() || v.tx.runs() && v.tx.set.Kick < 0 {
		q.blocked.pollAt = w.time().Add(noNotifyPoll)
	}
}

// breakRing stops serving a ring until it is started again, and tells its front end and
// its owner. The other ring goes on.
func (w *worker) breakRing(q *Queue, r *virtRing, err error) {
	w.silence(q, r, err)
	q.conn.cfg.Notice(Notice{Kind: Breach, Queue: q.index, Err: err})
}

// breakPair does the same with both rings, after a panic: their memory cannot be read any
// more, or there is an error in the data path.
func (w *worker) breakPair(q *Queue, err error) {
	w.emptyVirt()
	for _, r := range q.virt.rings() {
		if r.started() {
			w.silence(q, r, err)
		}
	}
	q.conn.cfg.Notice(Notice{Kind: Breach, Queue: q.index, Err: err})
}

// silence ends the service of a ring that is broken.
func (w *worker) silence(q *Queue, r *virtRing, err error) {
	if r.broken == nil {
		_ = vhostuser.Signal(r.set.Err)
	}
	r.broken = err
	w.unwatchKick(r)
	w.settleRing(q, r)
}

// settleRing forgets what waits for a ring that is not served any more.
func (w *worker) settleRing(q *Queue, r *virtRing) {
	if r == &q.virt.tx {
		q.conn.cfg.Limiter.release(&q.rate.share)
		q.rate.until = time.Time{}
		return
	}
	q.backlog.close()
	if !q.blocked.since.IsZero() {
		q.unblocked()
	}
	q.blocked.stale = 0
	q.reader.run = readRun{}
	w.armTap(q)
}

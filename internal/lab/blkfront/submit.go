// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"encoding/binary"
	"time"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Submit puts a request into the ring and returns its id. Push makes it visible.
func (q *Queue) Submit(r *Request) (id uint64, err error) {
	if q.dead != nil {
		return 0, q.dead
	}
	if q.Free() == 0 {
		return 0, ErrFull
	}
	w := blkif.Request{Op: r.Op, Sector: r.Sector, NrSectors: r.NrSectors, Flag: r.Flag, NrSegments: uint16(len(r.Segs))}
	q.segs = q.segs[:0]
	for _, s := range r.Segs {
		q.segs = append(q.segs, blkif.RawSegment{Gref: s.Gref, First: s.First, Last: s.Last})
	}
	var pages []Page
	if r.Indirect || len(r.Segs) > blkif.MaxDirect {
		w.Op, w.Inner = blkif.OpIndirect, r.Op
		if pages, err = q.writeIndirect(&w); err != nil {
			return 0, err
		}
		q.stats.Indirect++
	} else {
		copy(w.Segs[:], q.segs)
	}
	p := q.claim()
	w.ID = p.id
	p.op, p.user, p.indirect = r.Op, r.User, pages
	p.grefs = p.grefs[:0]
	for _, s := range q.segs {
		if q.inUse != nil {
			p.grefs = append(p.grefs, s.Gref)
		}
		q.stats.Bytes += blkif.SectorSize * uint64(max(0, int(s.Last)-int(s.First)+1))
	}
	q.stats.Segments += uint64(len(q.segs))
	var slot blkif.Slot
	w.Encode(q.front.Protocol(), &slot)
	q.put(p, &slot)
	return p.id, nil
}

// writeIndirect writes the segments of a request to indirect pages.
func (q *Queue) writeIndirect(w *blkif.Request) ([]Page, error) {
	n := w.IndirectPages()
	if n > blkif.MaxIndirectPages {
		n = blkif.MaxIndirectPages // more do not fit in the slot
	}
	if q.indirect == nil {
		return nil, ErrFull
	}
	pages, ok := q.indirect.take(nil, n)
	if !ok {
		return nil, ErrFull
	}
	for i, p := range pages {
		from := i * blkif.SegmentsPerPage
		blkif.EncodeIndirect(p.Mem, q.segs[from:min(len(q.segs), from+blkif.SegmentsPerPage)])
		w.Grefs[i] = p.Gref
	}
	return pages, nil
}

// claim takes a free entry and gives it an id: a number that no earlier request of the
// entry had, and which uses all 64 bits.
func (q *Queue) claim() *pending {
	last := len(q.idle) - 1
	i := q.idle[last]
	q.idle = q.idle[:last]
	p := &q.waiting[i]
	p.live = true
	p.id = q.salt + q.stats.Requests<<9 | uint64(i)
	q.stats.Requests++
	return p
}

func (q *Queue) put(p *pending, s *blkif.Slot) {
	p.slot, p.sent = q.front.ReqProd(), time.Now()
	q.mine[uint32(p.slot)%q.front.Size()] = *s
	q.front.PutSlot(s)
}

// PutSlot puts any bytes into the ring, for tests of bad requests. The id is replaced by
// one of the queue's, and an answer has to have the operation op.
func (q *Queue) PutSlot(s blkif.Slot, op blkif.Op, user uint64) (id uint64, err error) {
	if q.Free() == 0 {
		return 0, ErrFull
	}
	p := q.claim()
	p.op, p.user, p.indirect, p.grefs = op, user, nil, p.grefs[:0]
	at := 8
	if q.front.Protocol() == blkif.X8632 {
		at = 4
	}
	binary.LittleEndian.PutUint64(s[at:], p.id)
	q.put(p, &s)
	return p.id, nil
}

// SubmitRaw puts a request into the ring as it is, but for its id. An indirect one has
// indirect pages of the caller's.
func (q *Queue) SubmitRaw(r *blkif.Request) error {
	var s blkif.Slot
	r.Encode(q.front.Protocol(), &s)
	_, err := q.PutSlot(s, r.Operation(), 0)
	return err
}

// Protocol returns the layout of the slots.
func (q *Queue) Protocol() blkif.Protocol { return q.front.Protocol() }

// SetReqProd writes any req_prod. The ring cannot be used in order after it.
func (q *Queue) SetReqProd(i blkif.Index) { q.front.SetReqProd(i) }

// Push publishes the requests and sends the backend an event if it wants one.
func (q *Queue) Push() error {
	if q.dead != nil {
		return q.dead
	}
	if q.front.Push() {
		return q.Kick()
	}
	q.stats.NotifiesHeld++
	return nil
}

// Kick sends an event, even if the backend did not ask for one.
func (q *Queue) Kick() error {
	q.stats.Notifies++
	return q.events.Notify(q.port)
}

// Poll takes the next answer, if there is one.
func (q *Queue) Poll() (a Answer, ok bool, err error) {
	if q.dead != nil {
		return a, false, q.dead
	}
	n, err := q.front.Responses()
	i := q.front.RspCons()
	if err != nil {
		q.violate(RuleIndex, i, "%v", err)
		return a, false, q.dead
	}
	if n == 0 {
		return a, false, nil
	}
	r := q.front.Response(i)
	p := q.match(r.ID)
	if p == nil {
		q.violate(RuleID, i, "id %#x, operation %v, status %v", r.ID, r.Op, r.Status)
		return a, false, q.dead
	}
	if r.Op != p.op {
		q.violate(RuleOp, i, "%v for a %v", r.Op, p.op)
		return a, false, q.dead
	}
	if r.Status > blkif.StatusOkay || r.Status < blkif.StatusNotSupported {
		q.violate(RuleStatus, i, "%v for a %v", r.Status, p.op)
	}
	q.checkSlot(i)
	q.checkGrants(i, p)
	a = Answer{ID: r.ID, Op: r.Op, Status: r.Status, User: p.user, Took: time.Since(p.sent)}
	q.settle(i, p, &a)
	return a, true, nil
}

// match finds the request that an answer is for.
func (q *Queue) match(id uint64) *pending {
	p := &q.waiting[id%uint64(len(q.waiting))]
	if !p.live || p.id != id {
		return nil
	}
	return p
}

// settle counts an answer and frees what its request had.
func (q *Queue) settle(i blkif.Index, p *pending, a *Answer) {
	q.stats.Answers++
	q.stats.Latency += a.Took
	q.stats.Slowest = max(q.stats.Slowest, a.Took)
	if a.Status != blkif.StatusOkay {
		q.stats.Errors++
	}
	if i != p.slot {
		q.stats.Reordered++
	}
	q.ReturnPages(p.indirect)
	p.live, p.indirect = false, nil
	q.idle = append(q.idle, uint32(a.ID%uint64(len(q.waiting))))
	q.front.Take(1)
}

// checkSlot checks that the slot of a response has no bytes but those of the response and
// those that a request left there.
func (q *Queue) checkSlot(i blkif.Index) {
	var got blkif.Slot
	q.front.Copy(i, &got)
	mine := &q.mine[uint32(i)%q.front.Size()]
	p := q.front.Protocol()
	for k, b := range got[:p.SlotSize()] {
		field := k < 9 || k == 10 || k == 11 // id, operation, status
		if !field && b != 0 && b != mine[k] {
			q.violate(RuleLeak, i, "byte %d is %#x, the request had %#x", k, b, mine[k])
			return
		}
	}
}

// checkGrants checks that no page of the request is in use any more.
func (q *Queue) checkGrants(i blkif.Index, p *pending) {
	if q.inUse == nil {
		return
	}
	used := func(g xen.Gref) bool {
		in, err := q.inUse(g)
		if in || err != nil {
			q.violate(RuleGrantInUse, i, "gref %d of a %v (%v)", g, p.op, err)
		}
		return in
	}
	for _, g := range p.grefs {
		if used(g) {
			return
		}
	}
	for _, g := range p.indirect {
		if used(g.Gref) {
			return
		}
	}
}

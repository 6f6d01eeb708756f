// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

// batchPackets is the maximum of packets of a tx pass. They share the pass's system
// calls. The number also bounds the work for one vif before the others have their turn.
const batchPackets = 128

// holdOff is the number of responses from which on a pass requests no event yet, and leaves the
// queue another turn: a guest that sends so many packets at a time sends more by then, without
// an event. After fewer that turn would bring nothing, and with many vifs what it needs has
// left the caches.
const holdOff = batchPackets / 4

// creditStep is the credit in bytes that a pass takes from the rate limit at once: more
// than a batch of MTU-sized packets needs.
const creditStep = 1 << 20

// maxRateWait bounds the time after which a queue asks for credit again: the limit may
// have been raised meanwhile.
const maxRateWait = time.Second

// txPass moves one batch of packets from the guest to the TAP. It reports whether
// there may be more to do at once. An error is a breach of the ring's protocol; the
// packets before the breach have been written.
func (w *worker) txPass(q *Queue) (more bool, err error) {
	b := &w.tx
	lim := q.conn.cfg.Limiter
	var now time.Time
	if lim.limits() {
		now = w.time()
	}
	b.reset(lim.take(now, &q.rate.share, creditStep))
	err = q.parseTx(b, &w.tally)
	q.turnSegs = b.nPkts + b.segments
	armed := false
	if b.nPkts > 0 {
		w.fetch(q, b)
		armed = err == nil && w.armEarly(q, b)
		w.writeOut(q, b)
		w.exchange.queued = false
	}
	w.settleRate(q, b, now)
	w.answerTx(q, b.rsp[:b.nRsp])
	q.ahead.next(q)
	switch {
	case err != nil:
		return false, err
	case b.want != 0:
		return false, nil
	case armed:
		return false, nil
	case b.nRsp >= holdOff:
		return true, nil
	}
	if more, err = q.tx.Arm(); err != nil {
		return false, fmt.Errorf("tx ring: %w", err)
	}
	return more, nil
}

// settleRate gives the rate limit back what a batch did not use of its credit, and makes the
// queue wait if a packet found too little.
func (w *worker) settleRate(q *Queue, b *txBatch, now time.Time) {
	if b.credit == unlimited && !q.rate.share.waiting {
		return
	}
	waited := q.rate.share.waiting
	wait := q.conn.cfg.Limiter.settle(now, &q.rate.share, int64(b.credit-b.bytes)-b.repeated, b.want)
	if b.want != 0 {
		q.rate.until = w.time().Add(min(wait, maxRateWait))
	}
	if wait > 0 && !waited {
		w.tally[RateWaits]++
	}
}

// answerTx journals, writes and publishes the responses to the oldest consumed requests,
// and notifies the guest if it asked for that.
func (w *worker) answerTx(q *Queue, rsp []netif.TxResponse) {
	if len(rsp) == 0 {
		return
	}
	w.tally[TxSlots] += uint32(len(rsp))
	q.journal.recordTx(q.tx.RspProd(), rsp)
	if q.tx.Commit(rsp) {
		w.notify(q, q.txPort)
	}
}

// fetch copies the data of the batch's packets to the tx arena, except for large packets
// in static grants, which are written to the TAP from the guest's pages.
func (w *worker) fetch(q *Queue, b *txBatch) {
	var place frameAlloc
	static, mem := q.static, w.txMem.mem
	hits := uint32(0)
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		small := p.total <= smallPacket
		if small && p.n == 1 { // as most are
			s := &b.slot[p.first]
			at, size := place.packed(int(p.total)), int(p.total)
			p.at, p.linear = int32(at), int32(size)
			page := static.Lookup(s.gref).Page
			if page == nil {
				w.copySlot(q, b, s, at)
				continue
			}
			hits++
			fromPage(mem[at:], page, int(s.off), size)
			continue
		}
		slots := b.slots(p)
		if !small && static.Len() != 0 && w.useGrants(q, p, slots) {
			hits += uint32(len(slots))
			continue
		}
		at := 0
		if small {
			at = place.packed(int(p.total))
			p.at, p.linear = int32(at), int32(p.total)
		}
		for k := range slots {
			s := &slots[k]
			size := int(s.size)
			if size == 0 {
				continue // zero-length later slots are legal; their gref is not examined
			}
			page := static.Lookup(s.gref).Page
			switch {
			case page == nil && small:
				w.copySlot(q, b, s, at)
			case page == nil && k == 0:
				first := place.first(int(s.off), size)
				p.at, p.linear = int32(first), int32(size)
				w.copySlot(q, b, s, first)
			case page == nil:
				w.copySlot(q, b, s, place.later(int(s.off), size))
			case small:
				hits++
				s.at = int32(at)
				copy(w.txMem.mem[at:at+size], page[s.off:])
			default:
				hits++
				s.at, s.addr = inPlace, pageAddr(page)+uintptr(s.off)
				if k == 0 {
					p.at, p.linear = inPlace, 0
				}
			}
			at += size
		}
	}
	w.tally[StaticHits] += hits
	if b.nSegs == 0 {
		return
	}
	if okay, err := w.grantCopy(q, b.segs[:b.nSegs]); !okay {
		w.fetchFailed(b, err != nil)
	}
}

// useGrants gives the slots of a large packet the addresses of their static grants, and reports
// whether all of them have one. If not, what it wrote has no meaning.
func (w *worker) useGrants(q *Queue, p *txPacket, slots []txSlot) bool {
	static := q.static
	for k := range slots {
		s := &slots[k]
		page := static.Lookup(s.gref).Page
		if page == nil || s.size == 0 {
			return false
		}
		s.at, s.addr = inPlace, pageAddr(page)+uintptr(s.off)
	}
	p.at, p.linear = inPlace, 0
	return true
}

// copySlot adds a slot's data to the batch's grant copy. Its target at must not cross a
// page end.
func (w *worker) copySlot(q *Queue, b *txBatch, s *txSlot, at int) {
	if q.static.Len() != 0 {
		w.tally[StaticMisses]++
	}
	s.at, s.addr, s.copied = int32(at), w.txMem.addr(at), true
	w.txMem.fromGuest(&b.segs[b.nSegs], q.conn.cfg.Domid, s.gref, s.off, at, int(s.size))
	b.nSegs++
}

// fromPage copies size bytes at off of page to dst. For small sizes it copies 64 bytes,
// which is faster: the bytes behind them in the arena are not in use yet.
func fromPage(dst []byte, page *staticgrant.Page, off, size int) {
	if size <= 64 && off <= netif.PageSize-64 && len(dst) >= 64 {
		*(*[64]byte)(dst) = *(*[64]byte)(page[off:])
		return
	}
	copy(dst[:size], page[off:])
}

// allOkay reports whether all segments were copied.
func allOkay(segs []gntdev.Segment) bool {
	for i := range segs {
		if segs[i].Status() != gntdev.StatusOkay {
			return false
		}
	}
	return true
}

// fetchFailed answers slots that could not be copied with an error, and drops their
// packets. With all the call itself failed, and no segment's status is valid.
func (w *worker) fetchFailed(b *txBatch, all bool) {
	seg := 0
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		for k, s := range b.slots(p) {
			if !s.copied {
				continue
			}
			if all || b.segs[seg].Status() != gntdev.StatusOkay {
				b.rsp[p.response(k)].Status = netif.StatusError
				p.drop = DropTxGrant
			}
			seg++
		}
		if p.drop != notDropped {
			w.tally[p.drop]++
		}
	}
}

// writeOut writes the batch's packets to the TAP.
func (w *worker) writeOut(q *Queue, b *txBatch) {
	vnet := q.vnetLen
	mem := w.txMem.mem
	out := &w.out
	w.pullAt = txArenaBytes
	out.begin(q, b, w.coalesce(q, b))
	next := 0 // free iovec
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		if p.drop != notDropped {
			continue
		}
		if p.more != 0 {
			next += w.writeMerged(q, b, i, next)
			continue
		}
		if p.plain() && uint32(p.linear) == p.total && out.direct() {
			// The simplest case, which most are without io_uring.
			at := int(p.at) - vnet
			if vnet != 0 {
				*(*[tap.VnetHdrLen]byte)(mem[at:]) = [tap.VnetHdrLen]byte{}
			}
			out.call(i, w.txMem.addr(at), vnet+int(p.total))
			continue
		}
		if p.at == inPlace {
			w.pullUp(q, b, p)
		}
		switch plain := p.plain(); {
		case plain && vnet != 0:
			*(*[tap.VnetHdrLen]byte)(mem[int(p.at)-tap.VnetHdrLen:]) = [tap.VnetHdrLen]byte{}
		case plain:
		case vnet == 0:
			w.writeFinished(q, b, p)
			continue
		default:
			hdr, ok := w.planTx(q, b, p)
			if !ok {
				w.dropTx(b, p)
				continue
			}
			hdr.Encode(mem[int(p.at)-tap.VnetHdrLen : p.at])
		}
		at := int(p.at) - vnet
		if uint32(p.linear) == p.total {
			out.write(i, at, vnet+int(p.total))
			continue
		}
		n := w.pieces(b, p, next, vnet)
		if n == 1 && at+vnet+int(p.total) <= len(mem) {
			out.write(i, at, vnet+int(p.total))
			continue
		}
		out.writev(i, next, n)
		next += n
	}
	out.flush(b)
}

// planTx plans the vnet header of a packet that leaves a checksum or segmentation to the
// host, and reports whether the offload is possible.
func (w *worker) planTx(q *Queue, b *txBatch, p *txPacket) (hdr tap.VnetHdr, ok bool) {
	if uint32(p.linear) < min(p.total, offload.MaxHeader) {
		w.pullUp(q, b, p)
	}
	m := p.meta()
	head := w.txMem.mem[p.at : p.at+p.linear]
	h, err := offload.Parse(head, int(p.total))
	if err != nil {
		return hdr, false
	}
	plan, err := offload.PlanTx(m, h, int(p.total))
	if err != nil {
		return hdr, false
	}
	if plan.WritePseudo {
		offload.WritePseudo(head, h, int(p.total))
	}
	if m.GSOType != netif.GSONone {
		w.tally[TxGSO]++
		w.countSegments(b, p, &plan.Header)
	}
	return plan.Header, true
}

// countSegments counts the segments of a packet, and the header bytes that all but the
// first of them repeat: the rate limit is for bytes on the wire.
func (w *worker) countSegments(b *txBatch, p *txPacket, v *tap.VnetHdr) {
	if v.GSOType == tap.VnetGSONone {
		return
	}
	payload, size := int(p.total)-int(v.HdrLen), int(v.GSOSize)
	n := (payload + size - 1) / size
	w.tally[HostSegments] += uint32(n)
	b.repeated += int64(n-1) * int64(v.HdrLen)
}

// dropTx drops a packet whose offload is not possible. As with xen-netback, a packet
// that only has a partial checksum of another protocol is answered with okay.
func (w *worker) dropTx(b *txBatch, p *txPacket) {
	p.drop = DropTxCsum
	if p.gso.Type != netif.GSONone {
		p.drop = DropTxGSO
		for k := range int(p.n) {
			b.rsp[p.response(k)].Status = netif.StatusError
		}
	}
	w.tally[p.drop]++
}

// pullUp copies the first bytes of a scattered packet into one piece and uses the copy in
// their place. The first slot may hold less than the headers, or be in a page that the
// guest can still write.
func (w *worker) pullUp(q *Queue, b *txBatch, p *txPacket) {
	at := w.pullAt + headroom
	w.pullAt += pullStride
	p.linear = int32(w.collect(w.txMem.mem[at:at+offload.MaxHeader], q, b, p))
	p.at = int32(at)
}

// collect copies a scattered packet to dst, as far as there is room, and returns the
// number of bytes.
func (w *worker) collect(dst []byte, q *Queue, b *txBatch, p *txPacket) (n int) {
	for _, s := range b.slots(p) {
		switch {
		case n == len(dst):
			return n
		case s.size == 0:
		case s.at != inPlace:
			n += copy(dst[n:], w.txMem.mem[s.at:s.at+int32(s.size)])
		default:
			g := q.static.Lookup(s.gref)
			n += copy(dst[n:], g.Page[s.off:int(s.off)+int(s.size)])
		}
	}
	return n
}

// pieces lists a scattered packet's pieces in w.uring.iov from first on, and returns their
// number. The first one begins front bytes before the packet: with its vnet header, or, if
// front is less than 0, behind its headers. Adjacent slots, as static grants often are,
// become one piece, which is cheaper for the kernel.
func (w *worker) pieces(b *txBatch, p *txPacket, first, front int) (n int) {
	addr, size := w.txMem.addr(int(p.at)-front), uintptr(front+int(p.linear))
	slots := b.slots(p)
	skip := uintptr(p.linear) // bytes of the slots that the first piece has already
	for len(slots) > 0 && uintptr(slots[0].size) <= skip {
		skip -= uintptr(slots[0].size)
		slots = slots[1:]
	}
	for k := range slots {
		from, more := slots[k].addr+skip, uintptr(slots[k].size)-skip
		skip = 0
		switch {
		case from == addr+size:
			size += more
		case more != 0:
			w.uring.iov.Set(first+n, addr, uint32(size))
			n++
			addr, size = from, more
		}
	}
	w.uring.iov.Set(first+n, addr, uint32(size))
	return n + 1
}

// writeFinished completes or segments a packet and writes it to a TAP without vnet
// header, which can express neither a partial checksum nor a segment size.
func (w *worker) writeFinished(q *Queue, b *txBatch, p *txPacket) {
	w.out.flush(b)
	m := p.meta()
	frame := w.txMem.mem[p.at : p.at+p.linear]
	if uint32(p.linear) < p.total {
		frame = w.gather(q, b, p)
	}
	h, err := offload.Parse(frame, len(frame))
	var plan offload.TxPlan
	if err == nil {
		plan, err = offload.PlanTx(m, h, len(frame))
	}
	if err != nil {
		w.dropTx(b, p)
		return
	}
	if plan.WritePseudo {
		offload.WritePseudo(frame, h, len(frame))
	}
	if m.GSOType != netif.GSONone {
		w.tally[TxGSO]++
		w.countSegments(b, p, &plan.Header)
	}
	if plan.Header.GSOType != tap.VnetGSONone {
		w.writeSegments(b, p, frame, int(plan.Header.GSOSize))
		return
	}
	if err := offload.Complete(h.L4, plan.Header.CsumOffset, frame); err != nil {
		w.dropTx(b, p)
		return
	}
	w.tally[CsumCompleted]++
	w.out.done(p, w.out.put(frame))
}

// writeSegments cuts a packet into segments and writes them. If one is refused the rest
// is dropped: the receiver cannot use it.
func (w *worker) writeSegments(b *txBatch, p *txPacket, frame []byte, mss int) {
	s := &w.plain.segmenter
	if err := s.Init(frame, mss); err != nil {
		w.dropTx(b, p)
		return
	}
	w.tally[Segmented]++
	for range s.Left() {
		n, err := s.Next(w.plain.segment)
		if err != nil {
			w.dropTx(b, p)
			return
		}
		if e := w.out.put(w.plain.segment[:n]); e != 0 {
			w.out.done(p, e)
			return
		}
	}
	w.out.done(p, 0)
}

// gather copies a scattered packet into one piece.
func (w *worker) gather(q *Queue, b *txBatch, p *txPacket) []byte {
	return w.plain.linear[:w.collect(w.plain.linear[:p.total], q, b, p)]
}

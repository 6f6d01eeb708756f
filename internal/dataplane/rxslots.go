// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// slotsOf returns the number of data slots for n bytes.
func slotsOf(n int) uint32 { return uint32(n+netif.PageSize-1) / netif.PageSize }

// slotsForHead returns the number of slots that the head of the backlog needs. The last
// attempt did not fit.
func (q *Queue) slotsForHead() uint32 {
	p := q.backlog.head()
	if q.backlog.cutting {
		return q.slotsForSegment(q.backlog.segmenter.MaxLen())
	}
	_, hashed := hashOf(q.hash, q.backlog.frame(p))
	return q.slotsOf(p.n) + q.extraSlots(&p.plan, hashed)
}

// slotsForSegment returns the number of slots that a segment of n bytes may need.
func (q *Queue) slotsForSegment(n int) uint32 {
	need := q.slotsOf(n) + q.xdpExtra
	if q.hash != nil {
		need++
	}
	return need
}

// place plans one packet, the n bytes at at of m, into the slots at hand: data slot 0,
// then the extras, then the other data slots. If they do not suffice it reports false
// and consumes none. The packet stays where it is until deliver.
func (w *worker) place(q *Queue, b *rxBatch, m *arenaMem, at, n int, plan *offload.RxPlan) bool {
	hash, hashed := hashOf(q.hash, m.mem[at:at+n])
	need := q.slotsOf(n) + q.extraSlots(plan, hashed)
	if need > b.free {
		return false
	}
	i := q.rx.ReqCons()
	p := rxSlots{b: b, left: n, xdpRoom: q.xdpRoom}
	for p.left > 0 {
		r := q.rx.Request(i)
		i++
		first := p.left == n
		part := p.data(r, plan, first)
		w.fill(q, b, r, p.offset, m, at, part)
		at += part
		if !first {
			continue
		}
		i = i.Add(p.extras(need-q.slotsOf(n), plan, hash, hashed))
		if q.static.Len() == 0 {
			pages := b.copyPages(q, &p, i, m, at)
			i = i.Add(pages)
			at += int(pages) * netif.PageSize
		}
	}
	w.countExtras(q, n, plan, hashed)
	b.consume(q, n, need)
	return true
}

// fill writes the n bytes at at of the arena m to offset in the page of r: at once if that
// is a static grant, else with the batch's grant copy. The slot of r is the last one
// planned.
func (w *worker) fill(q *Queue, b *rxBatch, r netif.RxRequest, offset uint16, m *arenaMem, at, n int) {
	switch g := q.static.Lookup(r.Gref); {
	case g.Page == nil:
		if q.static.Len() != 0 {
			w.tally[StaticMisses]++
		}
		b.copyLater(q.conn.cfg.Domid, r.Gref, offset, m, at, n)
	case g.ReadOnly:
		failSlot(&b.slots[b.nSlots-1])
		w.rxFailed(b, b.packets, DropRxReadOnly)
	default:
		w.tally[StaticHits]++
		copy(g.Page[offset:], m.mem[at:at+n])
	}
}

// copyLater adds a copy of the n bytes at at of m to offset in a page of the guest to the
// batch's grant copy. It is for the last slot planned.
func (b *rxBatch) copyLater(domid xen.Domid, ref xen.Gref, offset uint16, m *arenaMem, at, n int) {
	i := b.nSegs % netif.RxRingSize
	m.toGuest(&b.segs[i], domid, ref, offset, at, n)
	b.slotOf[i], b.pktOf[i] = uint16(b.nSlots-1), uint16(b.packets)
	b.nSegs++
}

// copyPages plans the data slots of a packet that take whole pages, except for its first
// and last one, for a guest without static grants. The first of them is request i, and its
// data is at at of m. It returns the number of slots.
func (b *rxBatch) copyPages(q *Queue, p *rxSlots, i netif.Index, m *arenaMem, at int) (slots uint32) {
	if p.left <= netif.PageSize {
		return 0
	}
	slots = uint32(p.left-1) / netif.PageSize
	domid, pkt := q.conn.cfg.Domid, uint16(b.packets)
	slot, seg := b.nSlots, b.nSegs
	for k := range slots {
		r := q.rx.Request(i.Add(k))
		b.slots[slot%netif.RxRingSize] = netif.RxResponse{ID: r.ID, Flags: netif.RxMoreData, Status: netif.PageSize}.Slot()
		n := seg % netif.RxRingSize
		s := &b.segs[n]
		if own := m.own.ref(at, netif.PageSize); own != 0 {
			s.ToGuestFromOwn(domid, r.Gref, 0, own, 0, netif.PageSize)
		} else {
			s.ToGuest(domid, r.Gref, 0, m.mem[at:at+netif.PageSize])
		}
		b.slotOf[n], b.pktOf[n] = uint16(slot), pkt
		slot++
		seg++
		at += netif.PageSize
	}
	b.nSlots, b.nSegs = slot, seg
	p.left -= int(slots) * netif.PageSize
	return slots
}

// countExtras counts the extras of a packet of n bytes.
func (w *worker) countExtras(q *Queue, n int, plan *offload.RxPlan, hashed bool) {
	if plan.GSOType != netif.GSONone {
		w.tally[RxGSO]++
	}
	if hashed {
		w.tally[RxHash]++
	}
	if q.xdpExtra != 0 {
		w.tally[RxXDP]++
		if q.slotsOf(n) > 1 {
			w.tally[RxXDPSplit]++
		}
	}
	if n > smallPacket {
		q.reader.hint(q.extraSlots(plan, hashed))
	}
}

// consume takes the requests of a planned packet of n bytes from the ring.
func (b *rxBatch) consume(q *Queue, n int, need uint32) {
	q.rx.Consume(need)
	b.free -= need
	p := &b.pkts[b.packets]
	if p.n = uint32(n); !p.failed {
		b.bytes += p.n
	}
	b.packets++
	b.pkts[b.packets%netif.RxRingSize].failed = false
}

// rxSlots fills the slots of one packet.
type rxSlots struct {
	b       *rxBatch
	left    int // bytes that have no slot yet
	xdpRoom int // bytes before the data in the first slot's page
	offset  uint16
	flags   netif.RxFlags
}

// data fills the packet's next data slot and returns the number of bytes it takes.
func (p *rxSlots) data(r netif.RxRequest, plan *offload.RxPlan, first bool) int {
	p.flags, p.offset = 0, 0
	if first {
		p.offset = uint16(p.xdpRoom)
		if plan.CsumBlank {
			p.flags |= netif.RxCsumBlank
		}
		if plan.DataValidated {
			p.flags |= netif.RxDataValidated
		}
	}
	part := min(p.left, netif.PageSize-int(p.offset))
	if p.left -= part; p.left > 0 {
		p.flags |= netif.RxMoreData
	}
	p.b.slots[p.b.nSlots] = netif.RxResponse{ID: r.ID, Offset: p.offset, Flags: p.flags, Status: netif.Status(part)}.Slot()
	p.b.nSlots++
	return part
}

// extras fills the slots behind the first with the packet's n extras, in the order of
// their types, and returns n.
func (p *rxSlots) extras(n uint32, plan *offload.RxPlan, hash netif.HashInfo, hashed bool) uint32 {
	if n == 0 {
		return 0
	}
	b := p.b
	first := &b.slots[b.nSlots-1]
	r := first.Response()
	r.Flags |= netif.RxExtraInfo
	*first = r.Slot()
	left := n
	if plan.GSOType != netif.GSONone {
		left = p.extra(netif.NewGSO(netif.GSOInfo{Size: plan.GSOSize, Type: plan.GSOType}), left)
	}
	if hashed {
		left = p.extra(netif.NewHash(hash), left)
	}
	if p.xdpRoom != 0 {
		p.extra(netif.NewXDP(uint16(p.xdpRoom)), left)
	}
	return n
}

// extra fills a slot with the first of left extras and returns the number of the
// others.
func (p *rxSlots) extra(e netif.ExtraInfo, left uint32) uint32 {
	if left--; left > 0 {
		e.Flags |= netif.ExtraMore
	}
	p.b.slots[p.b.nSlots] = e.Slot()
	p.b.nSlots++
	return left
}

// deliver copies the batch to the guest's pages and publishes its slots.
func (w *worker) deliver(q *Queue, b *rxBatch) {
	if b.nSlots == 0 {
		return
	}
	if b.nSegs > 0 {
		if okay, err := w.grantCopy(q, b.segs[:b.nSegs]); !okay {
			w.deliverFailed(b, err != nil)
		}
	}
	w.tally[RxPackets] += b.packets - b.failed
	w.tally[RxBytes] += b.bytes
	w.answerRx(q, b.slots[:b.nSlots])
}

// answerRx journals, writes and publishes slots, which replace the oldest consumed
// requests, and notifies the guest if it asked for that.
func (w *worker) answerRx(q *Queue, slots []netif.RxSlot) {
	w.tally[RxSlots] += uint32(len(slots))
	q.journal.recordRx(q.rx.RspProd(), slots)
	if q.rx.Commit(slots) {
		w.notify(q, q.rxPort)
	}
}

// deliverFailed marks the slots whose page could not be written, or all slots if the whole
// call failed (all). The frontend drops their packets.
func (w *worker) deliverFailed(b *rxBatch, all bool) {
	segs := b.segs[:b.nSegs]
	for i := range segs {
		if !all && segs[i].Status() == gntdev.StatusOkay {
			continue
		}
		failSlot(&b.slots[b.slotOf[i]])
		w.rxFailed(b, uint32(b.pktOf[i]), DropRxGrant)
	}
}

// failSlot marks a slot as not written.
func failSlot(s *netif.RxSlot) {
	r := s.Response()
	r.Status = netif.StatusError
	*s = r.Slot()
}

// rxFailed counts a packet of the batch as dropped, once, because a page of it could
// not be written.
func (w *worker) rxFailed(b *rxBatch, packet uint32, reason Counter) {
	p := &b.pkts[packet]
	if p.failed {
		return
	}
	p.failed = true
	b.failed++
	w.tally[reason]++
	if packet < b.packets {
		b.bytes -= p.n
	}
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// rxReads is how many packets are read from a TAP queue with one call at most.
// io_uring gains little from more, and a read that finds nothing costs.
const rxReads = 16

// rxSubs is how many times a pass reads, as long as the packets are small. One
// grant copy, one commit and one event then serve all of them.
const rxSubs = 4

// maxFrame is the largest frame a TAP hands out: an IP packet of 64 KiB with an
// Ethernet header and two VLAN tags.
const maxFrame = 65535 + 14 + 8

// maxFramePages is what the largest frame takes.
const maxFramePages = (maxFrame + netif.PageSize - 1) / netif.PageSize

// rxStride is the room of one read: a page whose end takes the vnet header, and
// the frame in whole pages after it. So the frame's pages are copied one by one
// into the guest's, and no copy crosses a page end. Further reads of the same
// pass go a page further on, behind a packet that left the rest of its room, and
// the end of its own page, alone.
const rxStride = (maxFramePages + rxSubs) * netif.PageSize

const rxArenaBytes = rxReads * rxStride

// rxFrameAt is where read i of part sub puts its frame.
func rxFrameAt(sub, i int) int { return i*rxStride + (1+sub)*netif.PageSize }

// staleFrames is how many packets are dropped that waited in the TAP behind one
// that was dropped for its age: more than a TAP keeps, but not all that a flood
// may bring.
const staleFrames = 1024

// rxBatch is what one rx pass is about to hand to the guest.
type rxBatch struct {
	segs   [netif.RxRingSize]gntdev.Segment
	slotOf [netif.RxRingSize]uint16 // segs[i] fills slots[slotOf[i]]
	pktOf  [netif.RxRingSize]uint16 // and belongs to this packet of the batch
	slots  [netif.RxRingSize]netif.RxSlot
	pkts   [netif.RxRingSize]rxPacket
	frames [rxReads]rxFrame // of the last read
	into   rxInto           // of the last read straight into pages

	nSegs, nSlots int
	free          uint32 // requests not yet taken
	packets       uint32
	failed        uint32 // of the packets
	bytes         uint32 // of those that did not fail
}

// rxPacket is a packet of the batch.
type rxPacket struct {
	n      uint32 // octets
	failed bool   // a page of it could not be written
}

// rxFrame is what was read: a frame at at of the rx arena, and the vnet header
// before it, n octets together.
type rxFrame struct{ at, n int }

// rxPass moves one batch of packets from the TAP to the guest. It reports
// whether there may be more to do at once. An error is a breach of the ring's
// protocol.
func (w *worker) rxPass(q *Queue) (more bool, err error) {
	b := &w.rx
	b.nSegs, b.nSlots, b.packets, b.failed, b.bytes = 0, 0, 0, 0, 0
	b.pkts[0].failed = false
	if b.free, err = q.rx.Available(); err != nil {
		return false, fmt.Errorf("rx ring: %w", err)
	}
	if q.hold.empty() {
		// What has to be held gets its own turn.
		more = w.rxFromTap(q, b) || !q.hold.empty()
	} else {
		more = w.rxFromHold(q, b)
	}
	w.deliver(q, b)
	if b.nSlots > 0 {
		q.unblocked()
	}
	if q.moving != nil && w.settle(q) {
		more = true
	}
	if more {
		return true, nil
	}
	if !q.hold.empty() {
		q.blockedNeed = q.slotsForHead()
	} else if q.blockedSince.IsZero() {
		return false, nil
	}
	if more, err = w.rxBlocked(q); err != nil {
		return false, fmt.Errorf("rx ring: %w", err)
	}
	return more, nil
}

// rxBlocked is called when packets wait, or have waited in vain, for more slots
// than there are. It asks for an event once they are there.
func (w *worker) rxBlocked(q *Queue) (more bool, err error) {
	cfg := &q.conn.cfg
	there, err := q.rx.ArmFor(q.blockedNeed)
	if err != nil {
		return false, err
	}
	if there {
		q.unblocked()
		return !q.hold.empty(), nil
	}
	if q.blockedSince.IsZero() {
		q.blockedSince = w.time()
	}
	if q.canStall() && w.time().Sub(q.blockedSince) >= cfg.Stall {
		q.stalled = true
		cfg.Notice(Notice{Kind: Stalled, Queue: q.index})
	}
	dropped := false
	for !q.hold.empty() && w.time().Sub(q.hold.head().since) >= q.drainAfter {
		q.hold.pop()
		w.tally[DropRxStalled]++
		dropped = true
	}
	if q.hold.empty() {
		if dropped {
			q.stale = staleFrames
			q.tapReady = !q.tapGone
			return true, nil
		}
		return false, nil
	}
	if !cfg.RxNotify {
		q.pollAt = w.time().Add(noNotifyPoll)
	}
	// A new head may need fewer slots.
	return dropped, nil
}

// rxFromTap reads packets and plans them into b. Those that the slots at hand
// cannot take, and all that follow, go into the hold.
func (w *worker) rxFromTap(q *Queue, b *rxBatch) (more bool) {
	if b.free >= q.blockedNeed {
		q.stale = 0
	}
	total := 0
	if q.moving != nil && q.moving.waits() {
		return false
	}
	for sub := 0; sub < rxSubs && q.tapReady; sub++ {
		// No more than there are slots, and no more than can be placed or
		// held if all of them turn out to be of the largest size.
		if q.large && w.rxLarge(q, b) {
			break
		}
		want := min(q.rxWant, int(b.free), int(b.free)/q.slotsPerRead+holdFrames)
		want = max(want, 1, min(q.stale, rxReads))
		got := w.readTap(q, b, sub, want)
		total += got
		small := true
		for _, f := range b.frames[:got] {
			w.takeFrame(q, b, f)
			small = small && f.n <= smallPacket
			q.large = f.n > smallPacket
		}
		// The next backlog may well be like this one.
		q.rxWant = min(max(total, 1), rxReads)
		if got == want {
			q.rxWant = min(2*q.rxWant, rxReads)
		}
		// After a single packet, epoll tells as cheaply whether there is
		// another as a read would that finds none.
		q.tapReady = got == want && want > 1
		if q.moving != nil {
			q.tapReady = q.moving.sawTap(got, want)
		}
		if got < want {
			q.stale = 0
		}
		if !q.hold.empty() {
			q.rxWant = 1 // segments go through the hold, whatever slots there are
			break
		}
		if !small || b.free == 0 {
			break
		}
	}
	return q.tapReady
}

// takeFrame plans a packet that was read.
func (w *worker) takeFrame(q *Queue, b *rxBatch, f rxFrame) {
	at, n := f.at, f.n-q.vnetLen
	if n < minLinear || n > maxFrame {
		w.tally[DropRxSize]++
		return
	}
	frame := w.rxMem.mem[at : at+n]
	if !q.conn.cfg.Mcast.passes([6]byte(frame)) {
		w.tally[DropRxMcast]++
		return
	}
	var plan offload.RxPlan
	if q.vnetLen != 0 {
		var hdr tap.VnetHdr
		hdr.Decode(w.rxMem.mem[at-q.vnetLen : at])
		v := offload.VnetHeader(hdr)
		if !v.NeedsParse() {
			plan.DataValidated = v.Flags&offload.VnetDataValid != 0
		} else if !w.planFrame(q, v, frame, &plan) {
			w.tally[DropRxCsum]++
			return
		}
	}
	if n > q.maxRx && plan.Action != offload.ActSegment {
		w.tally[DropRxSize]++
		return
	}
	if (q.steer != nil || q.moving != nil) && w.redirect(q, frame, &plan) {
		return
	}
	if plan.Action != offload.ActSegment && q.hold.empty() && w.place(q, b, &w.rxMem, at, n, &plan) {
		return
	}
	if q.stale > 0 {
		q.stale--
		w.tally[DropRxStalled]++
		return
	}
	if !q.hold.push(frame, &plan, w.time()) {
		w.tally[DropRxBacklog]++
		return
	}
	if plan.Action != offload.ActSegment {
		w.tally[RxParked]++
	}
}

// handOver gives a packet to another queue of the vif, which has the same worker.
// It waits there as if for slots, and goes out in that queue's turn.
func (w *worker) handOver(to *Queue, frame []byte, plan *offload.RxPlan) {
	w.tally[RxSteered]++
	if !to.attached || to.breached || !to.hold.push(frame, plan, w.now) {
		w.tally[DropRxBacklog]++
		return
	}
	w.schedule(to)
}

// planFrame finds out what has to be done to a frame that leaves something to
// the receiver, and does it unless it is segmentation.
func (w *worker) planFrame(q *Queue, v offload.VnetHeader, frame []byte, plan *offload.RxPlan) bool {
	h, _ := offload.Parse(frame, len(frame))
	p, err := offload.PlanRx(v, h, len(frame), q.guest)
	if err != nil {
		return false
	}
	if p.WritePseudo {
		offload.WritePseudo(frame, h, len(frame))
	}
	switch p.Action {
	case offload.ActComplete:
		err = offload.Complete(p.CsumStart, p.CsumOffset, frame)
		w.tally[CsumCompleted]++
	case offload.ActCompleteSCTP:
		err = offload.CompleteSCTP(p.CsumStart, frame)
		w.tally[CsumCompleted]++
	}
	*plan = p
	return err == nil
}

// rxFromHold plans as many of the packets held as the slots at hand can take.
// Segments are made in the rx arena, which nothing else uses meanwhile.
func (w *worker) rxFromHold(q *Queue, b *rxBatch) (more bool) {
	h := &q.hold
	made := 0
	for !h.empty() {
		p := h.head()
		if p.plan.Action != offload.ActSegment {
			if !w.place(q, b, &h.mem, p.at, p.n, &p.plan) {
				return false
			}
			h.pop()
			continue
		}
		s := &h.segmenter
		if !h.begun {
			if err := s.Init(h.frame(p), int(p.plan.GSOSize)); err != nil || s.MaxLen() > q.maxRx {
				w.tally[DropRxCsum]++
				h.pop()
				continue
			}
			h.begun = true
			w.tally[Segmented]++
		}
		for s.Left() > 0 {
			if made == rxReads {
				return true
			}
			if b.free < q.slotsForSegment(s.MaxLen()) {
				return false
			}
			at := rxFrameAt(0, made)
			made++
			n, err := s.Next(w.rxMem.mem[at : at+maxFrame])
			if err != nil {
				break
			}
			w.place(q, b, &w.rxMem, at, n, &offload.RxPlan{DataValidated: p.plan.DataValidated})
		}
		h.pop()
	}
	return true
}

// slotsOf is the number of data slots for n octets.
func slotsOf(n int) uint32 { return uint32(n+netif.PageSize-1) / netif.PageSize }

// slotsForHead is the number of slots that the packet at the head of the hold,
// which did not fit just now, needs to go on.
func (q *Queue) slotsForHead() uint32 {
	p := q.hold.head()
	if q.hold.begun {
		return q.slotsForSegment(q.hold.segmenter.MaxLen())
	}
	n := slotsOf(p.n)
	if p.plan.GSOType != offload.GSONone {
		n++
	}
	if _, hashed := q.hash.of(q.hold.frame(p)); hashed {
		n++
	}
	return n
}

// slotsForSegment is the number of slots that a segment of n octets may need.
func (q *Queue) slotsForSegment(n int) uint32 {
	if q.hash != nil {
		return slotsOf(n) + 1
	}
	return slotsOf(n)
}

// place plans one packet, the n octets at at of m, into the slots at hand: data
// slot 0, then the extras, then the other data slots. It reports whether they
// suffice; if not it takes none. What goes to a static grant is there when it
// returns; the rest stays where it is until deliver.
func (w *worker) place(q *Queue, b *rxBatch, m *arenaMem, at, n int, plan *offload.RxPlan) bool {
	hash, hashed := q.hash.of(m.mem[at : at+n])
	need := slotsOf(n) + extraSlots(plan, hashed)
	if need > b.free {
		return false
	}
	i := q.rx.ReqCons()
	p := rxSlots{b: b, left: n}
	for p.left > 0 {
		r := q.rx.Request(i)
		i++
		first := p.left == n
		part := p.data(r, plan, first)
		g := q.static.Lookup(r.Gref)
		switch {
		case g.Page == nil:
			if q.static.Len() != 0 {
				w.tally[StaticMisses]++
			}
			b.segs[b.nSegs].ToGuest(q.conn.cfg.Domid, r.Gref, 0, m.addr(at), uint16(part))
			b.slotOf[b.nSegs] = uint16(b.nSlots - 1)
			b.pktOf[b.nSegs] = uint16(b.packets)
			b.nSegs++
		case g.ReadOnly:
			b.slots[b.nSlots-1] = netif.RxResponse{ID: r.ID, Flags: p.flags, Status: netif.StatusError}.Slot()
			w.rxFailed(b, b.packets, DropRxReadOnly)
		default:
			w.tally[StaticHits]++
			copy(g.Page[:part], m.mem[at:at+part])
		}
		at += netif.PageSize
		if first {
			i = i.Add(p.extras(plan, hash, hashed))
		}
	}
	w.placed(q, b, n, need, plan, hashed)
	return true
}

// placed takes the slots of a packet that was planned.
func (w *worker) placed(q *Queue, b *rxBatch, n int, need uint32, plan *offload.RxPlan, hashed bool) {
	if plan.GSOType != offload.GSONone {
		w.tally[RxGSO]++
	}
	if hashed {
		w.tally[RxHash]++
	}
	if n > smallPacket {
		q.largeExtras = need - slotsOf(n)
	}
	q.rx.Consume(need)
	b.free -= need
	p := &b.pkts[b.packets]
	if p.n = uint32(n); !p.failed {
		b.bytes += p.n
	}
	b.packets++
	b.pkts[b.packets%netif.RxRingSize].failed = false
}

// extraSlots is how many slots a packet's extras take.
func extraSlots(plan *offload.RxPlan, hashed bool) (n uint32) {
	if plan.GSOType != offload.GSONone {
		n++
	}
	if hashed {
		n++
	}
	return n
}

// rxSlots fills the slots of one packet.
type rxSlots struct {
	b     *rxBatch
	left  int // octets that have no slot yet
	flags netif.RxFlags
}

// data fills the packet's next data slot and returns how many octets it takes.
func (p *rxSlots) data(r netif.RxRequest, plan *offload.RxPlan, first bool) int {
	p.flags = 0
	if first {
		if plan.CsumBlank {
			p.flags |= netif.RxCsumBlank
		}
		if plan.DataValidated {
			p.flags |= netif.RxDataValidated
		}
	}
	part := min(p.left, netif.PageSize)
	if p.left -= part; p.left > 0 {
		p.flags |= netif.RxMoreData
	}
	p.b.slots[p.b.nSlots] = netif.RxResponse{ID: r.ID, Flags: p.flags, Status: netif.Status(part)}.Slot()
	p.b.nSlots++
	return part
}

// extras fills the slots behind the first with what the packet has of extras,
// in the order of their types, and returns how many that are.
func (p *rxSlots) extras(plan *offload.RxPlan, hash netif.HashInfo, hashed bool) (n uint32) {
	if n = extraSlots(plan, hashed); n == 0 {
		return 0
	}
	b := p.b
	first := &b.slots[b.nSlots-1]
	r := first.Response()
	r.Flags |= netif.RxExtraInfo
	*first = r.Slot()
	if plan.GSOType != offload.GSONone {
		e := netif.NewGSO(netif.GSOInfo{Size: plan.GSOSize, Type: netif.GSOType(plan.GSOType)})
		if hashed {
			e.Flags |= netif.ExtraMore
		}
		b.slots[b.nSlots] = e.Slot()
		b.nSlots++
	}
	if hashed {
		b.slots[b.nSlots] = netif.NewHash(hash).Slot()
		b.nSlots++
	}
	return n
}

// rxFailed counts a packet of the batch, of which a page could not be written,
// once.
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

// deliver copies the batch into the guest's pages and publishes its slots.
func (w *worker) deliver(q *Queue, b *rxBatch) {
	if b.nSlots == 0 {
		return
	}
	if b.nSegs > 0 {
		segs := b.segs[:b.nSegs]
		w.tally[GrantCalls]++
		w.tally[Syscalls]++
		w.tally[GrantOps] += uint32(b.nSegs)
		if err := q.grants.Copy(segs); err != nil || !allOkay(segs) {
			w.deliverFailed(b, err != nil)
		}
	}
	w.tally[RxPackets] += b.packets - b.failed
	w.tally[RxBytes] += b.bytes
	w.answerRx(q, b.slots[:b.nSlots])
}

// answerRx journals, writes and publishes the slots that take the place of the
// oldest requests consumed, and notifies the guest if it asked for that.
func (w *worker) answerRx(q *Queue, slots []netif.RxSlot) {
	w.tally[RxSlots] += uint32(len(slots))
	q.journal.recordRx(q.rx.RspProd(), slots)
	if q.rx.Commit(slots) {
		w.notify(q, q.rxPort)
	}
}

// deliverFailed marks the slots whose page could not be written. The frontend
// drops the packet they belong to.
func (w *worker) deliverFailed(b *rxBatch, all bool) {
	segs := b.segs[:b.nSegs]
	for i := range segs {
		if !all && segs[i].Status() == gntdev.StatusOkay {
			continue
		}
		s := &b.slots[b.slotOf[i]]
		r := s.Response()
		r.Status = netif.StatusError
		*s = r.Slot()
		w.rxFailed(b, uint32(b.pktOf[i]), DropRxGrant)
	}
}

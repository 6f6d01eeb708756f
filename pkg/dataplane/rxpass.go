// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// rxReads is how many packets are read from a TAP queue with one call at most.
// A read that finds the queue empty still costs, so more does not pay.
const rxReads = 16

// maxFrame is the largest frame a TAP hands out: an IP packet of 64 KiB with an
// Ethernet header and two VLAN tags.
const maxFrame = 65535 + 14 + 8

// rxStride is the room of one read: a page whose end takes the vnet header, and
// the frame in whole pages after it. So the frame's pages are copied one by one
// into the guest's, and no copy crosses a page end.
const rxStride = netif.PageSize + (maxFrame+netif.PageSize-1)/netif.PageSize*netif.PageSize

const rxArenaBytes = rxReads * rxStride

// rxBatch is what one rx pass is about to hand to the guest.
type rxBatch struct {
	segs   [netif.RxRingSize]gntdev.Segment
	slotOf [netif.RxRingSize]uint16 // segs[i] fills slots[slotOf[i]]
	pktOf  [netif.RxRingSize]uint16 // and belongs to this packet of the batch
	slots  [netif.RxRingSize]netif.RxSlot
	frames [rxReads]rxFrame

	nSegs, nSlots int
	free          uint32 // requests not yet taken
	packets       uint32
	failed        uint32 // of the packets
	bytes         uint32
}

// rxFrame is one result of a read: n octets, vnet header included, or an errno.
type rxFrame struct{ n int }

func rxFrameAt(i int) int { return i*rxStride + netif.PageSize }

// rxPass moves one batch of packets from the TAP to the guest. It reports
// whether there may be more to do at once. An error is a breach of the ring's
// protocol.
func (w *worker) rxPass(q *Queue) (more bool, err error) {
	b := &w.rx
	b.nSegs, b.nSlots, b.packets, b.failed, b.bytes = 0, 0, 0, 0, 0
	if b.free, err = q.rx.Available(); err != nil {
		return false, err
	}
	if q.hold.empty() {
		more = w.rxFromTap(q, b)
	} else {
		more = w.rxFromHold(q, b)
	}
	w.deliver(q, b)
	if b.nSlots > 0 {
		q.unblocked()
	}
	switch {
	case more:
		return true, nil
	case !q.hold.empty():
		q.blockedNeed = q.slotsFor(q.hold.head())
	case q.blockedSince.IsZero():
		return false, nil
	}
	return w.rxBlocked(q)
}

// rxBlocked is called when packets wait, or have waited in vain, for more slots
// than there are. It asks for an event once they are there.
func (w *worker) rxBlocked(q *Queue) (more bool, err error) {
	cfg := &q.conn.cfg
	if q.blockedSince.IsZero() {
		q.blockedSince = w.now
	}
	there, err := q.rx.ArmFor(q.blockedNeed)
	if err != nil {
		return false, err
	}
	if there {
		q.unblocked()
		return !q.hold.empty(), nil
	}
	waited := w.now.Sub(q.blockedSince)
	if waited >= q.drainAfter && !q.hold.empty() {
		w.tally[DropRxStalled] += uint32(len(q.hold.queue))
		q.dropHeld()
	}
	if waited >= cfg.Stall && cfg.RxNotify && !q.stalled {
		q.stalled = true
		cfg.Notice(Notice{Kind: Stalled, Queue: q.index})
	}
	if !cfg.RxNotify && !q.hold.empty() {
		q.pollAt = w.now.Add(noNotifyPoll)
	}
	return false, nil
}

// rxFromTap reads packets and plans them into b. Those that the slots at hand
// cannot take, and all that follow, go into the hold.
func (w *worker) rxFromTap(q *Queue, b *rxBatch) (more bool) {
	if !q.tapReady {
		return false
	}
	want := min(q.rxWant, int(b.free)/q.slotsPerRead)
	want = max(want, 1) // one more can always be held
	got := w.readTap(q, b, want)
	if got == want {
		q.rxWant = min(2*q.rxWant, rxReads)
	} else {
		q.rxWant = max(got, 1)
	}
	// After a single packet, epoll tells as cheaply whether there is another
	// as a read would that finds none.
	more = got == want && want > 1
	q.tapReady = more
	for i := range got {
		w.takeFrame(q, b, i)
	}
	return more
}

// takeFrame plans the packet of read i.
func (w *worker) takeFrame(q *Queue, b *rxBatch, i int) {
	at := rxFrameAt(i)
	n := b.frames[i].n - q.vnetLen
	if n < minLinear || n > maxFrame {
		w.tally[DropRxSize]++
		return
	}
	frame := w.rxMem.mem[at : at+n]
	if m := q.conn.cfg.Mcast; m.filter.Load() && !m.passes([6]byte(frame)) {
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
	if plan.Action != offload.ActSegment && q.hold.empty() && w.place(q, b, w.rxMem.addr(at), n, &plan) {
		return
	}
	w.tally[RxParked]++
	if !q.hold.push(frame, plan) {
		w.tally[DropRxBacklog]++
	}
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
	made := 0
	for !q.hold.empty() {
		h := q.hold.head()
		frame := q.hold.mem.mem[h.at : h.at+h.n]
		if h.plan.Action != offload.ActSegment {
			if !w.place(q, b, q.hold.mem.addr(h.at), h.n, &h.plan) {
				return false
			}
			q.hold.pop()
			continue
		}
		if q.segmenter == nil {
			q.segmenter = new(offload.Segmenter)
			if err := q.segmenter.Init(frame, int(h.plan.GSOSize)); err != nil || q.segmenter.MaxLen() > q.maxRx {
				w.tally[DropRxCsum]++
				q.segmenter = nil
				q.hold.pop()
				continue
			}
			w.tally[Segmented]++
		}
		for q.segmenter.Left() > 0 {
			if made == rxReads {
				return true
			}
			if b.free < slotsOf(q.segmenter.MaxLen()) {
				return false
			}
			at := rxFrameAt(made)
			made++
			n, err := q.segmenter.Next(w.rxMem.mem[at : at+maxFrame])
			if err != nil {
				break
			}
			seg := offload.RxPlan{DataValidated: h.plan.DataValidated}
			w.place(q, b, w.rxMem.addr(at), n, &seg)
		}
		q.segmenter = nil
		q.hold.pop()
	}
	return true
}

// slotsOf is the number of data slots for n octets.
func slotsOf(n int) uint32 { return uint32(n+netif.PageSize-1) / netif.PageSize }

// slotsFor is the number of slots the held packet needs to go on.
func (q *Queue) slotsFor(h *held) uint32 {
	if h.plan.Action == offload.ActSegment {
		if q.segmenter != nil {
			return slotsOf(q.segmenter.MaxLen())
		}
		return slotsOf(min(h.n, offload.MaxHeader+int(h.plan.GSOSize)))
	}
	n := slotsOf(h.n)
	if h.plan.GSOType != offload.GSONone {
		n++
	}
	return n
}

// place plans one packet into the slots at hand: data slot 0, then the extras,
// then the other data slots. It reports whether they suffice; if not it takes
// none. The data stays where it is until deliver.
func (w *worker) place(q *Queue, b *rxBatch, addr uintptr, n int, plan *offload.RxPlan) bool {
	need := slotsOf(n)
	gso := plan.GSOType != offload.GSONone
	if gso {
		need++
	}
	if need > b.free {
		return false
	}
	var flags netif.RxFlags
	if plan.CsumBlank {
		flags |= netif.RxCsumBlank
	}
	if plan.DataValidated {
		flags |= netif.RxDataValidated
	}
	if gso {
		flags |= netif.RxExtraInfo
		w.tally[RxGSO]++
	}
	i := q.rx.ReqCons()
	for left := n; ; {
		r := q.rx.Request(i)
		i++
		part := min(left, netif.PageSize)
		left -= part
		if left > 0 {
			flags |= netif.RxMoreData
		}
		b.segs[b.nSegs].ToGuest(q.conn.cfg.Domid, r.Gref, 0, addr, uint16(part))
		b.slotOf[b.nSegs] = uint16(b.nSlots)
		b.pktOf[b.nSegs] = uint16(b.packets)
		b.nSegs++
		b.slots[b.nSlots] = netif.RxResponse{ID: r.ID, Flags: flags, Status: netif.Status(part)}.Slot()
		b.nSlots++
		if gso {
			gso = false
			b.slots[b.nSlots] = netif.NewGSO(netif.GSOInfo{Size: plan.GSOSize, Type: netif.GSOType(plan.GSOType)}).Slot()
			b.nSlots++
			i++
		}
		if left == 0 {
			break
		}
		addr += netif.PageSize
		flags = 0
	}
	q.rx.Consume(need)
	b.free -= need
	b.packets++
	b.bytes += uint32(n)
	return true
}

// deliver copies the batch into the guest's pages and publishes its slots.
func (w *worker) deliver(q *Queue, b *rxBatch) {
	if b.nSlots == 0 {
		return
	}
	segs := b.segs[:b.nSegs]
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	w.tally[GrantOps] += uint32(b.nSegs)
	if err := q.grants.Copy(segs); err != nil || !allOkay(segs) {
		w.deliverFailed(b, err != nil)
	}
	slots := b.slots[:b.nSlots]
	w.tally[RxPackets] += b.packets - b.failed
	w.tally[RxBytes] += b.bytes
	w.tally[RxSlots] += uint32(b.nSlots)
	q.journal.recordRx(q.rx.RspProd(), slots)
	if q.rx.Commit(slots) {
		w.notify(q, q.rxPort)
	}
}

// deliverFailed marks the slots whose page could not be written. The frontend
// drops the packet they belong to.
func (w *worker) deliverFailed(b *rxBatch, all bool) {
	last := -1 // packet counted last; packets stand in order
	for i := range b.segs[:b.nSegs] {
		if !all && b.segs[i].Status() == gntdev.StatusOkay {
			continue
		}
		s := b.slotOf[i]
		r := b.slots[s].Response()
		r.Status = netif.StatusError
		b.slots[s] = r.Slot()
		if pkt := int(b.pktOf[i]); pkt != last {
			last = pkt
			w.tally[DropRxGrant]++
			b.failed++
		}
	}
}

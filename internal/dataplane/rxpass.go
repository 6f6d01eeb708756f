// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// rxReads is how many packets are read from a TAP queue with one call at most.
const rxReads = 64

// rxCalls is how many are read with calls of their own before they are looked at:
// few enough to be in the cache still.
const rxCalls = 32

// rxFew is the number of packets up to which that is so with io_uring, too, which
// might read some of so few in vain.
const rxFew = 8

// rxParts is how many times rxReads packets a pass reads, as long as they are
// small. One grant copy, one commit and one event then serve all of them.
const rxParts = 3

// rxSure is how many packets in a row make it sure enough that there are more:
// from here on, to be wrong once costs little for each of them.
const rxSure = 8 * rxReads

// maxFrame is the largest frame a TAP hands out: an IP packet of 64 KiB with an
// Ethernet header and two VLAN tags.
const maxFrame = 65535 + 14 + 8

// maxFramePages is what the largest frame takes.
const maxFramePages = (maxFrame + netif.PageSize - 1) / netif.PageSize

// rxStride is the room of a read: any may bring the largest frame. The next part
// of the pass reads to a page further on, behind a packet that was small and left
// the rest of its room alone.
const rxStride = (maxFramePages + rxParts) * netif.PageSize

// rxFrameAt is where read i of a pass puts its frame, large if one of those to come
// may be; the vnet header goes before it.
//
// A large packet starts with a page, so that its pages are copied one by one
// into the guest's, and no copy crosses a page end. Small ones stand at different
// places of their pages, lest all of them meet in one set of the cache. Where
// small ones are expected, a large one is moved.
func rxFrameAt(i int, large bool) int {
	at := i%rxReads*rxStride + (1+i/rxReads)*netif.PageSize
	if !large {
		at += (1 + i%16) * headroom
	}
	return at
}

// rxDense is the largest frame that leaves the places behind it alone when packets
// are read densely, two to a page. Each read still has the room for any frame: one
// that is larger fills places that nothing was read to yet, and is the last one
// that is read, for it to be moved to rxAlone.
const rxDense = netif.PageSize/2 - rxSteps*headroom

// rxSteps is at how many different places of their half page such frames stand.
const rxSteps = 8

// The rx arena holds the places of rxFrameAt, that of a frame that was moved, and
// those of rxDenseAt, with room behind the last.
const (
	rxAlone      = rxReads*rxStride + netif.PageSize
	rxDenseFrom  = rxAlone + maxFramePages*netif.PageSize
	rxArenaBytes = rxDenseFrom + rxParts*rxReads/2*netif.PageSize + maxFramePages*netif.PageSize
)

// rxDenseAt is where read i of a pass puts its frame if small ones are expected and
// reading ends with a larger one. It is in few pages, for the processor knows few at
// a time, and here, too, at different places of them. None crosses a page end.
func rxDenseAt(i int) int {
	return rxDenseFrom + i*(netif.PageSize/2) + (1+i/2%rxSteps)*headroom
}

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

	read    int    // places in the arena that are taken
	free    uint32 // requests not yet taken
	packets uint32
	failed  uint32 // of the packets
	bytes   uint32 // of those that did not fail
}

// rxPacket is a packet of the batch.
type rxPacket struct {
	n      uint32 // octets
	failed bool   // a page of it could not be written
}

// rxFrame is what was read: a frame at at of the rx arena, and the vnet header
// before it, n octets together.
type rxFrame struct{ at, n int }

// overruns reports whether a frame is larger than its place among dense ones: it was
// the last that was read, whatever else there is.
func (f rxFrame) overruns(vnetLen int) bool {
	return f.at >= rxDenseFrom && f.n > rxDense+vnetLen
}

// rxPass moves one batch of packets from the TAP to the guest. It reports
// whether there may be more to do at once. An error is a breach of the ring's
// protocol.
func (w *worker) rxPass(q *Queue) (more bool, err error) {
	b := &w.rx
	b.nSegs, b.nSlots, b.read = 0, 0, 0
	b.packets, b.failed, b.bytes = 0, 0, 0
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
	q.hold.trim()
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
	q.hold.trim()
	// A new head may need fewer slots.
	return dropped, nil
}

// rxFromTap reads packets and plans them into b. Those that the slots at hand
// cannot take, and all that follow, go into the hold.
func (w *worker) rxFromTap(q *Queue, b *rxBatch) (more bool) {
	if b.free >= q.blockedNeed {
		q.stale = 0
	}
	if q.moving != nil && q.moving.waits() {
		return false
	}
	for left := rxParts * rxReads; left > 0 && q.tapReady; {
		if q.large && w.rxLarge(q, b) {
			break
		}
		want := min(q.rxWant(int(b.free), w.readsByRing(q)), left)
		left -= want
		got := w.readTap(q, b, want, q.rxRun >= rxSure)
		if got > 0 && b.frames[got-1].overruns(q.vnetLen) {
			want = got
		}
		some := w.takeFrames(q, b, b.frames[:got])
		if b.nSegs == 0 {
			b.read = 0 // nothing of it is needed any more
		}
		q.someLarge = some || got == 0 && q.someLarge
		q.ran(got, want)
		if q.moving != nil {
			q.tapReady = q.moving.sawTap(got, want)
		}
		if got < want {
			q.stale = 0
		}
		if !q.hold.empty() {
			q.rxRun, q.rxLast = 0, 1 // segments go through the hold, whatever slots there are
			break
		}
		if some || b.free == 0 {
			break
		}
	}
	return q.tapReady
}

// rxWant is how many packets to read next, with free slots at hand. With io_uring
// what is read in vain costs, so it goes by what came before.
func (q *Queue) rxWant(free int, ring bool) int {
	most := rxCalls
	if ring {
		most = rxReads
	}
	want := most
	switch {
	case q.rxRun < q.rxLast:
		want = q.rxLast - q.rxRun
	case q.rxRun == 0:
		want = 1
	case ring:
		// There are more than there used to be.
		want = max(q.rxRun/4, rxFew)
	}
	want = min(want, most, free)
	if q.someLarge {
		// No more than can be placed or held if all of them are.
		want = min(want, free/q.slotsPerRead+holdFrames)
	}
	return max(want, 1, min(q.stale, rxReads))
}

// ran takes note that a read brought got packets of want.
func (q *Queue) ran(got, want int) {
	q.rxRun += got
	// After a single packet, epoll tells as cheaply whether there is another as
	// a read would that finds none.
	if q.tapReady = got == want && want > 1; q.tapReady {
		return
	}
	// The next backlog may well be like the smaller one of the last two: to read
	// in vain costs more than to read once more.
	if got < want {
		q.rxLast, q.rxBefore = min(q.rxRun, q.rxBefore), q.rxRun
	} else {
		q.rxLast = 2
	}
	q.rxRun = 0
}

// takeFrames plans packets that were read, and reports whether there were large
// ones among them.
func (w *worker) takeFrames(q *Queue, b *rxBatch, frames []rxFrame) (some bool) {
	// Whether anything is asked of packets but to be delivered.
	plain := q.xdpRoom == 0 && q.hash == nil && q.steer == nil && q.moving == nil && !q.conn.cfg.Mcast.filter.Load()
	for i := range frames {
		f := frames[i]
		if q.large = f.n-q.vnetLen > smallPacket; q.large || f.overruns(q.vnetLen) {
			some = true
			f.at = w.toPageStart(f, q.vnetLen)
		}
		if !plain || !w.takePlain(q, b, f) {
			w.takeFrame(q, b, f)
		}
	}
	return some
}

// toPageStart has a packet that came where a small one was expected start with a
// page, and returns where that is.
func (w *worker) toPageStart(f rxFrame, vnetLen int) int {
	at := f.at &^ (netif.PageSize - 1)
	if f.at >= rxDenseFrom {
		at = rxAlone // its page is others' as well
	}
	if at != f.at {
		copy(w.rxMem.mem[at-vnetLen:], w.rxMem.mem[f.at-vnetLen:f.at-vnetLen+f.n])
	}
	return at
}

// takePlain plans a packet of which nothing has to be known but that it goes into
// one slot. It reports whether it is such a packet, and there is a slot.
func (w *worker) takePlain(q *Queue, b *rxBatch, f rxFrame) bool {
	at, n := f.at, f.n-q.vnetLen
	if n < minLinear || n > netif.PageSize || b.free == 0 || !q.hold.empty() {
		return false
	}
	var flags netif.RxFlags
	mem := w.rxMem.mem
	if q.vnetLen != 0 {
		f, gso := tap.VnetKind(mem[at-q.vnetLen:])
		if offload.NeedsParse(f, gso) {
			return false
		}
		if f&tap.VnetDataValid != 0 {
			flags = netif.RxDataValidated
		}
	}
	r := q.rx.Request(q.rx.ReqCons())
	b.slots[b.nSlots%netif.RxRingSize] = netif.RxResponse{ID: r.ID, Flags: flags, Status: netif.Status(n)}.Slot()
	b.nSlots++
	if g := q.static.Lookup(r.Gref); g.Page != nil && !g.ReadOnly {
		w.tally[StaticHits]++
		copy(g.Page[:], mem[at:at+n])
	} else {
		w.fill(q, b, r, 0, mem[at:at+n], w.rxMem.addr(at))
	}
	w.placed(q, b, n, 1)
	return true
}

// tooBigEvery bounds how often the owner of the connection hears of packets that are too
// big for the guest.
const tooBigEvery = time.Second

// tooBig counts a packet that the guest cannot take: the host was given a larger MTU
// than a guest without scatter-gather has.
func (w *worker) tooBig(q *Queue) {
	w.tally[DropRxSize]++
	if now := w.time(); now.Sub(q.tooBigAt) >= tooBigEvery {
		q.tooBigAt = now
		q.conn.cfg.Notice(Notice{Kind: TooBig, Queue: q.index})
	}
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
		var v tap.VnetHdr
		v.Decode(w.rxMem.mem[at-q.vnetLen : at])
		if !offload.NeedsParse(v.Flags, v.GSOType) {
			plan.DataValidated = v.Flags&tap.VnetDataValid != 0
		} else if !w.planFrame(q, v, frame, &plan) {
			w.tally[DropRxCsum]++
			return
		}
	}
	if n > q.maxRx && plan.Action != offload.ActSegment {
		w.tooBig(q)
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
	if drop := q.hold.push(frame, &plan, w.time()); drop != kept {
		w.tally[drop]++
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
	drop := DropRxBacklog
	if to.attached && !to.breached {
		drop = to.hold.push(frame, plan, w.time())
	}
	if drop != kept {
		w.tally[drop]++
		return
	}
	w.schedule(to)
}

// planFrame finds out what has to be done to a frame that leaves something to
// the receiver, and does it unless it is segmentation.
func (w *worker) planFrame(q *Queue, v tap.VnetHdr, frame []byte, plan *offload.RxPlan) bool {
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
			if p.n > q.maxRx {
				w.tally[DropRxSize]++ // the guest has asked for headroom since it came
				h.pop()
				continue
			}
			if !w.place(q, b, &h.mem, p.at, p.n, &p.plan) {
				return false
			}
			h.pop()
			continue
		}
		s := &h.segmenter
		if !h.begun {
			if err := s.Init(h.frame(p), int(p.plan.GSOSize)); err != nil {
				w.tally[DropRxCsum]++
				h.pop()
				continue
			}
			if s.MaxLen() > q.maxRx {
				w.tooBig(q)
				h.pop()
				continue
			}
			h.begun = true
			w.tally[Segmented]++
		}
		if s.MaxLen() > q.maxRx {
			w.tally[DropRxCsum]++
			h.pop()
			continue
		}
		for s.Left() > 0 {
			if made == rxReads {
				return true
			}
			if b.free < q.slotsForSegment(s.MaxLen()) {
				return false
			}
			at := rxFrameAt(made, true)
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
	_, hashed := q.hash.of(q.hold.frame(p))
	return q.slotsOf(p.n) + q.extraSlots(&p.plan, hashed)
}

// slotsForSegment is the number of slots that a segment of n octets may need.
func (q *Queue) slotsForSegment(n int) uint32 {
	need := q.slotsOf(n) + q.xdpExtra
	if q.hash != nil {
		need++
	}
	return need
}

// place plans one packet, the n octets at at of m, into the slots at hand: data
// slot 0, then the extras, then the other data slots. It reports whether they
// suffice; if not it takes none. The packet stays where it is until it is copied.
func (w *worker) place(q *Queue, b *rxBatch, m *arenaMem, at, n int, plan *offload.RxPlan) bool {
	hash, hashed := q.hash.of(m.mem[at : at+n])
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
		w.fill(q, b, r, p.offset, m.mem[at:at+part], m.addr(at))
		at += part
		if first {
			i = i.Add(p.extras(need-q.slotsOf(n), plan, hash, hashed))
		}
	}
	w.countExtras(q, n, plan, hashed)
	w.placed(q, b, n, need)
	return true
}

// fill has the bytes of part, which are at addr, go to offset in the page of r, whose
// slot is the last one planned.
func (w *worker) fill(q *Queue, b *rxBatch, r netif.RxRequest, offset uint16, part []byte, addr uintptr) {
	switch g := q.static.Lookup(r.Gref); {
	case g.Page == nil:
		if q.static.Len() != 0 {
			w.tally[StaticMisses]++
		}
		i := b.nSegs % netif.RxRingSize
		b.segs[i].ToGuest(q.conn.cfg.Domid, r.Gref, offset, addr, uint16(len(part)))
		b.slotOf[i] = uint16(b.nSlots - 1)
		b.pktOf[i] = uint16(b.packets)
		b.nSegs++
	case g.ReadOnly:
		failSlot(&b.slots[b.nSlots-1])
		w.rxFailed(b, b.packets, DropRxReadOnly)
	default:
		w.tally[StaticHits]++
		copy(g.Page[offset:], part)
	}
}

// countExtras takes note of what a packet carries.
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
		q.largeExtras = q.extraSlots(plan, hashed)
	}
}

// placed takes the slots of a packet that was planned.
func (w *worker) placed(q *Queue, b *rxBatch, n int, need uint32) {
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

// data fills the packet's next data slot and returns how many octets it takes.
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

// extras fills the slots behind the first with the n extras that the packet has, in
// the order of their types, and returns n.
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

// extra fills a slot with the first of left extras, and returns how many are left then.
func (p *rxSlots) extra(e netif.ExtraInfo, left uint32) uint32 {
	if left--; left > 0 {
		e.Flags |= netif.ExtraMore
	}
	p.b.slots[p.b.nSlots] = e.Slot()
	p.b.nSlots++
	return left
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
		if err := w.grantCopy(q, segs); err != nil || !allOkay(segs) {
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
		failSlot(&b.slots[b.slotOf[i]])
		w.rxFailed(b, uint32(b.pktOf[i]), DropRxGrant)
	}
}

// failSlot has a slot say that its page was not written.
func failSlot(s *netif.RxSlot) {
	r := s.Response()
	r.Status = netif.StatusError
	*s = r.Slot()
}

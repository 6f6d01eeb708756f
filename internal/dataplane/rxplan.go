// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// tooBigEvery is the least time between two TooBig notices of a queue.
const tooBigEvery = time.Second

// planFrames plans the packets of one read.
func (w *worker) planFrames(q *Queue, b *rxBatch, frames []rxFrame) {
	// Packets of a plain queue need no more than to be delivered.
	plain := q.xdpRoom == 0 && q.hash == nil && q.steer == nil && q.resteer == nil && !q.conn.cfg.Mcast.filter.Load()
	for len(frames) > 0 {
		if plain {
			frames = frames[w.planPlain(q, b, frames):]
		}
		if len(frames) > 0 {
			w.planFrame(q, b, frames[0])
			frames = frames[1:]
		}
	}
}

// planPlain plans packets that fit one slot each and have no offload, up to the first that
// is another, or for which there is no slot. It returns their number.
func (w *worker) planPlain(q *Queue, b *rxBatch, frames []rxFrame) (done int) {
	if !q.backlog.empty() {
		return 0
	}
	mem, vnet, static := w.rxMem.mem, q.vnetLen, q.static
	first := q.rx.ReqCons()
	hits := uint32(0)
	frames = frames[:min(len(frames), int(b.free))]
	for i := range frames {
		at, n := frames[i].at, frames[i].n-vnet
		if n < minLinear || n > netif.PageSize {
			break
		}
		flags := netif.RxFlags(0)
		if vnet != 0 {
			f, gso := tap.VnetKind(mem[at-vnet:])
			if offload.NeedsParse(f, gso) {
				break
			}
			if f&tap.VnetDataValid != 0 {
				flags = netif.RxDataValidated
			}
		}
		r := q.rx.Request(first.Add(uint32(i)))
		b.slots[b.nSlots%netif.RxRingSize] = netif.RxResponse{ID: r.ID, Flags: flags, Status: netif.Status(n)}.Slot()
		b.nSlots++
		p := &b.pkts[b.packets%netif.RxRingSize]
		*p = rxPacket{n: uint32(n)}
		if static.Len() == 0 {
			b.copyLater(q.conn.cfg.Domid, r.Gref, 0, &w.rxMem, at, n)
		} else if g := static.Lookup(r.Gref); g.Page != nil && !g.ReadOnly {
			hits++
			copy(g.Page[:], mem[at:at+n])
		} else {
			w.fill(q, b, r, 0, &w.rxMem, at, n)
		}
		if !p.failed {
			b.bytes += uint32(n)
		}
		b.packets++
		done++
	}
	w.tally[StaticHits] += hits
	if done > 0 {
		q.rx.Consume(uint32(done))
		b.free -= uint32(done)
		b.pkts[b.packets%netif.RxRingSize].failed = false
	}
	return done
}

// planFrame plans a packet: it is placed in slots, put in the backlog, given to
// another queue, or dropped.
func (w *worker) planFrame(q *Queue, b *rxBatch, f rxFrame) {
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
		} else if !w.planOffload(q, v, frame, &plan) {
			w.tally[DropRxCsum]++
			return
		}
	}
	if n > q.maxRx && plan.Action != offload.ActSegment {
		w.tooBig(q)
		return
	}
	if (q.steer != nil || q.resteer != nil) && w.redirect(q, frame, &plan) {
		return
	}
	if plan.Action != offload.ActSegment && q.backlog.empty() && w.place(q, b, &w.rxMem, at, n, &plan) {
		return
	}
	if q.blocked.stale > 0 {
		q.blocked.stale--
		w.tally[DropRxStalled]++
		return
	}
	if drop := q.backlog.push(frame, &plan, w.time()); drop != notDropped {
		w.tally[drop]++
		return
	}
	if plan.Action != offload.ActSegment {
		w.tally[RxParked]++
	}
}

// planOffload plans a frame that leaves a checksum or segmentation to the receiver,
// and completes its checksum if the guest cannot. Segmentation is done from the
// backlog. It reports whether the offload is possible.
func (w *worker) planOffload(q *Queue, v tap.VnetHdr, frame []byte, plan *offload.RxPlan) bool {
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

// tooBig drops a packet that the guest cannot take, and notifies the owner of the
// connection: the host's MTU is too large for a guest without scatter-gather.
func (w *worker) tooBig(q *Queue) {
	w.tally[DropRxSize]++
	if now := w.time(); now.Sub(q.tooBigAt) >= tooBigEvery {
		q.tooBigAt = now
		q.conn.cfg.Notice(Notice{Kind: TooBig, Queue: q.index})
	}
}

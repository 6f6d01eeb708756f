// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

const (
	// vtxBytes bounds the bytes of a pass: about those of a ring of a vif. A virtqueue
	// has room for far more.
	vtxBytes = creditStep

	// vtxMostPieces: a packet in more pieces is copied into one. The copy costs less, and
	// writev(2) takes no more than 1024.
	vtxMostPieces = 128
)

// vtxPass moves one batch of packets from a virtqueue to the TAP, as txPass does from a
// vif's ring. An error is a broken rule of the ring; the packets before it have been
// written.
func (w *worker) vtxPass(q *Queue) (more bool, err error) {
	r := &q.virt.tx
	if !r.set.Enabled {
		return w.vtxDiscard(r)
	}
	b, vb := &w.tx, w.virt.tx
	lim := q.conn.cfg.Limiter
	var now time.Time
	if lim.limits() {
		now = w.time()
	}
	b.reset(lim.take(now, &q.rate.share, creditStep))
	n, err := r.take(vb, min(batchPackets, q.mostSegs))
	if n > 0 {
		r.disarm()
		w.vtxFetch(q, b, vb)
		w.vtxWrite(q, b, vb)
	}
	q.turnSegs = b.nPkts + b.segments
	w.settleRate(q, b, now)
	moved := vb.Len()
	w.vtxPublish(r)
	switch {
	case err != nil || b.want != 0:
		return false, err
	case moved > 0:
		return true, nil
	}
	return r.armFor(1)
}

// vtxPublish gives the chains of the batch back to the guest, and notifies it if it asked
// for that.
func (w *worker) vtxPublish(r *virtRing) {
	w.tally[TxSlots] += uint32(w.virt.tx.Len())
	if r.publish(w.virt.tx) {
		w.signal(r)
	}
}

// vtxDiscard takes chains of a ring that is disabled, and gives them back.
func (w *worker) vtxDiscard(r *virtRing) (more bool, err error) {
	n, err := r.take(w.virt.tx, batchPackets)
	w.tally[DropTxDisabled] += uint32(n)
	w.vtxPublish(r)
	if n > 0 || err != nil {
		return err == nil, err
	}
	return r.armFor(1)
}

// vtxFetch checks the lengths of the batch's packets and copies them to the tx arena, vnet
// headers included. Of a large packet in mapped memory it copies only the headers.
//
// Packets that have to wait for credit, for room or for the next turn are returned to the
// ring.
func (w *worker) vtxFetch(q *Queue, b *txBatch, vb *virtqueue.Batch) {
	v := q.virt
	var place frameAlloc
	w.pullAt = txArenaBytes
	for i := range vb.Len() {
		total := uint32(max(int(vb.Chain(i).ReadLen)-v.hdrLen, 0))
		switch {
		case total < minLinear:
			w.tally[DropTxShort]++
			continue
		case total > maxFrame:
			w.tally[DropTxTooBig]++
			continue
		case b.bytes+total > vtxBytes, place.next+int(total)+2*headroom > txArenaBytes:
			v.tx.giveBack(vb, i)
			w.copyNow(q)
			return
		case total > b.credit-b.bytes:
			b.want = total
			v.tx.giveBack(vb, i)
			w.copyNow(q)
			return
		}
		p := &b.pkts[b.nPkts]
		*p = txPacket{first: uint16(i), total: total, linear: int32(total)}
		pieces := vb.Readable(i)
		switch {
		case total <= smallPacket:
			p.at = int32(place.packed(int(total)))
		case q.vnetLen == 0 || len(pieces) > vtxMostPieces || v.memory.copies && !mapped(pieces):
			p.at = int32(place.packed(int(total)))
		default:
			p.at, p.linear = int32(w.pullAt+headroom), int32(min(int(total), offload.MaxHeader))
			w.pullAt += pullStride
		}
		w.vtxCollect(q, pieces, b.nPkts, int(p.at)-v.hdrLen, v.hdrLen+int(p.linear))
		b.nPkts++
		b.bytes += total
	}
	w.copyNow(q)
}

// mapped reports whether all pieces are in mapped memory.
func mapped(pieces []virtqueue.Piece) bool {
	for i := range pieces {
		if pieces[i].Mem == nil {
			return false
		}
	}
	return true
}

// vtxCollect copies the first n bytes of pieces, those of packet i, to at of the tx arena.
func (w *worker) vtxCollect(q *Queue, pieces []virtqueue.Piece, i, at, n int) {
	for k := range pieces {
		p := &pieces[k]
		part := min(n, int(p.Len))
		if p.Mem != nil {
			copy(w.txMem.mem[at:at+part], p.Mem)
		} else {
			w.copyLater(q, p, 0, &w.txMem, at, part, i, false)
		}
		at += part
		if n -= part; n == 0 {
			return
		}
	}
}

// vtxWrite writes the batch's packets to the TAP. If they have too many segments for the
// turn, it returns the last ones to the ring.
func (w *worker) vtxWrite(q *Queue, b *txBatch, vb *virtqueue.Batch) {
	vnet, hdrLen := q.vnetLen, q.virt.hdrLen
	mem := w.txMem.mem
	out := &w.out
	out.begin(q, b, w.coalesce(q, b))
	next := 0 // free iovec
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		if p.drop != notDropped {
			if p.drop != coalesced { // its grant copy failed
				w.tally[p.drop]++
			}
			continue
		}
		if next+vtxMostPieces >= w.uring.iov.Len() {
			out.flush(b)
			next = 0
		}
		if p.more != 0 {
			next += w.writeMerged(q, b, i, next)
			continue
		}
		at := int(p.at) - vnet
		flags, gso := tap.VnetKind(mem[int(p.at)-hdrLen:])
		switch {
		case flags&tap.VnetNeedsCsum != 0 || gso != tap.VnetGSONone:
			hdr, segs, drop := w.vtxPlan(q, p)
			if drop != notDropped {
				p.drop = drop
				w.tally[drop]++
				continue
			}
			// Packets are merged across one of a single segment, but not across others.
			if i > 0 && segs > 1 && i+b.segments+segs > q.mostSegs {
				out.flush(b)
				w.vtxCut(q, b, vb, i)
				return
			}
			b.segments += segs - 1
			if vnet == 0 {
				w.writeFinished(q, b, p)
				continue
			}
			w.vtxCount(b, p, &hdr)
			hdr.Encode(mem[at:p.at])
		case vnet != 0:
			*(*[tap.VnetHdrLen]byte)(mem[at:]) = [tap.VnetHdrLen]byte{}
		}
		if uint32(p.linear) == p.total {
			out.write(i, at, vnet+int(p.total))
			continue
		}
		n := w.vtxPieces(q, p, vb.Readable(int(p.first)), next, tap.VnetHdrLen)
		out.writev(i, next, n)
		next += n
	}
	out.flush(b)
}

// vtxCount counts a packet with offloads.
func (w *worker) vtxCount(b *txBatch, p *txPacket, v *tap.VnetHdr) {
	if v.GSOType != tap.VnetGSONone {
		w.tally[TxGSO]++
		w.countSegments(b, p, v)
	}
}

// vtxCut returns the batch's packets from number i on to the ring.
func (w *worker) vtxCut(q *Queue, b *txBatch, vb *virtqueue.Batch, i int) {
	for k := range b.pkts[i:b.nPkts] {
		b.bytes -= b.pkts[i+k].total
	}
	q.virt.tx.giveBack(vb, int(b.pkts[i].first))
	b.nPkts = i
}

// vtxPieces lists a packet's pieces in w.uring.iov from first on, and returns their number:
// the vnet header and the headers in private memory, and behind them the rest in the
// guest's. front is that of pieces. Adjacent ones become one piece.
func (w *worker) vtxPieces(q *Queue, p *txPacket, pieces []virtqueue.Piece, first, front int) (n int) {
	addr, size := w.txMem.addr(int(p.at)-front), uintptr(front+int(p.linear))
	skip := q.virt.hdrLen + int(p.linear) // bytes that the first piece has already
	for k := range pieces {
		mem := pieces[k].Mem
		if len(mem) <= skip {
			skip -= len(mem)
			continue
		}
		from, more := memAddr(mem)+uintptr(skip), uintptr(len(mem)-skip)
		skip = 0
		if from == addr+size {
			size += more
			continue
		}
		w.uring.iov.Set(first+n, addr, uint32(size))
		n++
		addr, size = from, more
	}
	w.uring.iov.Set(first+n, addr, uint32(size))
	return n + 1
}

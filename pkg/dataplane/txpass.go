// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// batchPackets is how many packets a tx pass takes at most. It is what the
// system calls of a pass are shared by, and bounds what one vif can do before
// the others have their turn.
const batchPackets = 128

// creditStep is how much of the rate limit a pass draws at once: more than a
// batch of MTU-sized packets needs.
const creditStep = 1 << 20

// txPass moves one batch of packets from the guest to the TAP. It reports
// whether there may be more to do at once. An error is a breach of the ring's
// protocol, after everything before it has been dealt with.
func (w *worker) txPass(q *Queue) (more bool, err error) {
	b := &w.tx
	lim := q.conn.cfg.Limiter
	b.reset(lim.take(w.now, creditStep))
	drawn := b.credit
	err = q.parseTx(b, &w.tally)
	if drawn != unlimited {
		lim.giveBack(drawn - b.bytes)
	}
	if b.nPkts > 0 {
		w.fetch(q, b)
		w.writeOut(q, b)
	}
	if b.nRsp > 0 {
		w.tally[TxSlots] += uint32(b.nRsp)
		rsp := b.rsp[:b.nRsp]
		q.journal.recordTx(q.tx.RspProd(), rsp)
		if q.tx.Commit(rsp) {
			w.notify(q, q.txPort)
		}
	}
	if err != nil {
		return false, err
	}
	if b.want != 0 {
		w.tally[RateWaits]++
		q.rateUntil = w.now.Add(lim.wait(w.now, b.want))
		return false, nil
	}
	if b.nRsp > 0 {
		return true, nil
	}
	more, err = q.tx.Arm()
	return more, err
}

// fetch copies the data of the batch's packets into the tx arena.
func (w *worker) fetch(q *Queue, b *txBatch) {
	var place frameAlloc
	b.nSegs = 0
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		slots := b.slot[p.first : p.first+p.n]
		if p.n == 1 && p.total > smallPacket {
			s := &slots[0]
			p.at = place.page(int(s.off)+int(s.size)) + int(s.off)
			w.fetchSlot(q, b, s, p.at)
			continue
		}
		if p.total <= smallPacket {
			p.at = place.packed(int(p.total))
			at := p.at
			for k := range slots {
				w.fetchSlot(q, b, &slots[k], at)
				at += int(slots[k].size)
			}
			continue
		}
		p.scattered = true
		for k := range slots {
			s := &slots[k]
			if s.size == 0 {
				continue // legal after the first slot, and its gref is nobody's business
			}
			at := place.page(int(s.off)+int(s.size)) + int(s.off)
			if k == 0 {
				p.at = at
			}
			w.fetchSlot(q, b, s, at)
		}
	}
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	w.tally[GrantOps] += uint32(b.nSegs)
	err := q.grants.Copy(b.segs[:b.nSegs])
	if err == nil && allOkay(b.segs[:b.nSegs]) {
		return
	}
	w.fetchFailed(b, err != nil)
}

func (w *worker) fetchSlot(q *Queue, b *txBatch, s *txSlot, at int) {
	s.at = at
	if s.size == 0 {
		return
	}
	b.segs[b.nSegs].FromGuest(q.conn.cfg.Domid, s.gref, s.off, w.txMem.addr(at), s.size)
	b.nSegs++
}

func allOkay(segs []gntdev.Segment) bool {
	for i := range segs {
		if segs[i].Status() != gntdev.StatusOkay {
			return false
		}
	}
	return true
}

// fetchFailed answers the slots whose data did not come with an error, and
// drops their packets. If the call itself failed no segment's status means
// anything.
func (w *worker) fetchFailed(b *txBatch, all bool) {
	seg := 0
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		for k := range p.n {
			if b.slot[p.first+k].size == 0 {
				continue
			}
			if all || b.segs[seg].Status() != gntdev.StatusOkay {
				b.rsp[p.response(k)].Status = netif.StatusError
				p.drop = DropTxGrant
			}
			seg++
		}
		if p.drop != kept {
			w.tally[p.drop]++
		}
	}
}

// writeOut writes the batch's packets to the TAP.
func (w *worker) writeOut(q *Queue, b *txBatch) {
	vnet := q.vnetLen
	w.out.begin(q)
	next := 0 // free iovec
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		if p.drop != kept {
			continue
		}
		if vnet == 0 {
			w.writePlain(q, b, p)
			continue
		}
		var hdr offload.VnetHeader
		m := offload.TxMeta{
			CsumBlank: p.flags&netif.TxCsumBlank != 0,
			GSOType:   offload.GSOType(p.gso.Type),
			GSOSize:   p.gso.Size,
		}
		linear := int(p.total)
		if p.scattered {
			linear = int(b.slot[p.first].size)
		}
		pulled := 0
		if !m.Plain() {
			if linear < int(p.total) && linear < offload.MaxHeader {
				pulled = w.pullUp(b, p)
				linear = pulled
			}
			h, err := offload.Parse(w.txMem.mem[p.at:p.at+linear], int(p.total))
			var plan offload.TxPlan
			if err == nil {
				plan, err = offload.PlanTx(m, h, int(p.total))
			}
			if err != nil {
				p.drop = dropTxReason(err)
				w.tally[p.drop]++
				continue
			}
			if plan.WritePseudo {
				offload.WritePseudo(w.txMem.mem[p.at:p.at+linear], h, int(p.total))
			}
			hdr = plan.Header
			if m.GSOType != offload.GSONone {
				w.tally[TxGSO]++
			}
		}
		tap.VnetHdr(hdr).Encode(w.txMem.mem[p.at-vnet : p.at])
		if !p.scattered {
			w.out.write(i, p.at-vnet, vnet+int(p.total))
			continue
		}
		n := 1
		w.iov.Set(next, w.txMem.addr(p.at-vnet), uint32(vnet+linear))
		skip := max(pulled-int(b.slot[p.first].size), 0)
		for k := 1; k < p.n; k++ {
			s := &b.slot[p.first+k]
			if int(s.size) <= skip {
				skip -= int(s.size)
				continue
			}
			w.iov.Set(next+n, w.txMem.addr(s.at+skip), uint32(int(s.size)-skip))
			skip = 0
			n++
		}
		w.out.writev(i, next, n)
		next += n
	}
	w.out.flush(b)
}

// dropTxReason maps why a packet's offload request was refused to the counter.
func dropTxReason(err error) Counter {
	switch err {
	case offload.ErrGSOMismatch, offload.ErrGSOSize, offload.ErrGSOType:
		return DropTxGSO
	}
	return DropTxCsum
}

// pullUp copies the first octets of a scattered packet into one piece, since
// its first slot may hold less than its headers, and returns how many. The
// piece takes the place of the first slot.
func (w *worker) pullUp(b *txBatch, p *txPacket) int {
	at := w.pullAt + headroom
	w.pullAt += pullStride
	n := 0
	for k := 0; k < p.n && n < offload.MaxHeader; k++ {
		s := &b.slot[p.first+k]
		src := w.txMem.mem[s.at : s.at+int(s.size)]
		n += copy(w.txMem.mem[at+n:at+offload.MaxHeader], src)
	}
	if first := int(b.slot[p.first].size); n < first {
		n += copy(w.txMem.mem[at+n:], w.txMem.mem[p.at+n:p.at+first])
	}
	p.at = at
	return n
}

// pullStride is what a pulled-up head takes up, headroom included.
const pullStride = headroom + offload.MaxHeader + headroom

// writePlain writes a packet to a TAP without vnet header, which can express
// neither an open checksum nor a segment size: both are done here.
func (w *worker) writePlain(q *Queue, b *txBatch, p *txPacket) {
	frame := w.txMem.mem[p.at : p.at+int(p.total)]
	if p.scattered {
		frame = w.gather(b, p)
	}
	m := offload.TxMeta{
		CsumBlank: p.flags&netif.TxCsumBlank != 0,
		GSOType:   offload.GSOType(p.gso.Type),
		GSOSize:   p.gso.Size,
	}
	if m.Plain() {
		w.out.writeNow(frame, p)
		return
	}
	h, err := offload.Parse(frame, len(frame))
	var plan offload.TxPlan
	if err == nil {
		plan, err = offload.PlanTx(m, h, len(frame))
	}
	if err != nil {
		p.drop = dropTxReason(err)
		w.tally[p.drop]++
		return
	}
	if plan.WritePseudo {
		offload.WritePseudo(frame, h, len(frame))
	}
	if plan.Header.GSOType == offload.VnetGSONone {
		if err := offload.Complete(h.L4, plan.Header.CsumOffset, frame); err != nil {
			p.drop = DropTxCsum
			w.tally[p.drop]++
			return
		}
		w.tally[CsumCompleted]++
		w.out.writeNow(frame, p)
		return
	}
	w.tally[TxGSO]++
	w.tally[Segmented]++
	if err := w.segmenter.Init(frame, int(plan.Header.GSOSize)); err != nil {
		p.drop = DropTxGSO
		w.tally[p.drop]++
		return
	}
	for p.drop == kept {
		n, err := w.segmenter.Next(w.segment)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			p.drop = DropTxGSO
			w.tally[p.drop]++
			return
		}
		w.out.writeNow(w.segment[:n], p)
	}
}

// gather puts a scattered packet into one piece.
func (w *worker) gather(b *txBatch, p *txPacket) []byte {
	n := 0
	for k := range p.n {
		s := &b.slot[p.first+k]
		n += copy(w.linear[n:], w.txMem.mem[s.at:s.at+int(s.size)])
	}
	return w.linear[:n]
}

// tapErrno is the reason to drop a packet that the TAP refused with e.
func tapErrno(e unix.Errno) Counter {
	switch e {
	case unix.EIO:
		return DropTxTapDown
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return DropTxTapFull
	}
	return DropTxTapRefused
}

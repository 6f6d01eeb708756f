// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// vrxHead is the room for a vnet header before a packet, in the arena and in the backlog.
const vrxHead = tap.VnetHdrLen

// vrxBlocked is the result of vrxTake if a packet has to wait for buffers.
const vrxBlocked = -1

// vrxPackets lists the packets of a batch to a guest.
type vrxPackets struct {
	pkts [rxChains]vrxPacket
	n    int
}

// vrxPacket is a packet of n bytes in the chains first to first+count-1 of the batch.
type vrxPacket struct {
	n            uint32
	first, count uint16
	failed       bool // a buffer of it could not be written
	gso          bool
}

// mostChains returns the most chains that a packet to the guest may take.
func (v *virtPair) mostChains() int {
	if v.merge {
		return min(v.rx.set.Size, rxChains)
	}
	return 1
}

// vrxTake takes the chains for a packet of n bytes and returns how many: 0 if the packet
// cannot be delivered and is dropped, vrxBlocked if there are too few.
func (w *worker) vrxTake(q *Queue, n int) (count int, err error) {
	v := q.virt
	for {
		count, err = v.rx.takeFor(w.virt.rx, uint32(v.hdrLen+n), v.mostChains())
		switch {
		case err == nil && count > 0:
			return count, nil
		case errors.Is(err, virtqueue.ErrMax):
			w.tooBig(q)
			return 0, nil
		case err != nil:
			return 0, err
		case w.virt.rx.Len() > 0:
			w.vrxDeliver(q) // perhaps the batch is full
			continue
		}
		have := v.rx.available()
		if have >= v.rx.set.Size { // all that the ring has is not enough
			w.tooBig(q)
			return 0, nil
		}
		q.blocked.need = uint32(have + 1)
		return vrxBlocked, nil
	}
}

// vrxNote lists a packet, the n bytes at at of m, that is in the last count chains of the
// batch, and finishes the vnet header before it.
func (w *worker) vrxNote(q *Queue, m *arenaMem, at, n, count int) {
	vb, to := w.virt.rx, &w.virt.to
	first := vb.Len() - count
	hdr := m.mem[at-vrxHead : at]
	to.pkts[to.n] = vrxPacket{n: uint32(n), first: uint16(first), count: uint16(count), gso: hdr[1] != tap.VnetGSONone}
	to.n++
	head := q.virt.hdrLen
	if head == vrxHead {
		virtqueue.PutNumBuffers(hdr, count)
	} else {
		copy(hdr[vrxHead-head:], hdr[:head])
	}
	vb.Spread(first, count, uint32(head+n))
	if n > smallPacket {
		q.reader.slots = count
	}
}

// vrxFill copies a packet, the n bytes at at of m and the vnet header before them, to the
// last count chains of the batch.
func (w *worker) vrxFill(q *Queue, m *arenaMem, at, n, count int) {
	w.vrxNote(q, m, at, n, count)
	vb, to, head := w.virt.rx, &w.virt.to, q.virt.hdrLen
	first := vb.Len() - count
	at, n = at-head, n+head
	if pieces := vb.Writable(first); n <= len(pieces[0].Mem) { // as with most
		copy(pieces[0].Mem, m.mem[at:at+n])
		return
	}
	for i := first; n > 0; i++ {
		pieces := vb.Writable(i)
		for k := range pieces {
			piece := &pieces[k]
			part := min(n, int(piece.Len))
			if piece.Mem != nil {
				copy(piece.Mem, m.mem[at:at+part])
			} else {
				w.copyLater(q, piece, 0, m, at, part, to.n-1, true)
			}
			at += part
			if n -= part; n == 0 {
				break
			}
		}
	}
}

// vrxDeliver publishes the chains of the batch and notifies the guest if it asked for that.
// The chains of a packet that could not be written come back empty, which drivers drop.
func (w *worker) vrxDeliver(q *Queue) {
	vb, to, r := w.virt.rx, &w.virt.to, &q.virt.rx
	w.copyNow(q)
	for i := range to.pkts[:to.n] {
		p := &to.pkts[i]
		if p.failed {
			vb.Spread(int(p.first), int(p.count), 0)
			w.tally[DropRxGrant]++
			continue
		}
		w.tally[RxPackets]++
		w.tally[RxBytes] += p.n
		if p.gso {
			w.tally[RxGSO]++
		}
	}
	to.n = 0
	w.tally[RxSlots] += uint32(vb.Len())
	if r.publish(vb) {
		w.signal(r)
	}
}

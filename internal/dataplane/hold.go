// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// waitBytes bounds what one queue keeps of packets that wait for rx slots. It is
// xen-netback's bound too (XENVIF_RX_QUEUE_BYTES). What comes on top stays in
// the TAP, which has a bound of its own.
const waitBytes = 128 * netif.PageSize

// holdFrames is how many frames may be read beyond those there are slots for.
const holdFrames = waitBytes / (maxFramePages * netif.PageSize)

// holdBytes is the room of a hold: all the frames of a read that expected small
// ones may be of the largest size, and have to pass through here since there are
// too few slots, or the guest cannot take them uncut. Memory that is never used
// costs nothing.
const holdBytes = rxReads * maxFramePages * netif.PageSize

// keepBytes is what a hold keeps of its memory when it is empty: as much as the
// largest packets take when they are expected. What a read brought that expected
// small ones is given back. If memory is scarce it keeps no more than is its own.
const keepBytes = (netif.RxRingSize/maxFramePages + holdFrames) * maxFramePages * netif.PageSize

// hold keeps packets, in order, that were read from the TAP and cannot go to
// the guest yet. The TAP is read again only when it is empty, so it is filled
// by one batch of reads from the start, and needs no more than that. Its memory
// is taken when it is first needed.
type hold struct {
	room  int // octets; 0: holdBytes
	vif   *vifMemory
	paid  int // bytes that were taken from vif
	mem   arenaMem
	queue []held // those from first on are still here
	first int
	next  int // behind the last packet

	// segmenter cuts the head, if that is to be segmented and begun is true.
	segmenter offload.Segmenter
	begun     bool
}

// held is one packet: n octets at at, in as few pages as can be.
type held struct {
	at, n int
	plan  offload.RxPlan
	since time.Time
}

func (h *hold) empty() bool          { return h.first == len(h.queue) }
func (h *hold) len() int             { return len(h.queue) - h.first }
func (h *hold) head() *held          { return &h.queue[h.first] }
func (h *hold) frame(p *held) []byte { return h.mem.mem[p.at : p.at+p.n] }

// bytes is the memory that the packets take.
func (h *hold) bytes() int {
	if h.empty() {
		return 0
	}
	return h.next - h.head().at
}

// push copies a packet in. If there is no room it returns why: kept, DropRxBacklog or
// DropRxMemory.
func (h *hold) push(frame []byte, plan *offload.RxPlan, now time.Time) Counter {
	if h.mem.arena == nil {
		if h.room == 0 {
			h.room = holdBytes
		}
		m, err := newArenaMem(h.room)
		if err != nil {
			return DropRxBacklog
		}
		h.mem = m
		h.queue = make([]held, 0, rxReads)
	}
	at := alignUp(h.next, headroom)
	if at%netif.PageSize+len(frame) > netif.PageSize {
		at = alignUp(at, netif.PageSize)
	}
	end := at + len(frame)
	if end > h.room {
		return DropRxBacklog
	}
	if more := alignUp(end, memStep) - h.paid; more > 0 {
		if !h.vif.take(more) {
			return DropRxMemory
		}
		h.paid += more
	}
	copy(h.mem.mem[at:], frame)
	h.queue = append(h.queue, held{at: at, n: len(frame), plan: *plan, since: now})
	h.next = end
	return kept
}

// pop forgets the oldest packet. Its memory may be read until the next push.
func (h *hold) pop() {
	h.begun = false
	h.first++
	if h.empty() {
		h.clear()
	}
}

// clear forgets all packets.
func (h *hold) clear() {
	h.queue = h.queue[:0]
	h.first, h.next, h.begun = 0, 0, false
}

// trim gives memory back, if the hold is empty and has more than it needs. It is
// called when packets that were popped have been copied.
func (h *hold) trim() {
	if h.paid <= waitBytes || !h.empty() {
		return
	}
	keep := keepBytes
	if h.vif.scarce() {
		keep = waitBytes
	}
	if less := h.paid - alignUp(keep, memStep); less > 0 {
		_ = unix.Madvise(h.mem.mem[keep:], unix.MADV_DONTNEED)
		h.vif.give(less)
		h.paid -= less
	}
}

func (h *hold) close() {
	h.clear()
	h.mem.close()
	h.vif.give(h.paid)
	h.room, h.paid = 0, 0
}

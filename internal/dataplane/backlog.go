// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

const (
	// waitBytes bounds the packets that one queue keeps while they wait for rx
	// slots, as XENVIF_RX_QUEUE_BYTES does in xen-netback. The others stay in the
	// TAP, which has a bound of its own.
	waitBytes = 128 * netif.PageSize

	// backlogFrames is the number of frames that may be read beyond the slots at
	// hand.
	backlogFrames = waitBytes / (maxFramePages * netif.PageSize)

	// backlogBytes is the room of a backlog. A read that expected small packets may
	// bring rxReads of the largest size, and all of them may have to wait, for
	// slots or to be segmented. Memory that is never touched costs nothing.
	backlogBytes = rxReads * maxFramePages * netif.PageSize

	// keepBytes: memory an empty backlog retains; enough for a full batch of 64 KiB
	// packets. The rest is returned with MADV_DONTNEED. While memory is scarce it
	// retains waitBytes.
	keepBytes = (netif.RxRingSize/maxFramePages + backlogFrames) * maxFramePages * netif.PageSize
)

// backlog keeps packets, in order, that were read from the TAP and cannot go to the
// guest yet. The TAP is read again only when the backlog is empty, so one pass fills it
// from the start. Its memory is allocated when it is first needed.
type backlog struct {
	room  int // bytes; 0: backlogBytes
	vif   *vifMemory
	paid  int // bytes taken from vif
	mem   arenaMem
	queue []backlogged
	first int // index of the head in queue; those before it were removed
	next  int // end of the last packet in mem

	// segmenter cuts the head while cutting is set.
	segmenter offload.Segmenter
	cutting   bool
}

// backlogged is one packet of a backlog: n bytes at offset at of the memory, on as few
// pages as possible.
type backlogged struct {
	at, n int
	plan  offload.RxPlan
	since time.Time
}

func (l *backlog) empty() bool                { return l.first == len(l.queue) }
func (l *backlog) len() int                   { return len(l.queue) - l.first }
func (l *backlog) head() *backlogged          { return &l.queue[l.first] }
func (l *backlog) frame(p *backlogged) []byte { return l.mem.mem[p.at : p.at+p.n] }

// bytes returns the memory that the packets take.
func (l *backlog) bytes() int {
	if l.empty() {
		return 0
	}
	return l.next - l.head().at
}

// push copies a packet in. If there is no room it returns the reason to drop it:
// DropRxBacklog or DropRxMemory; otherwise notDropped.
func (l *backlog) push(frame []byte, plan *offload.RxPlan, now time.Time) Counter {
	if l.mem.arena == nil {
		if l.room == 0 {
			l.room = backlogBytes
		}
		m, err := newArenaMem(l.room)
		if err != nil {
			return DropRxBacklog
		}
		l.mem = m
		l.queue = make([]backlogged, 0, rxReads)
	}
	at := alignUp(l.next, headroom)
	if at%netif.PageSize+len(frame) > netif.PageSize {
		at = alignUp(at, netif.PageSize)
	}
	end := at + len(frame)
	if end > l.room {
		return DropRxBacklog
	}
	if more := alignUp(end, memStep) - l.paid; more > 0 {
		if !l.vif.take(more) {
			return DropRxMemory
		}
		l.paid += more
	}
	copy(l.mem.mem[at:], frame)
	l.queue = append(l.queue, backlogged{at: at, n: len(frame), plan: *plan, since: now})
	l.next = end
	return notDropped
}

// pop removes the head. Its memory can be read until the next push.
func (l *backlog) pop() {
	l.cutting = false
	l.first++
	if l.empty() {
		l.clear()
	}
}

// clear removes all packets.
func (l *backlog) clear() {
	l.queue = l.queue[:0]
	l.first, l.next, l.cutting = 0, 0, false
}

// segmentAll makes the data path segment the packets that have a GSO type, instead of
// the guest.
func (l *backlog) segmentAll() {
	for i := range l.queue[l.first:] {
		p := &l.queue[l.first+i].plan
		if p.GSOType != netif.GSONone {
			p.Action, p.GSOType, p.CsumBlank = offload.ActSegment, netif.GSONone, false
		}
	}
}

// trim returns memory if the backlog is empty and has more than it retains. Packets
// that were popped must have been copied.
func (l *backlog) trim() {
	if l.paid <= waitBytes || !l.empty() {
		return
	}
	keep := keepBytes
	if l.vif.scarce() {
		keep = waitBytes
	}
	if less := l.paid - alignUp(keep, memStep); less > 0 {
		_ = unix.Madvise(l.mem.mem[keep:], unix.MADV_DONTNEED)
		l.vif.give(less)
		l.paid -= less
	}
}

// close drops all packets and returns the memory. The backlog can be used again.
func (l *backlog) close() {
	l.clear()
	l.mem.close()
	l.vif.give(l.paid)
	l.room, l.paid = 0, 0
}

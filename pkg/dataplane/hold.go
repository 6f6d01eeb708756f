// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/offload"
)

// holdBytes bounds what one queue keeps of packets that wait for rx slots. It is
// xen-netback's bound too (XENVIF_RX_QUEUE_BYTES). What comes on top stays in
// the TAP, which has a bound of its own.
const holdBytes = 128 * netif.PageSize

// hold keeps packets, in order, that were read from the TAP and cannot go to
// the guest yet. Its memory is taken when it is first needed.
type hold struct {
	mem   arenaMem
	queue []held // oldest first
	next  int    // where the next one goes, page aligned
}

// held is one packet: n octets at at, which is page aligned.
type held struct {
	at, n int
	plan  offload.RxPlan
}

func (h *hold) empty() bool { return len(h.queue) == 0 }
func (h *hold) head() *held { return &h.queue[0] }
func (h *hold) bytes() int {
	n := 0
	for i := range h.queue {
		n += alignUp(h.queue[i].n, netif.PageSize)
	}
	return n
}

// push copies a packet in and reports whether there was room.
func (h *hold) push(frame []byte, plan offload.RxPlan) bool {
	if h.mem.arena == nil {
		m, err := newArenaMem(holdBytes)
		if err != nil {
			return false
		}
		h.mem = m
	}
	n := alignUp(len(frame), netif.PageSize)
	at, ok := h.place(n)
	if !ok {
		return false
	}
	copy(h.mem.mem[at:], frame)
	h.queue = append(h.queue, held{at: at, n: len(frame), plan: plan})
	h.next = at + n
	return true
}

// place finds n free octets in one piece, as in a circular buffer.
func (h *hold) place(n int) (at int, ok bool) {
	if h.empty() {
		return 0, n <= holdBytes
	}
	first := h.queue[0].at
	if h.next > first {
		if h.next+n <= holdBytes {
			return h.next, true
		}
		return 0, n <= first
	}
	return h.next, h.next+n <= first
}

// pop forgets the oldest packet. Its memory may still be read until the next
// push.
func (h *hold) pop() {
	copy(h.queue, h.queue[1:])
	h.queue = h.queue[:len(h.queue)-1]
}

func (h *hold) clear() { h.queue = h.queue[:0] }

func (h *hold) close() {
	h.clear()
	h.mem.close()
}

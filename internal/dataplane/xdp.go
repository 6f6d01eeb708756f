// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// A guest that runs an XDP program asks for headroom: room before each packet in its
// first page, which the program may fill. Linux's netfront hands packets of one page
// to the program and drops the others while one is attached (xennet_get_responses).
// Nor can a program tell that a checksum is blank, and what it sends back leaves
// without a flag that says so (xennet_xdp_xmit_one). So packets with headroom are
// segmented and have their checksums, as those of virtio-net are while a program is
// attached. One that is larger than a page still takes several, and its copies cross
// page ends, so that the kernel makes two of each.

// MaxXDPHeadroom is the most headroom a packet gets: it leaves room for its headers in
// the first page.
const MaxXDPHeadroom = netif.PageSize - rxHead

const _ = uint(netif.MaxXDPHeadroom - MaxXDPHeadroom)

// The largest frame takes no page more for it.
const _ = uint(maxFramePages*netif.PageSize - maxFrame - MaxXDPHeadroom)

// setXDPHeadroom changes where packets begin. What the queue holds is of use with the
// new headroom, too, unless the guest was to segment it.
func (q *Queue) setXDPHeadroom(n int) {
	cfg := &q.conn.cfg
	q.xdpRoom, q.xdpExtra, q.guest = n, 0, cfg.Guest
	if n != 0 {
		q.xdpExtra, q.guest = 1, offload.Guest{}
		q.hold.segmentAll()
		if q.moving != nil {
			q.moving.aside.segmentAll()
		}
	}
	q.maxRx = netif.PageSize - n
	if cfg.SG {
		q.maxRx = maxFrame
	}
	q.reckon()
	if !q.hold.empty() {
		q.worker.Load().schedule(q) // the first of them may need fewer slots now
	}
}

// segmentAll has the packets cut that a guest was to segment.
func (h *hold) segmentAll() {
	for i := range h.queue[h.first:] {
		p := &h.queue[h.first+i].plan
		if p.GSOType != netif.GSONone {
			p.Action, p.GSOType, p.CsumBlank = offload.ActSegment, netif.GSONone, false
		}
	}
}

// slotsOf is the number of data slots that n bytes take.
func (q *Queue) slotsOf(n int) uint32 { return slotsOf(n + q.xdpRoom) }

// extraSlots counts the slots that a packet's extras take.
func (q *Queue) extraSlots(plan *offload.RxPlan, hashed bool) (n uint32) {
	n = q.xdpExtra
	if plan.GSOType != netif.GSONone {
		n++
	}
	if hashed {
		n++
	}
	return n
}

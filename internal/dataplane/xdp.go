// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// A guest that runs an XDP program requests headroom: free bytes before each packet in
// its first page, for the program to use. While a program is attached, Linux's netfront
// passes it packets of one page and drops the others (xennet_get_responses).
// A program cannot see that a checksum is blank, and a packet that it sends back has no
// flag for it (xennet_xdp_xmit_one). So packets with headroom are segmented and have
// complete checksums, as with virtio-net while a program is attached. A packet larger
// than a page still takes several; its copies cross page ends, so the kernel makes two
// of each.

// MaxXDPHeadroom is the largest headroom in bytes. It leaves room for a packet's
// headers in the first page.
const MaxXDPHeadroom = netif.PageSize - rxHead

const _ = uint(netif.MaxXDPHeadroom - MaxXDPHeadroom)

// The largest frame needs no additional page for it.
const _ = uint(maxFramePages*netif.PageSize - maxFrame - MaxXDPHeadroom)

// setXDPHeadroom sets the offset of packets in their first page, in bytes. The backlog
// stays valid, except that the data path then segments packets that the guest was to
// segment.
func (q *Queue) setXDPHeadroom(n int) {
	cfg := &q.conn.cfg
	q.xdpRoom, q.xdpExtra, q.guest = n, 0, cfg.Guest
	if n != 0 {
		q.xdpExtra, q.guest = 1, offload.Guest{}
		q.backlog.segmentAll()
		if q.resteer != nil {
			q.resteer.aside.segmentAll()
		}
	}
	q.maxRx = netif.PageSize - n
	if cfg.SG {
		q.maxRx = maxFrame
	}
	q.sizePackets()
	if !q.backlog.empty() {
		q.worker.Load().sched.schedule(q) // the head may need fewer slots now
	}
}

// slotsOf returns the number of data slots for n bytes.
func (q *Queue) slotsOf(n int) uint32 { return slotsOf(n + q.xdpRoom) }

// extraSlots returns the number of slots for a packet's extras.
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

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// virtSegs is the most segments of one grant copy for virtqueues.
const virtSegs = 512

// virtCopies is the next grant copy for a batch of a virtqueue: buffers in regions that are
// not mapped. All of its segments are of one region, since each has its own device.
type virtCopies struct {
	segs   [virtSegs]gntdev.Segment
	packet [virtSegs]uint16 // packet of the batch that a segment belongs to
	n      int
	region uint32
	toward bool // to the guest
}

// copyLater adds the copy between the n bytes at off of a piece and those at at of the
// arena m. The kernel splits copies at page ends of either side, so they are split here.
func (w *worker) copyLater(q *Queue, p *virtqueue.Piece, off int, m *arenaMem, at, n int, packet int, toward bool) {
	c := &w.virt.copies
	if c.n > 0 && (c.region != p.Tag || c.toward != toward) {
		w.copyNow(q)
	}
	c.region, c.toward = p.Tag, toward
	domid := q.virt.memory.regions[p.Tag].domid
	for n > 0 {
		if c.n == virtSegs {
			w.copyNow(q)
		}
		addr := p.Addr + uint64(off)
		in := int(addr % netif.PageSize)
		part := min(n, netif.PageSize-in, netif.PageSize-at%netif.PageSize)
		if toward {
			m.toGuest(&c.segs[c.n], domid, vhostuser.Gref(addr), uint16(in), at, part)
		} else {
			m.fromGuest(&c.segs[c.n], domid, vhostuser.Gref(addr), uint16(in), at, part)
		}
		c.packet[c.n] = uint16(packet)
		c.n++
		off, at, n = off+part, at+part, n-part
	}
}

// copyNow makes the grant copy, and marks the packets that it fails for.
func (w *worker) copyNow(q *Queue) {
	c := &w.virt.copies
	if c.n == 0 {
		return
	}
	segs := c.segs[:c.n]
	c.n = 0
	q.grants = q.virt.memory.regions[c.region].grants
	okay, err := w.grantCopy(q, segs)
	if okay {
		return
	}
	for i := range segs {
		if err == nil && segs[i].Status() == gntdev.StatusOkay {
			continue
		}
		if k := c.packet[i]; c.toward {
			w.virt.to.pkts[k].failed = true
		} else {
			w.tx.pkts[k].drop = DropTxGrant
		}
	}
}

// virtFetcher copies indirect tables out of regions that are not mapped, as a grant copy of
// its queue.
type virtFetcher struct {
	*vhostuser.Fetcher
	q *Queue
}

// Fetch copies a part of an indirect table.
func (f *virtFetcher) Fetch(dst []byte, r virtqueue.Region, addr uint64) error {
	w := f.q.worker.Load()
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	slow := w.watch.slow.Load()
	err := f.Fetcher.Fetch(dst, r, addr)
	w.copied(slow)
	return err
}

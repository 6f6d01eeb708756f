// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

const _ = uint(rxHead - offload.MaxHeader)

// readsToPages reports whether large packets may be read straight into the guest's
// pages: it has static grants, and its packets need nothing but offloads.
func (q *Queue) readsToPages() bool {
	return q.static.Len() != 0 && q.xdpRoom == 0 && q.blocked.stale == 0 && q.steer == nil && q.resteer == nil &&
		q.conn.cfg.SG && !q.conn.cfg.Mcast.filter.Load()
}

// rxToPages reads large packets into the guest's pages as long as there are any. It
// reports whether the pass must end. If not, the next packets are read to the arena,
// because there are too few slots or not all of them are static grants.
func (w *worker) rxToPages(q *Queue, b *rxBatch) (end bool) {
	r := &q.reader
	want := r.run.wantLarge()
	for i := range want {
		at, ok := w.reads.places.page()
		n, aimed, err := 0, false, unix.Errno(0)
		if ok && b.free >= slotsOf(q.maxRx)+r.large.extras {
			n, aimed, err = r.nextToPages(w, q, at)
		}
		switch {
		case !aimed:
			r.run.read += i
			return i > 0
		case err == unix.EFAULT:
			w.tally[DropRxGrant]++
			return true
		case err != 0:
			q.tapIn.ready = r.run.note(i, false)
			return true
		}
		if w.planLarge(q, b, at, n); b.nSegs != 0 {
			w.reads.places.took(at + n) // its copy may still be due
		}
		if !r.large.last || !q.backlog.empty() {
			r.run.read += i + 1
			return true
		}
	}
	q.tapIn.ready = r.run.note(want, true)
	return true
}

// planLarge plans a packet of n bytes that was read into pages, with its first rxHead
// bytes at at of the arena.
func (w *worker) planLarge(q *Queue, b *rxBatch, at, n int) {
	if n <= rxHead {
		w.planFrame(q, b, rxFrame{at, n + q.vnetLen})
		return
	}
	head := w.rxMem.mem[at : at+rxHead]
	var plan offload.RxPlan
	asAimed := true
	if q.vnetLen != 0 {
		var v tap.VnetHdr
		v.Decode(w.rxMem.mem[at-q.vnetLen : at])
		if !offload.NeedsParse(v.Flags, v.GSOType) {
			plan.DataValidated = v.Flags&tap.VnetDataValid != 0
		} else {
			h, _ := offload.Parse(head, n)
			p, err := offload.PlanRx(v, h, n, q.guest)
			// A packet that needs work is completed in the arena.
			asAimed = err == nil && p.Action == offload.ActPass && !p.WritePseudo
			plan = p
		}
	}
	to := &w.reads.pages
	hash, hashed := hashOf(q.hash, head)
	extras := q.extraSlots(&plan, hashed)
	if !asAimed || extras != to.extras {
		w.fetchBack(q, at, n)
		w.planFrame(q, b, rxFrame{at, n + q.vnetLen})
		return
	}
	copy(to.page(q.static, 0)[:rxHead], head)
	p := rxSlots{b: b, left: n}
	p.data(to.reqs[0], &plan, true)
	p.extras(extras, &plan, hash, hashed)
	k := 1
	for ; p.left > netif.PageSize; k++ {
		full := netif.RxResponse{ID: to.reqs[k].ID, Flags: netif.RxMoreData, Status: netif.PageSize}
		b.slots[b.nSlots%netif.RxRingSize] = full.Slot()
		b.nSlots++
		p.left -= netif.PageSize
	}
	if p.left > 0 {
		p.data(to.reqs[k], &plan, false)
		k++
	}
	w.tally[StaticHits] += uint32(k)
	w.countExtras(q, n, &plan, hashed)
	b.consume(q, n, slotsOf(n)+extras)
}

// fetchBack completes in the arena a packet of n bytes whose first rxHead bytes are
// at at. The guest may have changed the other bytes, which harms only the guest.
func (w *worker) fetchBack(q *Queue, at, n int) {
	frame := w.rxMem.mem[at : at+n]
	for k := 0; k*netif.PageSize < n; k++ {
		from := k * netif.PageSize
		skip := 0
		if k == 0 {
			skip = rxHead
		}
		copy(frame[from+skip:min(n, from+netif.PageSize)], w.reads.pages.page(q.static, k)[skip:])
	}
}

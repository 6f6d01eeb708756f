// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

// A large packet is read from the TAP straight into the static grants that the
// guest has posted, so that its data is copied once on its way and not twice.
// Which slots a packet takes depends on its extras, which are not known before it
// was read; so they are taken to be those of the packet before it, and a packet
// that turns out otherwise is fetched back into the arena.
//
// Its first octets do not go to the guest's page at once: decisions are made on
// them, and the guest could change them meanwhile.

// rxHead is how many they are: enough for all headers.
const rxHead = 512

const _ = uint(rxHead - offload.MaxHeader)

// rxInto is the slots that a read goes to. Each request is read once, here.
type rxInto struct {
	reqs   [maxFramePages + 2]netif.RxRequest
	extras uint32 // slots left out behind the first
	pages  int
	pieces int // of w.iov
}

// rxLarge reads large packets as long as there are, and reports whether the pass
// is to end. If it is not, they are read the usual way: because packets are not
// large any more, or not all slots are static grants.
func (w *worker) rxLarge(q *Queue, b *rxBatch) (end bool) {
	if q.static.Len() == 0 || q.xdpRoom != 0 || q.stale > 0 || q.steer != nil || q.moving != nil || !q.conn.cfg.SG || q.conn.cfg.Mcast.filter.Load() {
		return false
	}
	want := rxReads
	if q.rxRun == 0 && q.rxLast <= 1 {
		want = 1 // see Queue.ran
	}
	for i := range want {
		if b.free < slotsOf(q.maxRx)+q.largeExtras || !w.aim(q, b) {
			q.rxRun += i
			return i > 0
		}
		n, err := w.readInto(q, b, rxFrameAt(i, true))
		switch {
		case err == unix.EFAULT:
			// What the guest granted cannot be written.
			w.tally[DropRxGrant]++
			q.large = false
			return true
		case err != 0:
			q.ran(i, i+1)
			return true
		}
		w.takeLarge(q, b, rxFrameAt(i, true), n-q.vnetLen)
		if q.large = n-q.vnetLen > smallPacket; !q.large || !q.hold.empty() {
			q.rxRun += i + 1
			return true
		}
	}
	q.ran(want, want)
	return true
}

// aim points w.iov at the pages of the next slots, and reports whether they are
// all static grants that may be written. Pages that follow each other here, as
// those do that were granted in one message and posted in that order, are one
// piece: the kernel takes its time for each.
func (w *worker) aim(q *Queue, b *rxBatch) bool {
	to := &b.into
	to.extras, to.pages = q.largeExtras, int(slotsOf(q.maxRx))
	i := q.rx.ReqCons()
	var from, end uintptr // of the piece that is not in w.iov yet
	pieces := 1
	for k := range to.reqs[:to.pages] {
		r := q.rx.Request(i)
		to.reqs[k] = r
		g := q.static.Lookup(r.Gref)
		if g.Page == nil || g.ReadOnly {
			return false
		}
		i = i.Add(1)
		addr := pageAddr(g.Page)
		switch {
		case k == 0:
			i = i.Add(to.extras)
			from = addr + rxHead
		case addr != end:
			w.iov.Set(pieces, from, uint32(end-from))
			pieces++
			from = addr
		}
		end = addr + netif.PageSize
	}
	w.iov.Set(pieces, from, uint32(end-from))
	to.pieces = pieces + 1
	return true
}

// readInto reads a packet: its vnet header and first octets to at of the rx
// arena, the rest into the pages.
func (w *worker) readInto(q *Queue, b *rxBatch, at int) (n int, err unix.Errno) {
	w.iov.Set(0, w.rxMem.addr(at-q.vnetLen), uint32(q.vnetLen+rxHead))
	w.tally[Syscalls]++
	w.tally[TapReadCalls]++
	r, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(q.tap.FD()), w.iov.At(0), uintptr(b.into.pieces))
	return int(r), e
}

// takeLarge plans a packet of n octets that was read into pages.
func (w *worker) takeLarge(q *Queue, b *rxBatch, at, n int) {
	if n <= rxHead {
		w.takeFrame(q, b, rxFrame{at, n + q.vnetLen})
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
			// What is more to be done to it than that is done in the arena.
			asAimed = err == nil && p.Action == offload.ActPass && !p.WritePseudo
			plan = p
		}
	}
	hash, hashed := q.hash.of(head)
	extras := q.extraSlots(&plan, hashed)
	if !asAimed || extras != b.into.extras {
		w.fetchBack(q, b, at, n)
		w.takeFrame(q, b, rxFrame{at, n + q.vnetLen})
		return
	}
	to := &b.into
	copy(w.intoPage(q, to, 0)[:rxHead], head)
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
	w.placed(q, b, n, slotsOf(n)+extras)
}

// intoPage is the page of a slot that was aimed at. The table is as it was then.
func (w *worker) intoPage(q *Queue, to *rxInto, k int) *staticgrant.Page {
	return q.static.Lookup(to.reqs[k].Gref).Page
}

// fetchBack completes in the arena a packet whose first octets are at at. What
// the guest may have changed in it is the guest's own.
func (w *worker) fetchBack(q *Queue, b *rxBatch, at, n int) {
	frame := w.rxMem.mem[at : at+n]
	for k := 0; k*netif.PageSize < n; k++ {
		from := k * netif.PageSize
		skip := 0
		if k == 0 {
			skip = rxHead
		}
		copy(frame[from+skip:min(n, from+netif.PageSize)], w.intoPage(q, &b.into, k)[skip:])
	}
}

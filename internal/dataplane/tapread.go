// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

const (
	// rxReads is the maximum of packets that are read from a TAP queue with one call.
	rxReads = 64

	// rxCalls is the maximum of packets that are read with a system call each before
	// they are planned: few enough to be still in the cache.
	rxCalls = 32

	// rxFew: a read of up to this many packets uses system calls even with io_uring,
	// because it may find the TAP empty.
	rxFew = 8

	// rxParts is the number of reads of rxReads packets in a pass, as long as the
	// packets are small. One grant copy, one commit and one event serve them all.
	rxParts = 3

	// rxSure: after this many packets without an empty read a backlog is assumed;
	// one failed read is then amortised.
	rxSure = 8 * rxReads

	// rxHead is the size in bytes of the part of a large packet that is read to
	// private memory even if the rest is read to the guest's pages. It holds all
	// headers, see [offload.MaxHeader]. Decisions are made on these bytes, and the
	// guest could change them in its pages.
	rxHead = 512
)

// tapReader decides how the packets of one TAP queue are read: how many at a time,
// with which system calls, and to which places. It estimates from past reads how many
// packets wait and how large they are. It belongs to the queue's worker, whose memory and
// io_uring it uses.
//
// next reads to the rx arena, nextToPages to the guest's pages. useRing, resize and hint
// tell the reader what it cannot see itself.
type tapReader struct {
	tap     *tap.Queue
	vnetLen int // bytes of vnet header on the TAP, 0 or tap.VnetHdrLen
	readLen int // bytes that a read asks for, vnet header included

	id     int  // number of the queue's file in the io_uring
	byRing bool // the io_uring returns from reads that find nothing

	run   readRun
	slots int // maximum of slots that one packet takes
	large struct {
		some   bool   // the last read brought large packets
		last   bool   // the last packet was large
		extras uint32 // extra slots of the last large packet
	}
}

// tapRead is the result of one read.
type tapRead struct {
	frames []rxFrame // valid until the next read
	asked  int       // packets asked for
	large  bool      // some of them are large
	empty  bool      // the TAP was found empty after them
	more   bool      // the TAP should be read again at once
}

// next reads up to most packets into the rx arena. free is the number of rx slots at
// hand. It asks for at least atLeast packets, even if it expects fewer. A large packet
// starts at a page.
func (r *tapReader) next(w *worker, free, most, atLeast int) (t tapRead) {
	t.asked = min(r.want(free, r.usesRing(w), atLeast), most)
	frames, full := r.read(w, t.asked)
	t.frames = frames
	if n := len(t.frames); n > 0 {
		t.large = r.measure(w, t.frames)
		r.large.some = t.large
	}
	t.empty = !full
	t.more = r.run.note(len(t.frames), full)
	return t
}

// want returns the number of packets to ask for, with free slots at hand.
func (r *tapReader) want(free int, byRing bool, atLeast int) int {
	want := min(r.run.want(byRing), free)
	if r.large.some {
		// No more than slots and backlog can take if all of them are large.
		want = min(want, free/r.slots+backlogFrames)
	}
	return max(want, 1, min(atLeast, rxReads))
}

// resize sets the maximum of slots that one packet takes, and forgets the extras of the
// last large packet.
func (r *tapReader) resize(slots int) {
	r.large.last, r.large.extras = false, 0
	r.slots = slots
}

// hint stores the number of extra slots that a large packet took.
func (r *tapReader) hint(extras uint32) { r.large.extras = extras }

// usesRing reports whether the next packets are read with io_uring. On hosts where that
// takes longer than a system call for each packet, only an endless run is, because it
// then makes fewer calls.
func (r *tapReader) usesRing(w *worker) bool {
	return w.uring.ring != nil && r.byRing && (!w.reads.ringSlow || r.run.endless())
}

// read reads up to want packets into the rx arena and returns them. full is set if there
// may be more: it read want packets, or a large one ended the read, or there is no room.
//
// Each empty read is expensive with io_uring. So the first packet is read with a system
// call, the cheapest way to find the TAP empty, unless the run is endless. Large packets
// gain nothing from io_uring.
func (r *tapReader) read(w *worker, want int) (frames []rxFrame, full bool) {
	s := &w.reads
	switch {
	case r.large.some:
		return r.readPages(w, s.frames[:want])
	case want <= rxFew || !r.usesRing(w):
		return r.readDense(w, s.frames[:want])
	}
	frames = s.frames[:want]
	for i := range frames {
		frames[i] = rxFrame{at: rxRingAt(s.places.ring + i)}
	}
	s.places.ring += want
	got := 0
	if !r.run.endless() {
		if r.readByCalls(w, frames[:1], r.readLen) == 0 {
			return nil, false
		}
		got = 1
	}
	got = r.readByRing(w, frames, got)
	return frames[:got], got == want
}

// readDense reads small packets with system calls, up to a larger one.
func (r *tapReader) readDense(w *worker, frames []rxFrame) (_ []rxFrame, full bool) {
	p := &w.reads.places
	first, room := p.half()
	want := min(len(frames), room)
	for i := range frames[:want] {
		frames[i] = rxFrame{at: rxDenseAt(first + i)}
	}
	got := r.readByCalls(w, frames[:want], rxDense+r.vnetLen)
	if got == 0 {
		return nil, false
	}
	last := frames[got-1]
	p.took(last.at + last.n)
	return frames[:got], got == want || last.overruns(r.vnetLen)
}

// readPages reads packets with a system call each, one behind the other. Each starts at a
// page.
func (r *tapReader) readPages(w *worker, frames []rxFrame) (_ []rxFrame, full bool) {
	p := &w.reads.places
	for i := range frames {
		at, ok := p.page()
		if !ok {
			return frames[:i], true
		}
		f := &frames[i]
		if *f = (rxFrame{at: at}); r.readByCalls(w, frames[i:i+1], r.readLen) == 0 {
			return frames[:i], false
		}
		p.took(at + f.n)
	}
	return frames, true
}

// measure moves large packets to the start of a page, for those that were read where
// small ones were expected. It reports whether any packet is large.
func (r *tapReader) measure(w *worker, frames []rxFrame) (some bool) {
	large := false
	for i := range frames {
		f := &frames[i]
		if large = f.n-r.vnetLen > smallPacket; large || f.overruns(r.vnetLen) {
			some = true
			toPageStart(w.rxMem.mem, f, r.vnetLen)
			if f.at < rxLineBytes {
				w.reads.places.took(f.at + f.n) // it is the last one
			}
		}
	}
	r.large.last = large
	return some
}

// A large packet is read from the TAP straight into the static grants that the guest
// has posted, so that its data is copied once and not twice. Which slots a packet
// takes depends on its extras, which are known only after it was read. They are
// assumed to be those of the large packet before; a packet with others is copied
// back to the arena.

// pageTarget is the target of a read into the guest's pages: the slots' requests, each
// read once.
type pageTarget struct {
	reqs   [maxFramePages + 2]netif.RxRequest
	extras uint32 // slots left free for extras behind the first
	pages  int
	pieces int // number of iovecs in worker.iov
}

// page returns the page of slot k. The table of static grants is the one that aim
// used.
func (p *pageTarget) page(static *staticgrant.Table, k int) *staticgrant.Page {
	return static.Lookup(p.reqs[k].Gref).Page
}

// aim points the worker's iovecs at the pages of the next slots, and reports whether all
// of them are writable static grants. Consecutive pages become one piece: the kernel's
// time grows with the number of pieces. Pages that were granted in one message and posted
// in order are consecutive.
func (r *tapReader) aim(w *worker, q *Queue) bool {
	to := &w.reads.pages
	to.extras, to.pages = r.large.extras, int(slotsOf(q.maxRx))
	i := q.rx.ReqCons()
	var from, end uintptr // start and end of the piece that is not in w.uring.iov yet
	pieces := 1
	for k := range to.reqs[:to.pages] {
		req := q.rx.Request(i)
		to.reqs[k] = req
		g := q.static.Lookup(req.Gref)
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
			w.uring.iov.Set(pieces, from, uint32(end-from))
			pieces++
			from = addr
		}
		end = addr + netif.PageSize
	}
	w.uring.iov.Set(pieces, from, uint32(end-from))
	to.pieces = pieces + 1
	return true
}

// nextToPages reads one packet to the pages of the next slots: its vnet header and first
// rxHead bytes to at of the rx arena, the rest into the pages. It returns the packet's
// length without the vnet header. aimed is false if not all of the pages are writable
// static grants; then nothing was read. After EFAULT, a page that cannot be written, next
// reads the next packets.
func (r *tapReader) nextToPages(w *worker, q *Queue, at int) (n int, aimed bool, err unix.Errno) {
	if !r.aim(w, q) {
		return 0, false, 0
	}
	w.uring.iov.Set(0, w.rxMem.addr(at-r.vnetLen), uint32(r.vnetLen+rxHead))
	w.tally[Syscalls]++
	w.tally[TapReadCalls]++
	got, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(r.tap.FD()), w.uring.iov.At(0), uintptr(w.reads.pages.pieces))
	n = int(got) - r.vnetLen
	switch e {
	case 0:
		r.large.last = n > smallPacket
	case unix.EFAULT:
		r.large.last = false
	}
	return n, true, e
}

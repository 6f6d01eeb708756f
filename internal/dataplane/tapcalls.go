// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rawio"
)

// tapReads holds the buffers and measurements that the tapReaders of one worker's queues
// share. They use it in turn.
type tapReads struct {
	frames [rxReads]rxFrame // of the last read
	calls  [rxReads]rawio.Call
	places rxPlaces   // of the rx arena that hold packets of this pass
	pages  pageTarget // of the last read to pages

	compared bool // ringSlow is known
	ringSlow bool // a read with io_uring takes longer than a system call
}

// readByCalls reads a packet to the place of each of frames with a system call each. It
// stops when the TAP is empty, or after a packet of more than most bytes, vnet header
// included. It returns the number of packets.
func (r *tapReader) readByCalls(w *worker, frames []rxFrame, most int) (got int) {
	calls := w.reads.calls[:len(frames)]
	for i := range calls {
		calls[i].Addr, calls[i].Len = w.rxMem.addr(frames[i].at-r.vnetLen), uint32(r.readLen)
	}
	got = rawio.Until(unix.SYS_READ, r.tap.FD(), calls, most)
	for i := range frames[:got] {
		frames[i].n = int(calls[i].Res)
	}
	made := uint32(got)
	if got < len(frames) && (got == 0 || frames[got-1].n <= most) {
		made++ // the read that found the TAP empty
	}
	w.tally[Syscalls] += made
	w.tally[TapReadCalls] += made
	return got
}

// readByRing reads packets to the places of frames[got:] with one call of io_uring, and
// moves the frames of completed reads to the front. It returns their number, got
// included.
func (r *tapReader) readByRing(w *worker, frames []rxFrame, got int) int {
	for i := got; i < len(frames); i++ {
		addr := w.rxMem.addr(frames[i].at - r.vnetLen)
		if w.uring.fixed {
			w.uring.ring.ReadFixed(r.id, addr, uint32(r.readLen), bufRx, uint64(i))
		} else {
			w.uring.ring.Read(r.id, addr, uint32(r.readLen), uint64(i))
		}
	}
	w.tally[Syscalls]++
	w.tally[TapReadCalls]++
	_, err := w.uring.ring.Submit()
	for _, c := range w.uring.cqes[:w.uring.ring.Completions(w.uring.cqes[:])] {
		frames[c.User].n = max(int(c.Res), 0)
	}
	if err != nil {
		w.ringFailed(err)
	}
	// Reads run in order, so reads that returned a packet come before those that did
	// not, unless a packet arrived in between.
	for i := got; i < len(frames); i++ {
		if frames[i].n > 0 {
			frames[got] = frames[i]
			got++
		}
	}
	return got
}

// useRing records that the queue's file has the number id in the worker's io_uring. With
// nowait the ring cancels reads that find the TAP empty, instead of waiting for a packet.
// The first queue with nowait is used to compare io_uring with system calls.
func (r *tapReader) useRing(w *worker, id int, nowait bool) {
	r.id, r.byRing = id, nowait
	if nowait && !w.reads.compared {
		r.compare(w)
	}
}

// compare measures whether a read through io_uring takes longer than a system call.
// That depends on the host: on the kernel's entry and exit code, on a hypervisor in
// between, on mitigations. It reads 0 bytes, which takes no packet from the TAP.
func (r *tapReader) compare(w *worker) {
	const tries = 8 // the shortest time of each is compared
	least := [2]time.Duration{time.Hour, time.Hour}
	calls := w.reads.calls[:]
	clear(calls)
	for range tries {
		start := time.Now()
		rawio.All(unix.SYS_READ, r.tap.FD(), calls)
		least[0] = min(least[0], time.Since(start))

		start = time.Now()
		for range calls {
			w.uring.ring.Read(r.id, 0, 0, 0)
		}
		if _, err := w.uring.ring.Submit(); err != nil {
			w.ringFailed(err)
			return
		}
		w.uring.ring.Completions(w.uring.cqes[:])
		least[1] = min(least[1], time.Since(start))
	}
	w.reads.ringSlow, w.reads.compared = least[1] > least[0], true
}

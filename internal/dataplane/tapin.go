// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rawio"
)

// readTap reads up to want packets into the rx arena and lists those that came in
// b.frames. It returns how many there are, and is at its end when
// those are fewer than want.
//
// io_uring pays dearly for each of the reads it was given in vain. So the first
// is a call of its own, which finds out most cheaply that there is nothing more,
// unless sure says that there will be. On kernels where io_uring pays too much for
// that it gets no reads.
func (w *worker) readTap(q *Queue, b *rxBatch, want int, sure bool) (got int) {
	byRing := w.readsByRing(q) && want > rxFew
	dense := !byRing && !q.someLarge
	for i := range want {
		at := b.read + i
		if dense {
			at = rxDenseAt(at)
		} else {
			at = rxFrameAt(at, q.someLarge)
		}
		b.frames[i] = rxFrame{at: at}
	}
	b.read += want
	if !byRing {
		most := q.readLen
		if dense {
			most = rxDense + q.vnetLen
		}
		return w.readCalls(q, b.frames[:want], most)
	}
	if !sure {
		if w.readCalls(q, b.frames[:1], q.readLen) == 0 {
			return 0
		}
		got = 1
	}
	for i := got; i < want; i++ {
		w.ring.ReadFixed(q.id, w.rxMem.addr(b.frames[i].at-q.vnetLen), uint32(q.readLen), bufRx, uint64(i))
	}
	w.tally[Syscalls]++
	w.tally[TapReadCalls]++
	_, err := w.ring.Submit()
	for _, c := range w.cqes[:w.ring.Completions(w.cqes[:])] {
		b.frames[c.User].n = max(int(c.Res), 0)
	}
	if err != nil {
		w.ringFailed(err)
	}
	// Reads run in order, so what came stands before what did not, unless a
	// packet arrived in between.
	for i := got; i < want; i++ {
		if b.frames[i].n > 0 {
			b.frames[got] = b.frames[i]
			got++
		}
	}
	return got
}

// readsByRing reports whether the next packets are read with io_uring. Where that
// takes longer than a system call for each, only a backlog that does not end is,
// to make few calls of it.
func (w *worker) readsByRing(q *Queue) bool {
	return w.ring != nil && q.uringReads && (!w.ringDear || q.rxRun >= rxSure)
}

// compareReads finds out whether a read through io_uring takes longer than a system
// call. That depends on the host: what the kernel has to do on its way in and out,
// whether a hypervisor is in between, and what the functions in between cost. It
// reads nothing, which takes no packet from the TAP. The queue's file has the number id
// in the io_uring.
func (w *worker) compareReads(q *Queue, id int) {
	const tries = 8 // of which the shortest counts
	least := [2]time.Duration{time.Hour, time.Hour}
	calls := w.reads[:]
	clear(calls)
	for range tries {
		start := time.Now()
		rawio.All(unix.SYS_READ, q.tap.FD(), calls)
		least[0] = min(least[0], time.Since(start))

		start = time.Now()
		for range calls {
			w.ring.Read(id, 0, 0, 0)
		}
		if _, err := w.ring.Submit(); err != nil {
			w.ringFailed(err)
			return
		}
		w.ring.Completions(w.cqes[:])
		least[1] = min(least[1], time.Since(start))
	}
	w.ringDear, w.compared = least[1] > least[0], true
}

// readCalls reads a packet to the place of each of frames with a system call each,
// until there are no more, or one had more than most octets, vnet header included.
// It returns how many came.
func (w *worker) readCalls(q *Queue, frames []rxFrame, most int) (got int) {
	calls := w.reads[:len(frames)]
	for i := range calls {
		calls[i].Addr, calls[i].Len = w.rxMem.addr(frames[i].at-q.vnetLen), uint32(q.readLen)
	}
	got = rawio.Until(unix.SYS_READ, q.tap.FD(), calls, most)
	for i := range frames[:got] {
		frames[i].n = int(calls[i].Res)
	}
	made := uint32(got)
	if got < len(frames) && (got == 0 || frames[got-1].n <= most) {
		made++ // one in vain
	}
	w.tally[Syscalls] += made
	w.tally[TapReadCalls] += made
	return got
}

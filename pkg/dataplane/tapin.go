// SPDX-License-Identifier: Apache-2.0

package dataplane

import "golang.org/x/sys/unix"

// readTap reads up to want packets into part sub of the rx arena and lists those
// that came in b.frames. It returns how many there are.
//
// The first is read with a call of its own: that there is nothing more is found
// out most cheaply that way, since io_uring pays for each of the reads it was
// given in vain. On kernels where it pays too much for that it gets none.
func (w *worker) readTap(q *Queue, b *rxBatch, sub, want int) int {
	if !w.readOne(q, b, 0, rxFrameAt(sub, 0)) {
		return 0
	}
	if w.ring == nil || want-1 < uringMin || !q.uringReads {
		for i := 1; i < want; i++ {
			if !w.readOne(q, b, i, rxFrameAt(sub, i)) {
				return i
			}
		}
		return want
	}
	for i := 1; i < want; i++ {
		w.ring.ReadFixed(q.id, w.rxMem.addr(rxFrameAt(sub, i)-q.vnetLen), uint32(q.readLen), bufRx, uint64(i))
		b.frames[i].n = 0
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
	got := 1
	for i := 1; i < want; i++ {
		if b.frames[i].n > 0 {
			b.frames[got] = rxFrame{rxFrameAt(sub, i), b.frames[i].n}
			got++
		}
	}
	return got
}

// readOne reads a packet as frame i of the batch to at, and reports whether there
// was one.
func (w *worker) readOne(q *Queue, b *rxBatch, i, at int) bool {
	w.tally[Syscalls]++
	w.tally[TapReadCalls]++
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(q.tap.FD()), w.rxMem.addr(at-q.vnetLen), uintptr(q.readLen))
	b.frames[i] = rxFrame{at, int(n)}
	return e == 0
}

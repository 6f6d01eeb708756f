// SPDX-License-Identifier: Apache-2.0

package dataplane

// readTap reads up to want packets into the rx arena, frame i at rxFrameAt(i)
// with its vnet header before it, and returns how many came. It stops at the
// first read that finds nothing.
func (w *worker) readTap(q *Queue, b *rxBatch, want int) int {
	w.tally[TapReadCalls]++
	if w.ring == nil || want == 1 {
		return w.readPlain(q, b, want)
	}
	for i := range want {
		w.ring.ReadFixed(q.id, w.rxMem.addr(rxFrameAt(i)-q.vnetLen), uint32(q.readLen), bufRx, uint64(i))
		b.frames[i].n = -1
	}
	w.tally[Syscalls]++
	if _, err := w.ring.Submit(); err != nil {
		w.ringFailed(err)
		return 0
	}
	for _, c := range w.cqes[:w.ring.Completions(w.cqes[:])] {
		b.frames[c.User].n = int(c.Res)
	}
	// Reads complete in order, so what came stands before what did not. A
	// packet behind a failed read, which can only be one that arrived in
	// between, moves up.
	got := 0
	for i := range want {
		if b.frames[i].n < 0 {
			continue
		}
		if i != got {
			w.moveFrame(q, b, got, i)
		}
		got++
	}
	return got
}

func (w *worker) moveFrame(q *Queue, b *rxBatch, to, from int) {
	n := b.frames[from].n
	dst, src := rxFrameAt(to)-q.vnetLen, rxFrameAt(from)-q.vnetLen
	copy(w.rxMem.mem[dst:dst+n], w.rxMem.mem[src:src+n])
	b.frames[to].n = n
}

// readPlain reads packets one call each.
func (w *worker) readPlain(q *Queue, b *rxBatch, want int) int {
	for i := range want {
		at := rxFrameAt(i) - q.vnetLen
		w.tally[Syscalls]++
		n, err := q.tap.Read(w.rxMem.mem[at : at+q.readLen])
		if err != nil {
			return i
		}
		b.frames[i].n = n
	}
	return want
}

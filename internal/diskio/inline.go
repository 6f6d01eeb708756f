// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"time"

	"github.com/netbackd/netbackd/internal/disk"
)

// Writes through the page cache are copies to memory, as a rule. Where the file system
// cannot promise that (ext4), io_uring gives each to another thread, whose wake-up costs
// more than the copy of some KiB. So the engine makes such writes itself, after everything
// else was submitted. The kernel may stop a writer until the disk has caught up; then the
// engine leaves its writes to io_uring for a while.
const (
	// inlineAlign: a write of whole pages needs no read before it.
	inlineAlign = 4096

	// inlineTurn bounds the time of one turn's writes: the rest goes to io_uring.
	inlineTurn = time.Millisecond

	// inlineSlow is the time of a write that was stopped. After it, writes go to
	// io_uring for inlinePause, and for twice the last time, up to inlineLongest, if the
	// next one is stopped soon.
	inlineSlow    = 5 * time.Millisecond
	inlinePause   = time.Second
	inlineLongest = time.Minute
)

// inlineWrites has the writes that the engine makes itself.
type inlineWrites struct {
	on    bool          // the disk is a file with page cache
	queue []op          // cap: the engine's entries
	until time.Time     // no writes before: the end of the last pause
	pause time.Duration // its length
}

// setDisk decides whether writes to d are made by the engine.
func (w *inlineWrites) setDisk(d *disk.Disk) {
	direct := true
	if d != nil {
		direct, _ = d.Direct()
	}
	w.on = !direct && d.Kind() == disk.KindFile && !d.ReadOnly()
}

// takes returns whether the engine makes a write itself.
func (w *inlineWrites) takes(off uint64, n uint32) bool {
	return w.on && (off|uint64(n))%inlineAlign == 0
}

// takesParts returns whether the engine makes a write of several parts itself.
func (w *inlineWrites) takesParts(off uint64, iov uintptr, parts uint32) bool {
	if !w.on || off%inlineAlign != 0 {
		return false
	}
	n := uint64(0)
	for _, part := range iovecs(iov, uint64(parts)) {
		n += part.len
	}
	return n%inlineAlign == 0
}

// stopped begins a pause, as a write was slow. Writes were well since the last pause for as
// long as it took, or the new one is longer.
func (w *inlineWrites) stopped(now time.Time) {
	if now.Sub(w.until) < w.pause {
		w.pause = min(2*w.pause, inlineLongest)
	} else {
		w.pause = inlinePause
	}
	w.until = now.Add(w.pause)
}

// queueInline has the engine, which is not full, make a write in the next SubmitAndWait.
func (e *Engine) queueInline(o op) bool {
	e.owed++
	e.inline.queue = append(e.inline.queue, o)
	return true
}

// runInline makes the writes, or gives them to the ring when they take long.
func (e *Engine) runInline() {
	w := &e.inline
	start := time.Now()
	now := start
	for i := range w.queue {
		o := &w.queue[i]
		if now.Before(w.until) || now.Sub(start) > inlineTurn {
			e.owed--
			if o.kind == opWritev {
				e.ring.Writev(diskSlot, o.off, o.addr, uint32(o.n), o.user)
			} else {
				e.ring.Write(diskSlot, o.off, o.addr, uint32(o.n), o.user)
			}
			continue
		}
		e.local.put(Completion{User: o.user, Res: o.run(nil)})
		last := now
		if now = time.Now(); now.Sub(last) > inlineSlow {
			w.stopped(now)
		}
	}
	w.queue = w.queue[:0]
}

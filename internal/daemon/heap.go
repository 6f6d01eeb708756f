// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// gcPercent makes frequent collections while devices come and go. The data path
	// allocates nothing and the heap is small, so they are cheap and keep the daemon small.
	gcPercent = 50

	// heapQuiet is the time without a collection after which the heap is put to rest.
	heapQuiet = 2 * time.Second

	// restingRoom is the number of bytes that a heap at rest may grow by before it is
	// collected again, beside an eighth of its size.
	restingRoom = 1 << 20
)

// heap puts the garbage collector to rest while the daemon has nothing to do. Without that
// Go collects every two minutes, although nothing was allocated, and keeps the memory that
// the connecting of many devices has left.
//
// While the heap rests, only its growth by restingRoom makes Go collect. That collection
// finds the sentinel unused, which ends the rest. The heap rests again when there was no
// collection for heapQuiet.
//
// Otherwise the heap has the soft limit that the daemon's settings allow, or that of
// GOMEMLIMIT if that is lower: near it Go collects more often, so that garbage does not take
// more than guests may.
type heap struct {
	quiet time.Duration // heapQuiet
	woken chan struct{} // there was a collection while the heap rested
	limit func() int64  // bytes that the settings allow at present; nil: any number
	most  int64         // the limit of GOMEMLIMIT
}

func newHeap(limit func() int64) *heap {
	return &heap{quiet: heapQuiet, woken: make(chan struct{}, 1), limit: limit, most: debug.SetMemoryLimit(-1)}
}

// watch runs until ctx ends.
func (h *heap) watch(ctx context.Context) {
	h.wake()
	quiet := time.NewTimer(h.quiet)
	defer quiet.Stop()
	seen := collections()
	for {
		select {
		case <-ctx.Done():
			debug.SetMemoryLimit(h.most)
			debug.SetGCPercent(gcPercent)
			return
		case <-h.woken:
			h.wake()
			seen = collections()
			quiet.Reset(h.quiet)
		case <-quiet.C:
			if now := collections(); now != seen {
				seen = now
				h.bound() // there may be more devices
				quiet.Reset(h.quiet)
				continue
			}
			h.rest()
		}
	}
}

// wake lets Go collect as usual.
func (h *heap) wake() {
	h.bound()
	debug.SetGCPercent(gcPercent)
}

// bound sets the soft limit.
func (h *heap) bound() {
	limit := h.most
	if h.limit != nil {
		limit = min(limit, h.limit())
	}
	debug.SetMemoryLimit(limit)
}

// rest frees what is unused, and makes Go collect no more until the heap grows.
func (h *heap) rest() {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + restingRoom + int64(m.HeapAlloc/8))
	debug.SetGCPercent(-1)
	// It has a pointer: Go puts several small objects without one into a block, and cleans none of
	// them up before all are unused.
	sentinel := new(*heap)
	runtime.AddCleanup(sentinel, func(woken chan<- struct{}) {
		select {
		case woken <- struct{}{}:
		default:
		}
	}, h.woken)
}

// collections returns the number of garbage collections so far.
func collections() uint32 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.NumGC
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"unsafe"

	"github.com/netbackd/netbackd/internal/prefetch"
)

// When many vifs share a worker, what a turn needs of a queue has left the caches since its
// last turn: the queue itself, and some ten cache lines elsewhere, each on a page of its own.
// The processor would wait for one after the other. So the worker asks for them while it
// serves the queues before.

// cacheLine is the size of a cache line in bytes, or a part of it.
const cacheLine = 64

// aheadLines are the cache lines of a turn that are not in its Queue. A prefetch of memory
// that is gone does no harm, so these are no pointers.
type aheadLines struct{ at [9]uintptr }

// note notes the lines of a vif's queue.
func (l *aheadLines) note(q *Queue) {
	journal := addrOf(&q.journal.page.w[jTx])
	l.at = [len(l.at)]uintptr{
		addrOf(q.conn), addrOf(q.static), addrOf(q.tx), addrOf(q.journal), journal, journal + cacheLine, q.tx.Addr(),
	}
	l.next(q)
}

// next notes the lines of the next requests.
func (l *aheadLines) next(q *Queue) {
	at := q.tx.NextAddr()
	l.at[len(l.at)-2], l.at[len(l.at)-1] = at, at+cacheLine
}

// addrOf returns an address as a number.
func addrOf[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// fetchSelf asks for the queue itself.
func (q *Queue) fetchSelf() {
	prefetch.Span(addrOf(q), int(unsafe.Sizeof(*q)+cacheLine-1)/cacheLine)
}

// fetchAhead asks for what else a turn needs. The queue should be in the caches.
func (q *Queue) fetchAhead() {
	if q.virt == nil {
		prefetch.Lines(q.ahead.at[:])
	}
	if q.stats != &q.own { // the counters are not in the queue
		prefetch.Span(addrOf(q.stats), StatsSize/cacheLine)
	}
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import "sync/atomic"

// DefaultGuestBytes bounds the data of one guest that is in flight, if [NewGuest] is not
// told otherwise: four queues with all their memory.
const DefaultGuestBytes = 4 * DefaultQueueBytes

// Guest holds the parts of processors and disks, and the memory budget, that all queues of all
// vbds of one guest share. Apart from the budget each queue may always have ownBytes, so a queue
// that finds the budget used up goes on with what it has, and needs no wake-up when memory is
// returned to the budget.
type Guest struct {
	limit int64
	free  atomic.Int64
	held  atomic.Int64 // memory that queues hold beyond their own; see queue.account

	weights
}

// ownBytes is the memory that a queue may use beside the budget: one chunk.
const ownBytes = maxChunk

// NewGuest makes a budget of so many bytes; 0 means [DefaultGuestBytes].
func NewGuest(bytes int64) *Guest {
	if bytes <= 0 {
		bytes = DefaultGuestBytes
	}
	g := &Guest{limit: bytes}
	g.free.Store(bytes)
	return g
}

// Used returns the bytes of the budget that are in use.
func (g *Guest) Used() int64 { return g.limit - g.free.Load() }

// take takes n bytes and reports whether there were so many.
func (g *Guest) take(n int64) bool {
	if g.free.Add(-n) >= 0 {
		return true
	}
	g.free.Add(n)
	return false
}

// give returns n bytes.
func (g *Guest) give(n int64) { g.free.Add(n) }

// share is one queue's part of a budget. It belongs to the queue's thread.
type share struct {
	guest *Guest
	own   int64 // unused bytes of ownBytes
	taken int64 // bytes of the budget that the queue has
}

func newShare(g *Guest) share { return share{guest: g, own: ownBytes} }

// take takes n bytes, n <= ownBytes, from the queue's own or from the budget.
func (s *share) take(n int64) bool {
	if n <= s.own {
		s.own -= n
		return true
	}
	if !s.guest.take(n) {
		return false
	}
	s.taken += n
	return true
}

// close returns what the queue has of the budget.
func (s *share) close() {
	if s.taken > 0 {
		s.guest.give(s.taken)
		s.taken = 0
	}
}

// give returns n bytes, to the budget first.
func (s *share) give(n int64) {
	back := min(n, s.taken)
	s.taken -= back
	s.own += n - back
	if back > 0 {
		s.guest.give(back)
	}
}

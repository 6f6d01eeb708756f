// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// trimEvery is the shortest time between two returns of a busy queue's memory.
const trimEvery = 100 * time.Millisecond

// account counts the memory that the queue holds against what its guest may hold, the budget
// for data in flight. If the guest holds more, the queue returns what it does not use now. A
// queue returns its memory when it is idle, but a guest can keep each of many queues from
// being idle with a request now and then.
func (q *queue) account() {
	g := q.share.guest
	q.hold(max(int64(q.data.dirty)-ownBytes, 0))
	if q.held == 0 || g.held.Load() <= g.limit {
		return
	}
	now := time.Now()
	if now.Before(q.trimAt) {
		return
	}
	q.trimAt = now.Add(trimEvery)
	calls, err := q.data.trim()
	q.tally[Syscalls] += uint64(calls)
	if err != nil {
		q.conn.pool.opts.Warn(fmt.Errorf("return memory: %w", err))
	}
	q.hold(max(int64(q.data.dirty)-ownBytes, 0))
}

// hold sets the bytes that the queue counts for.
func (q *queue) hold(n int64) {
	if n != q.held {
		q.share.guest.held.Add(n - q.held)
		q.held = n
	}
}

// trim returns the memory of all free blocks of the largest size to the host, with so many
// system calls.
func (b *buffers) trim() (calls int, err error) {
	free := 0
	for p := b.heads[b.top]; p != none; p = b.next[p] {
		if err = unix.Madvise(b.bytes(p, sizeOf(b.top)), unix.MADV_DONTNEED); err != nil {
			return calls, err
		}
		calls++
		free += sizeOf(b.top)
	}
	b.dirty = len(b.mem) - free
	return calls, nil
}

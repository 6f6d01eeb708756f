// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"sync"
	"time"
)

// Revision numbers the changes of a device's status, except for counters, so that a client
// can wait for the next one. G holds the fields whose changes make a new revision.
type Revision[G comparable] struct {
	mu      sync.Mutex
	number  uint64
	changed chan struct{} // closed when number changes

	last G // belongs to the goroutine that calls Update
}

// NewRevision begins with the time in microseconds, so that a client which knows a revision
// of an earlier daemon does not wait for a change that it has missed.
func NewRevision[G comparable]() *Revision[G] {
	return &Revision[G]{number: uint64(time.Now().UnixMicro()), changed: make(chan struct{})}
}

// Get returns the current number, and a channel that is closed when it changes.
func (r *Revision[G]) Get() (number uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.number, r.changed
}

// Update makes a new revision if g differs from the last one.
func (r *Revision[G]) Update(g G) {
	if g == r.last {
		return
	}
	r.last = g
	r.mu.Lock()
	defer r.mu.Unlock()
	r.number++
	close(r.changed)
	r.changed = make(chan struct{})
}

// Await waits until the number is another than from, until ctx ends, or until done is
// closed.
func (r *Revision[G]) Await(ctx context.Context, from uint64, done <-chan struct{}) {
	now, changed := r.Get()
	if now != from {
		return
	}
	select {
	case <-changed:
	case <-ctx.Done():
	case <-done:
	}
}

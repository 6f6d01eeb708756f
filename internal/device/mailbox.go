// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"sync"
	"sync/atomic"
)

// Mailbox carries messages to the goroutine that owns a device: functions to run,
// and which parts of xenstore may have changed, as bits. Pokes are merged, so the mailbox
// takes no more memory while the device is busy.
type Mailbox struct {
	Poked chan struct{} // receives when there is something in the mailbox
	Calls chan func()   // the owner runs the functions
	Done  chan struct{} // closed by the owner at its end

	changed atomic.Uint32
}

// NewMailbox makes an empty mailbox.
func NewMailbox() *Mailbox {
	return &Mailbox{Poked: make(chan struct{}, 1), Calls: make(chan func()), Done: make(chan struct{})}
}

// Wake makes the owner reconcile, with parts that have changed. It never blocks.
func (m *Mailbox) Wake(changed uint32) {
	m.changed.Or(changed)
	select {
	case m.Poked <- struct{}{}:
	default:
	}
}

// Changed returns the parts that have changed since it was last called.
func (m *Mailbox) Changed() uint32 { return m.changed.Swap(0) }

// Call runs f in the goroutine of the owner and waits for it. It returns false if the owner
// has ended, or if ctx ended before f began: the owner may be waiting for xenstored, or for
// its turn.
func (m *Mailbox) Call(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	var once sync.Once // f either begins or is given up
	did := false
	begin := func() { did = true; f() }
	select {
	case m.Calls <- func() { defer close(ran); once.Do(begin) }:
	case <-m.Done:
		return false
	case <-ctx.Done():
		return false
	}
	select {
	case <-ran:
	case <-ctx.Done():
		once.Do(func() {}) // waits for f if it has begun
	}
	return did
}

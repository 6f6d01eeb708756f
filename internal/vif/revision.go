// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"sync"
	"time"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// revision numbers what a vif's status says, but for counters, so that a reader can wait
// for something else.
type revision struct {
	mu      sync.Mutex
	number  uint64
	changed chan struct{} // closed when number changes

	last gist // of the goroutine in Run
}

// gist is the part of a vif that makes a new revision when it changes.
type gist struct {
	own, shown, front xenbus.State
	online, live      bool
	hotplug           string
	trouble, reason   string
	tap               *tap.Device
	link              *link
}

// newRevision numbers from the time of day, in microseconds: a reader of an earlier
// daemon's revision does not wait for a change that it has missed.
func newRevision() revision {
	return revision{number: uint64(time.Now().UnixMicro()), changed: make(chan struct{})}
}

// get returns the current number, and a channel that is closed when it changes.
func (r *revision) get() (number uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.number, r.changed
}

// update makes a new revision if g differs from the last one.
func (r *revision) update(g gist) {
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

// gist returns the vif's part that is numbered.
func (v *Vif) gist() gist {
	return gist{
		own: v.own, shown: v.shown, front: v.front, online: v.nodes.online, live: v.live,
		hotplug: v.nodes.hotplug, trouble: v.trouble, reason: v.reason, tap: v.tap, link: v.link,
	}
}

// AwaitChange waits until the status has another revision than the given one, until ctx
// ends, or until the vif does.
func (v *Vif) AwaitChange(ctx context.Context, from uint64) {
	now, changed := v.revision.get()
	if now != from {
		return
	}
	select {
	case <-changed:
	case <-ctx.Done():
	case <-v.done:
	}
}

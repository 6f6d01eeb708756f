// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"sync"
	"time"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// revision numbers the changes of a vif's status, except for counters, so that a client can
// wait for the next one.
type revision struct {
	mu      sync.Mutex
	number  uint64
	changed chan struct{} // closed when number changes

	last gist // belongs to the goroutine in Run
}

// gist holds the fields of a vif whose changes make a new revision.
type gist struct {
	own, node, front   xenbus.State
	online             bool
	hotplug            string
	errorText, blocked string
	tap                *tap.Device
	conn               *connection
	carrier            carrier
}

// newRevision begins with the time in microseconds, so that a client which knows a revision
// of an earlier daemon does not wait for a change that it has missed.
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

func (v *Vif) gist() gist {
	g := gist{
		own: v.own, node: v.lastNode, front: v.guest.state, online: v.nodes.online, hotplug: v.nodes.hotplug,
		errorText: v.errorText, blocked: v.block.reason, tap: v.tap, conn: v.conn,
	}
	if v.conn != nil {
		g.carrier = v.conn.carrier
	}
	return g
}

// AwaitChange waits until the status has another revision than from, until ctx ends, or
// until the vif ends.
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

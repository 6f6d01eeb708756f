// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"sync"
	"time"
)

// turns bounds the number of goroutines in calls that may block their thread in the kernel,
// and shares it fairly between guests.
//
// x/sync's semaphore serves in the order of arrival: all others would wait behind the
// thousand vifs of one guest. Here each guest gets one turn after the other guests,
// regardless of the number of its vifs that wait, and it has half of the turns at most.
type turns struct {
	mu   sync.Mutex // guards all below, and share
	free int
	most int      // bound for one guest
	wait []*share // guests that could have a turn if one were free, the next one first
}

// share is one guest's part of the turns. Guarded by turns.mu.
type share struct {
	held    int             // number of turns that the guest has
	waiting []chan struct{} // goroutines that wait for a turn, the first one first
	listed  bool            // it is in turns.wait
}

// take waits for a turn.
func (t *turns) take(s *share) {
	t.mu.Lock()
	if t.free > 0 && s.held < t.most {
		// No waiting guest could have this turn, or give would have passed it on.
		t.free--
		s.held++
		t.mu.Unlock()
		return
	}
	granted := make(chan struct{})
	s.waiting = append(s.waiting, granted)
	t.list(s)
	t.mu.Unlock()
	<-granted
}

// give gives a turn back.
func (t *turns) give(s *share) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.held--
	t.free++
	t.list(s)
	for t.free > 0 && len(t.wait) > 0 {
		next := t.wait[0]
		t.wait[0] = nil
		t.wait = t.wait[1:]
		next.listed = false
		t.free--
		next.held++
		close(next.waiting[0])
		next.waiting[0] = nil
		next.waiting = next.waiting[1:]
		t.list(next)
	}
}

// list appends s to the waiting guests, if it waits and could have a turn.
func (t *turns) list(s *share) {
	if !s.listed && len(s.waiting) > 0 && s.held < t.most {
		s.listed = true
		t.wait = append(t.wait, s)
	}
}

// Turn is one goroutine's right to make calls that may block its thread: netlink, ioctls,
// files, mappings. While the goroutine waits for something other than the kernel, it must
// give the turn back with Aside, because the awaited work may need a turn itself.
//
// A Turn belongs to one goroutine.
type Turn struct {
	g     *Guest
	held  bool
	since time.Time
}

// Turn makes a Turn that is charged to the guest.
func (g *Guest) Turn() *Turn { return &Turn{g: g} }

// Do waits for a turn and runs f within it. If the goroutine has the turn already, it only
// runs f.
func (t *Turn) Do(f func()) {
	if t.held {
		f()
		return
	}
	t.take()
	defer t.give()
	f()
}

// Aside gives the turn back, runs f, and takes the turn again.
func (t *Turn) Aside(f func()) {
	if !t.held {
		f()
		return
	}
	t.give()
	defer t.take()
	f()
}

func (t *Turn) take() {
	t.g.host.turns.take(&t.g.share)
	t.held, t.since = true, time.Now()
}

func (t *Turn) give() {
	t.g.busy(time.Since(t.since))
	t.held = false
	t.g.host.turns.give(&t.g.share)
}

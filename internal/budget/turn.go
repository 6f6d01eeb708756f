// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"sync"
	"time"
)

// turns bounds how many goroutines make calls at a time that may block their thread in
// the kernel, and shares them fairly between guests.
//
// x/sync's semaphore serves in the order of arrival: a guest with a thousand vifs that
// wait would have all others wait behind it. Here guests take turns, however many of their
// vifs wait, and one guest has half of the turns at most.
type turns struct {
	mu   sync.Mutex // guards all below, and share
	free int
	most int      // of one guest
	wait []*share // guests that could have a turn if one were free, the next one first
}

// share is one guest's part of the turns. Guarded by turns.mu.
type share struct {
	held    int             // turns it has
	waiting []chan struct{} // vifs that wait for one, the first one first
	listed  bool            // it is in turns.wait
}

// take waits for a turn.
func (t *turns) take(s *share) {
	t.mu.Lock()
	if t.free > 0 && s.held < t.most {
		// No guest waits that could have it, or give would have handed it over.
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

// list has s wait behind the others, if it could have a turn.
func (t *turns) list(s *share) {
	if !s.listed && len(s.waiting) > 0 && s.held < t.most {
		s.listed = true
		t.wait = append(t.wait, s)
	}
}

// Turn is one goroutine's right to make calls that may block its thread: netlink,
// ioctls, files, mappings. Where it waits for something that is not the kernel, and
// above all for something that needs a turn itself, it stands aside.
//
// A Turn belongs to one goroutine.
type Turn struct {
	g     *Guest
	held  bool
	since time.Time
}

// Turn makes a Turn that counts as the guest's.
func (g *Guest) Turn() *Turn { return &Turn{g: g} }

// Do runs f within a turn, and waits for that as long as it takes. Within f it runs f.
func (t *Turn) Do(f func()) {
	if t.held {
		f()
		return
	}
	t.take()
	defer t.give()
	f()
}

// Aside runs f without the turn that the goroutine has, and takes it again.
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

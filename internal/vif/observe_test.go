// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
)

// TestWatchFollows: there is one watch, of the last path.
func TestWatchFollows(t *testing.T) {
	w := newWorld(t)
	watches := 0
	w.xs.watch = func(string) error { watches++; return nil }
	var x watch
	if x.events() != nil {
		t.Error("events of nothing")
	}
	w.must(x.follow(t.Context(), w.v, "/a"))
	first := x.events()
	w.must(x.follow(t.Context(), w.v, "/a"))
	if watches != 1 {
		t.Errorf("%d watches of the same path", watches)
	}
	w.must(x.follow(t.Context(), w.v, "/b"))
	for range first { // ends: the channel was closed
	}
	if e := <-x.events(); e.Path != "/b" {
		t.Errorf("event %+v", e)
	}
	x.received(true)
	w.must(x.follow(t.Context(), w.v, "/b"))
	if watches != 2 {
		t.Errorf("%d watches, want 2", watches)
	}
	x.received(false) // lost with the connection
	w.must(x.follow(t.Context(), w.v, "/b"))
	if watches != 3 {
		t.Errorf("%d watches, want 3", watches)
	}
	x.close(w.v)
	x.close(w.v)
}

// TestFirstBreachCounts: later breaches may be consequences of the first one.
func TestFirstBreachCounts(t *testing.T) {
	n := newConnection(&frontend{queues: make([]queueKeys, 2)})
	n.notices.add(dataplane.Notice{Kind: dataplane.Breach, Queue: 1, Err: errors.New("first")})
	n.notices.add(dataplane.Notice{Kind: dataplane.Breach, Queue: 0, Err: errors.New("second")})
	if _, _, err := n.notices.take(); err == nil || err.Error() != "queue 1: first" {
		t.Errorf("got %v", err)
	}
}

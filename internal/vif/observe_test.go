// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/device"
)

// TestWatchFollows: there is one watch, of the last path.
func TestWatchFollows(t *testing.T) {
	w := newWorld(t)
	watches := 0
	w.xs.watch = func(string) error { watches++; return nil }
	var x device.Watch
	if x.Events() != nil {
		t.Error("events of nothing")
	}
	w.must(x.Follow(t.Context(), w.v.work, "/a"))
	first := x.Events()
	w.must(x.Follow(t.Context(), w.v.work, "/a"))
	if watches != 1 {
		t.Errorf("%d watches of the same path", watches)
	}
	w.must(x.Follow(t.Context(), w.v.work, "/b"))
	for range first { // ends: the channel was closed
	}
	if e := <-x.Events(); e.Path != "/b" {
		t.Errorf("event %+v", e)
	}
	x.Received(true)
	w.must(x.Follow(t.Context(), w.v.work, "/b"))
	if watches != 2 {
		t.Errorf("%d watches, want 2", watches)
	}
	x.Received(false) // lost with the connection
	w.must(x.Follow(t.Context(), w.v.work, "/b"))
	if watches != 3 {
		t.Errorf("%d watches, want 3", watches)
	}
	x.Close(w.v.work)
	x.Close(w.v.work)
}

// TestFirstBreachCounts: later breaches may be consequences of the first one.
func TestFirstBreachCounts(t *testing.T) {
	n := newConnection(&frontend{queues: make([]queueKeys, 2)})
	n.notices.add(dataplane.Notice{Kind: dataplane.Breach, Queue: 1, Err: errors.New("first")})
	n.notices.add(dataplane.Notice{Kind: dataplane.Breach, Queue: 0, Err: errors.New("second")})
	if _, _, _, err := n.notices.take(); err == nil || err.Error() != "queue 1: first" {
		t.Errorf("got %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import "testing"

// TestRemovedGuestHasNoTurns: a guest that is removed between two of its turns, since its queues
// have another worker, gets no further turn on this one.
func TestRemovedGuestHasNoTurns(t *testing.T) {
	w := &worker{}
	a := &account{left: roundPart, turns: 2, listed: true, ready: []*Queue{{}, {}}}
	w.sched.accounts = []*account{a}
	w.sched.remove(a)
	w.serveGuest(a) // a turn of such a queue panics
	if a.listed || len(w.sched.ready) != 0 {
		t.Error("the guest is listed again")
	}
}

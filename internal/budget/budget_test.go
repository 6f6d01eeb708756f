// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTurnsBound: however many goroutines want a turn, only as many as there are turns
// have one.
func TestTurnsBound(t *testing.T) {
	const n, guests, goroutines, rounds = 5, 7, 20, 50
	h := NewHost(n)
	var now, most, done atomic.Int32
	var wg sync.WaitGroup
	for range guests {
		g := h.Guest()
		for range goroutines {
			wg.Go(func() {
				turn := g.Turn()
				for range rounds {
					turn.Do(func() {
						k := now.Add(1)
						for m := most.Load(); k > m && !most.CompareAndSwap(m, k); m = most.Load() {
						}
						now.Add(-1)
						turn.Aside(func() { done.Add(1) })
						turn.Do(func() {}) // within its turn
					})
				}
			})
		}
	}
	wg.Wait()
	if most.Load() > n || done.Load() != guests*goroutines*rounds {
		t.Errorf("%d at a time, want at most %d; %d done", most.Load(), n, done.Load())
	}
	if h.turns.free != n || len(h.turns.wait) != 0 {
		t.Errorf("at the end %d are free and %d guests wait", h.turns.free, len(h.turns.wait))
	}
}

// hold starts n goroutines of a guest that take a turn and keep it until release is
// called. It returns when have of them have their turn.
func hold(t *testing.T, g *Guest, n, have int) (release func()) {
	t.Helper()
	stop, got := make(chan struct{}), make(chan struct{}, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { g.Turn().Do(func() { got <- struct{}{}; <-stop }) })
	}
	for range have {
		<-got
	}
	return func() { close(stop); wg.Wait() }
}

// TestTurnsOfOneGuest: a guest whose calls never end holds half of the turns. Other guests
// have the rest.
func TestTurnsOfOneGuest(t *testing.T) {
	h := NewHost(8)
	bad, good := h.Guest(), h.Guest()
	release := hold(t, bad, 100, 4)
	hold(t, good, 4, 4)()
	release()
}

// TestTurnsInTurn: when all turns are taken, a guest gets the next one although a thousand
// vifs of another guest waited before it.
func TestTurnsInTurn(t *testing.T) {
	h := NewHost(2)
	a, b, crowd := h.Guest(), h.Guest(), h.Guest()
	first, second := a.Turn(), b.Turn()
	first.take()
	second.take()
	var order []string // guarded by there being one turn only
	var wg sync.WaitGroup
	join := func(g *Guest, name string) {
		before := len(g.share.waiting)
		wg.Go(func() { g.Turn().Do(func() { order = append(order, name) }) })
		for {
			h.turns.mu.Lock()
			n := len(g.share.waiting)
			h.turns.mu.Unlock()
			if n > before {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	for range 5 {
		join(crowd, "crowd")
	}
	join(b, "b") // has one, of one that it may have
	late := h.Guest()
	join(late, "late")
	first.give() // the only one until the end, second is kept
	for {
		h.turns.mu.Lock()
		done := len(crowd.share.waiting)+len(late.share.waiting) == 0 && crowd.share.held+late.share.held == 0
		h.turns.mu.Unlock()
		if done {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if len(order) != 6 || order[0] != "crowd" || order[1] != "late" {
		t.Errorf("the order is %v", order)
	}
	second.give()
	wg.Wait()
	if order[len(order)-1] != "b" {
		t.Errorf("the order is %v", order)
	}
}

// TestLookBudget: the rate of WorkRate bounds the looks of a guest that writes without
// end, independent of the cost of a look and of the number of vifs that want one.
func TestLookBudget(t *testing.T) {
	g := NewHost(1).Guest()
	now := time.Now()
	units, looks := 0, 0
	for range 100_000 { // as fast as it can, for 100 s
		now = now.Add(time.Millisecond)
		if len := g.work.TokensAt(now); len < lookPrice {
			continue // a vif that waits
		}
		if d := g.Look(now, time.Time{}); d != 0 {
			t.Fatalf("look %d waits %v", looks, d)
		}
		g.Looked(now, 200)
		units += 200
		looks++
	}
	if most := WorkBurst + 100*WorkRate + 200; units > most || units < most*9/10 {
		t.Errorf("%d looks of %d units in 100 s, want %d at most", looks, units, most)
	}
	if d := g.Look(now, time.Time{}); d <= 0 || d > time.Second {
		t.Errorf("the next look waits %v", d)
	}
	if n := g.Used().Delayed; n != 1 {
		t.Errorf("%d looks delayed", n)
	}
	// A look that costs more than the whole budget takes the whole budget.
	other := NewHost(1).Guest()
	other.Looked(now, 10*WorkBurst)
	if d := other.Look(now, time.Time{}); d > time.Second {
		t.Errorf("after an expensive look the next one waits %v", d)
	}
}

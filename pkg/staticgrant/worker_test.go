// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/netbackd/netbackd/pkg/xen"
)

// TestControlAndWorker has two control goroutines of one guest change the tables
// of two workers that look grefs up all the time and use a few pages between two
// looks into their mailboxes. A page that was unmapped while in use would not begin
// with its gref any more.
func TestControlAndWorker(t *testing.T) {
	f := newPages(t)
	budget := NewBudget(300, nil)
	var wg sync.WaitGroup
	var found atomic.Int64
	for range 2 {
		calls := make(chan func(*Table))
		table := New(128)
		wg.Go(func() {
			type use struct {
				ref xen.Gref
				g   Grant
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case f, open := <-calls:
					if !open {
						return
					}
					f(table)
				default:
				}
				var uses []use
				for range 64 {
					ref := rng.Uint32N(256)
					if g := table.Lookup(xen.Gref(ref)); g.Page != nil {
						found.Add(1)
						uses = append(uses, use{xen.Gref(ref), g})
					}
				}
				runtime.Gosched() // the two control goroutines share the CPUs with us
				for _, u := range uses {
					if got := xen.Gref(binary.LittleEndian.Uint32(u.g.Page[:])); got != u.ref {
						t.Errorf("page of gref %d in use begins with %d", u.ref, got)
					}
				}
			}
		})
		wg.Go(func() {
			defer close(calls)
			call := func(f func(*Table)) {
				done := make(chan struct{})
				calls <- func(t *Table) { defer close(done); f(t) }
				<-done
			}
			rng := rand.New(rand.NewPCG(3, 4))
			s := f.source(budget)
			for range 500 {
				list := entries(run(xen.Gref(rng.Uint32N(240)), 1+rng.IntN(16))...)
				if rng.IntN(2) == 0 {
					p, err := s.Prepare(t.Context(), list)
					if err != nil {
						continue
					}
					call(func(t *Table) { _ = t.Commit(p) })
					if err := p.Unmap(); err != nil {
						t.Error(err)
					}
					continue
				}
				var r *Removed
				call(func(t *Table) { r = t.Detach(list) })
				n, err := r.Unmap()
				if err != nil {
					t.Error(err)
				}
				for _, e := range list {
					if e.Status == uint16(ok) {
						n--
					}
				}
				if n != 0 {
					t.Errorf("count and statuses differ by %d", n)
				}
			}
		})
		t.Cleanup(func() {
			if err := table.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if found.Load() == 0 {
		t.Error("nothing was ever in use")
	}
	if used := budget.Used(); used != f.count() {
		t.Errorf("%d charged, %d mapped", used, f.count())
	}
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestAGuestThatOverrunsGetsItsOwnThread, which has a higher nice value, and returns after good
// conduct. No packet is lost on the way.
func TestAGuestThatOverrunsGetsItsOwnThread(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		l, conns := sharedWorker(t, m, 2)
		notes := make(chan string, 10)
		q := conns[0].queues[0]
		must(t, q.call(func() error {
			l.pool.opts.Note = func(text string) { notes <- text }
			l.fronts[0].grants.during = func() {
				for start := threadTime(); threadTime()-start < 4*costlyPacket; {
				}
			}
			return nil
		}))
		exchange := func(i int) {
			t.Helper()
			want := l.fronts[i].put(packet{frame: udp(18, 1)})
			l.fronts[i].push()
			if diff := cmp.Diff(want, l.fronts[i].take(1)); diff != "" {
				t.Fatalf("answers of vif %d (-want +got):\n%s", i, diff)
			}
		}
		home := q.worker.Load()
		var before, after class
		must(t, q.call(func() (err error) { before, err = threadClass(); return err }))
		for deadline := time.Now().Add(patience); q.worker.Load() == home; {
			exchange(1)
			exchange(0)
			if time.Now().After(deadline) {
				t.Fatal("it does not move")
			}
		}
		<-notes
		lane := q.worker.Load()
		for range 20 {
			exchange(0)
			exchange(1)
		}
		if conns[1].queues[0].worker.Load() != home || l.pool.workers[0] != home {
			t.Error("the other guest has moved as well")
		}
		if lanes, others := l.pool.lanes(); lanes != 1 || others != 0 {
			t.Errorf("%d lanes, %d other spares; want 1, 0", lanes, others)
		}
		must(t, q.call(func() error {
			l.fronts[0].grants.during = nil
			after, _ = threadClass()
			if q.account.homeAt.Before(time.Now().Add(probation / 2)) {
				t.Errorf("it returns at %v", q.account.homeAt)
			}
			q.account.homeAt = time.Time{} // the time has come
			return nil
		}))
		if before.policy == unix.SCHED_NORMAL && after.nice < min(before.nice+laneNice, 19) {
			t.Errorf("the class of its thread is %v, before it was %v", after, before)
		}
		for deadline := time.Now().Add(patience); q.worker.Load() != home; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("it does not return")
			}
		}
		<-lane.done // it has nothing left to do
		exchange(0)
		exchange(1)
		must(t, l.pool.Ping(t.Context()))
	})
}

// TestOverrunsAreCountedBesideOthers: costly turns with good ones between them, or without
// others, count for nothing.
func TestOverrunsAreCountedBesideOthers(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name   string
			others bool
			good   int // turns between two costly ones
			want   bool
		}{
			{"again and again", true, 0, true},
			{"now and then", true, suspectTurns + 1, false},
			{"alone", false, 0, false},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b, conns := neighbours(t, m)
				b.w.pool.overruns = make(chan overrun, 1)
				var used time.Duration
				b.w.sched.cpu = func() time.Duration { return used }
				b.settle()
				b.now = b.now.Add(time.Second)
				for range 3 * manyOverruns {
					b.cost(0, 4*costlyPacket, &used)
					b.one(0)
					b.pass(maxRest)
					b.cost(0, 0, &used)
					for range tt.good {
						b.one(0)
						b.settle()
					}
					if tt.others {
						b.one(1)
						b.settle()
					}
				}
				if got := len(b.w.pool.overruns) == 1; got != tt.want {
					t.Errorf("it leaves its worker: %t, want %t", got, tt.want)
				} else if got {
					if o := <-b.w.pool.overruns; o.guest != conns[0].guest() || o.worker != b.w {
						t.Errorf("%v leaves %v", o.guest, o.worker)
					}
				}
			})
		}
	})
}

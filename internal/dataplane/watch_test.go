// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xen"
)

// sharedWorker connects vifs of different guests, with one queue each, on one worker.
func sharedWorker(t *testing.T, m mode, vifs int) (l *live, conns []*Conn) {
	t.Helper()
	l = newLive(t, m, 1, vifs, full)
	l.conn.Close()
	for i := range l.fronts {
		l.cfg.Domid = xen.Domid(testDomid + i)
		f := newFront(t, l.cfg.Domid)
		f.events.wake = make(chan struct{}, 1)
		end := l.queues[i].Tap
		l.fronts[i], l.queues[i] = f, f.config()
		l.queues[i].Tap = end
		c, err := newConn(l.cfg, l.queues[i:i+1])
		must(t, err)
		f.grants.worker = func() *worker { return c.queues[0].worker.Load() }
		must(t, l.pool.serve(c))
		conns = append(conns, c)
		t.Cleanup(c.Close)
	}
	return l, conns
}

// duringNextCopy runs do within the next grant copy for q. It sets the function on the
// worker's thread, which reads it.
func (f *front) duringNextCopy(t *testing.T, q *Queue, do func()) {
	t.Helper()
	must(t, q.call(func() error {
		f.grants.during = func() {
			f.grants.during = nil
			do()
		}
		return nil
	}))
}

// TestASlowCopyDelaysNoOtherVif: while a copy for one vif sleeps, packets of other vifs on
// its worker move, these can be closed and new ones can connect, and the worker answers a
// ping. The slow vif is served when its copy is over, and shares a worker again in the end.
func TestASlowCopyDelaysNoOtherVif(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		l, conns := sharedWorker(t, m, 4)
		slow := l.fronts[0]
		inCopy, goOn := make(chan struct{}), make(chan struct{})
		slow.duringNextCopy(t, conns[0].queues[0], func() {
			close(inCopy)
			<-goOn
		})
		want := slow.put(packet{frame: udp(18, 1)})
		slow.push()
		<-inCopy
		first := conns[0].queues[0].worker.Load()

		exchange := func(f *front) {
			t.Helper()
			want := f.put(packet{frame: udp(18, 1)})
			f.push()
			if diff := cmp.Diff(want, f.take(1)); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		}
		for range 100 {
			exchange(l.fronts[1])
		}
		must(t, l.pool.Ping(t.Context()))
		conns[1].Close()
		exchange(l.fronts[2])
		if s := conns[2].State(0); s.Worker != 0 {
			t.Errorf("served by worker %d, want 0", s.Worker)
		}
		// A slow vif that is closed waits for its copy.
		closed := make(chan struct{})
		go func() { conns[0].Close(); close(closed) }()
		select {
		case <-closed:
			t.Error("closed while its pages are in use")
		case <-time.After(5 * turnTick):
		}
		close(goOn)
		if diff := cmp.Diff(want, slow.take(1)); diff != "" {
			t.Errorf("answers of the slow one (-want +got):\n%s", diff)
		}
		<-closed
		if n := conns[0].Stats(0).Load(SlowCopies); n != 1 {
			t.Errorf("%d slow copies, want 1", n)
		}
		if n := conns[1].Stats(0).Load(SlowCopies); n != 0 {
			t.Errorf("%d slow copies of another vif", n)
		}
		<-first.done // it has nothing left to do
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		if len(l.pool.spares) != 0 || l.pool.workers[0] == first || l.pool.workers[0].load != 2 {
			t.Errorf("%d spares, the worker has a load of %d, want 0 and 2", len(l.pool.spares), l.pool.workers[0].load)
		}
	})
}

// TestAfterProbation a vif whose copies were slow shares a worker again.
func TestAfterProbation(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		l, conns := sharedWorker(t, m, 2)
		slow, q := l.fronts[0], conns[0].queues[0]
		inCopy, stole := make(chan *worker), make(chan struct{})
		slow.duringNextCopy(t, q, func() {
			inCopy <- q.worker.Load()
			<-stole
		})
		want := slow.put(packet{frame: udp(18, 1)})
		slow.push()
		first := <-inCopy
		for deadline := time.Now().Add(patience); first.watch.underWay.Load() != stolen && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		close(stole)
		if diff := cmp.Diff(want, slow.take(1)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		must(t, q.call(func() error {
			q.account.homeAt = time.Time{} // the time has come
			return nil
		}))
		<-first.done
		for range 10 {
			want := slow.put(packet{frame: udp(18, 1)})
			slow.push()
			if diff := cmp.Diff(want, slow.take(1)); diff != "" {
				t.Fatalf("answers afterwards (-want +got):\n%s", diff)
			}
		}
		if q.worker.Load() != conns[1].queues[0].worker.Load() || q.worker.Load() == first {
			t.Error("it has not gone back")
		}
	})
}

// lanes returns the number of slow lanes, and of other spares.
func (p *Pool) lanes() (lanes, others int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.spares {
		if w.watch.lane {
			lanes++
		} else {
			others++
		}
	}
	return lanes, others
}

// TestManySlowGuests: while many guests have a slow copy under way, other guests on their
// worker are served. When the copies are over the slow guests share [maxLanes] threads,
// wait only for each other, and share a worker with others again in the end.
func TestManySlowGuests(t *testing.T) {
	inModes(t, allModes[1:2], func(t *testing.T, m mode) {
		const slow = maxLanes + 4
		l, conns := sharedWorker(t, m, slow+1)
		good := l.fronts[slow]
		exchange := func(f *front) {
			t.Helper()
			want := f.put(packet{frame: udp(18, 1)})
			f.push()
			if diff := cmp.Diff(want, f.take(1)); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		}
		// hold blocks a copy of a vif until release is called.
		hold := func(i int) (release func()) {
			inCopy, goOn := make(chan struct{}), make(chan struct{})
			l.fronts[i].duringNextCopy(t, conns[i].queues[0], func() {
				close(inCopy)
				<-goOn
			})
			want := l.fronts[i].put(packet{frame: udp(18, 1)})
			l.fronts[i].push()
			<-inCopy
			return func() {
				close(goOn)
				if diff := cmp.Diff(want, l.fronts[i].take(1)); diff != "" {
					t.Errorf("answers of vif %d (-want +got):\n%s", i, diff)
				}
			}
		}
		until := func(what string, ok func() bool) {
			t.Helper()
			for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("in vain waited for %s", what)
				}
			}
		}

		var releases []func()
		for i := range slow {
			releases = append(releases, hold(i))
			exchange(good)
		}
		if lanes, others := l.pool.lanes(); lanes != 0 || others != slow {
			t.Errorf("%d lanes and %d spares, want 0 and %d", lanes, others, slow)
		}
		for _, release := range releases {
			release()
		}
		until("the lanes", func() bool {
			lanes, others := l.pool.lanes()
			return lanes == maxLanes && others == 0
		})
		for _, f := range l.fronts {
			exchange(f)
		}
		must(t, l.pool.Ping(t.Context()))

		// Slow again: this delays only the vifs of the same lane.
		last := conns[slow-1].queues[0]
		lane := last.worker.Load()
		release := hold(slow - 1)
		until("a slow copy", func() bool { return lane.watch.slow.Load() == lane.watch.underWay.Load() })
		for i, f := range l.fronts {
			if i < slow-1 && conns[i].queues[0].worker.Load() == lane {
				continue
			}
			if i != slow-1 {
				exchange(f)
			}
		}
		release()
		if lanes, others := l.pool.lanes(); lanes != maxLanes || others != 0 {
			t.Errorf("%d lanes and %d spares, want %d and 0", lanes, others, maxLanes)
		}

		for _, c := range conns {
			must(t, c.queues[0].call(func() error {
				c.queues[0].account.homeAt = time.Time{} // the time has come
				return nil
			}))
		}
		until("the lanes to end", func() bool {
			lanes, others := l.pool.lanes()
			return lanes+others == 0
		})
		for i, f := range l.fronts {
			exchange(f)
			if conns[i].queues[0].worker.Load() != l.pool.workers[0] {
				t.Errorf("vif %d has not gone back", i)
			}
		}
		if load := l.pool.workers[0].load; load != slow+1 {
			t.Errorf("the worker has a load of %d, want %d", load, slow+1)
		}
	})
}

// TestAHungTurnCostsItsGuest: while a turn does not return, also one that computes, other guests
// are served and the pool answers. The owner of the guest's vifs is told, and Ping names the turn.
// A turn that returns after all costs nothing more.
func TestAHungTurnCostsItsGuest(t *testing.T) {
	inModes(t, allModes[1:2], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name string
			hang func(end chan struct{})
		}{
			{"asleep", func(end chan struct{}) { <-end }},
			{"computing", func(end chan struct{}) {
				for spun := 0; ; {
					select {
					case <-end:
						return
					default:
						spun++
					}
				}
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				l, conns := sharedWorker(t, m, 2)
				warned := make(chan error, 10)
				l.pool.opts.Warn = func(err error) { warned <- err }
				l.pool.hungTime = 3 * longTicks * turnTick / 2
				inTurn, end := make(chan struct{}), make(chan struct{})
				bad, good := l.fronts[0], l.fronts[1]
				first := conns[0].queues[0].worker.Load()
				bad.duringNextCopy(t, conns[0].queues[0], func() {
					close(inTurn)
					tt.hang(end)
				})
				want := bad.put(packet{frame: udp(18, 1)})
				bad.push()
				<-inTurn
				short, stop := context.WithTimeout(t.Context(), turnTick/5)
				err := l.pool.Ping(short)
				stop()
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("a turn of a vif of domain %d, queue 0", testDomid)) {
					t.Errorf("Ping: %v", err)
				}
				deadline := time.After(patience)
				for told := false; !told; {
					select {
					case n := <-l.notices:
						told = n.Kind == Breach && errors.Is(n.Err, errHung)
					case <-deadline:
						t.Fatal("the owner was not told")
					}
				}
				if err := <-warned; !strings.Contains(err.Error(), "held up by a turn of a vif of domain") {
					t.Errorf("warned of %v", err)
				}
				must(t, l.pool.Ping(t.Context()))
				for range 10 {
					want := good.put(packet{frame: udp(18, 1)})
					good.push()
					if diff := cmp.Diff(want, good.take(1)); diff != "" {
						t.Fatalf("answers of the other guest (-want +got):\n%s", diff)
					}
				}
				close(end)
				if diff := cmp.Diff(want, bad.take(1)); diff != "" {
					t.Errorf("answers afterwards (-want +got):\n%s", diff)
				}
				for _, c := range conns {
					c.Close()
				}
				<-first.done // it has nothing left to do
				if len(warned) > 0 {
					t.Errorf("warned again: %v", <-warned)
				}
			})
		}
	})
}

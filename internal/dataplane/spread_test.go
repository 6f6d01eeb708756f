// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"strings"
	"testing"
	"time"
)

// spreadBed is a bed with several workers, which the test runs in turn. The queues of its vif
// are with the first one at first.
type spreadBed struct {
	*bed
	workers []*worker
	notes   []string
}

func newSpreadBed(t *testing.T, m mode, workers int, s setup) *spreadBed {
	t.Helper()
	b := &spreadBed{bed: newBed(t, m, s)}
	p := b.w.pool
	p.opts.Workers = workers
	p.opts.Note = func(text string) { b.notes = append(b.notes, text) }
	p.conns = map[*Conn]bool{b.conn: true}
	for i := 1; i < workers; i++ {
		w, err := newWorker(p, i)
		must(t, err)
		w.clock = b.w.clock
		if m.uring {
			must(t, w.openRing())
			w.reads.compared = true
		}
		p.workers = append(p.workers, w)
	}
	b.workers = p.workers
	for i, q := range b.conn.queues {
		b.fronts[i].grants.worker = func() *worker { return q.worker.Load() }
		q.counted = true
		b.w.load++
	}
	// The bed's own clean-up would use its worker alone.
	t.Cleanup(func() {
		b.settle()
		for _, w := range b.workers {
			w.detachAll(b.conn)
		}
		for _, w := range b.workers[1:] {
			w.release()
		}
	})
	return b
}

// step runs a worker for a round, and reports whether it had something to do.
func (b *spreadBed) step(w *worker) bool {
	b.tb.Helper()
	mail := w.mail.waiting.Load()
	must(b.tb, w.poll(0))
	w.expire()
	if !w.sched.waits() {
		return mail
	}
	w.round()
	return true
}

// settle runs all workers until they would sleep.
func (b *spreadBed) settle() {
	b.tb.Helper()
	for rounds, again := 0, true; again; rounds++ {
		again = false
		for _, w := range b.workers {
			again = b.step(w) || again
		}
		if rounds > 100000 {
			b.tb.Fatal("the workers do not come to rest")
		}
	}
}

// move makes a queue move to a worker.
func (b *spreadBed) move(q *Queue, to int) {
	q.worker.Load().post(q, func(w *worker) { w.moveAway(q, to, "for a test") })
}

// where returns the number of each queue's worker.
func (b *spreadBed) where() (at []int) {
	for _, q := range b.conn.queues {
		at = append(at, q.worker.Load().index)
	}
	return at
}

// second lets a second pass in which worker i wanted a processor for loads[i] of the time, and
// queue k had slots[k] slots.
func (b *spreadBed) second(loads []float64, slots []uint64) {
	for i, w := range b.workers {
		before := w.meter.read()
		w.meter.total = func() time.Duration { return before + time.Duration(loads[i]*float64(time.Second)) }
	}
	for k, q := range b.conn.queues {
		q.stats.n[TxSlots].Add(slots[k])
	}
	b.now = b.now.Add(time.Second)
	b.w.pool.measure(b.now)
	b.settle()
}

// TestQueuesAreSpread: queues move if loads differ for long, one at a time, and not back.
func TestQueuesAreSpread(t *testing.T) {
	inModes(t, allModes[1:2], func(t *testing.T, m mode) {
		b := newSpreadBed(t, m, 2, setup{cfg: full, queues: 4})
		for _, w := range b.workers {
			w.meter.total = func() time.Duration { return time.Hour }
		}
		seconds := func(n int, want []int, loads []float64, slots ...uint64) {
			t.Helper()
			for range n {
				b.second(loads, slots)
			}
			for k, at := range b.where() {
				if at != want[k] {
					t.Fatalf("queues are with workers %v, want %v", b.where(), want)
				}
			}
		}
		home := []int{0, 0, 0, 0}
		seconds(10, home, []float64{0.4, 0}, 10, 10, 10, 10)
		seconds(settleSamples, home, []float64{0.9, 0}, 10, 10, 20, 5) // the first one tells nothing of queues
		seconds(1, home, []float64{0.4, 0}, 10, 10, 20, 5)
		seconds(settleSamples, home, []float64{0.9, 0}, 10, 10, 20, 5)
		seconds(1, []int{0, 0, 1, 0}, []float64{0.9, 0}, 10, 10, 20, 5)
		if n := b.conn.Stats(2).Load(WorkerMoves); n != 1 {
			t.Errorf("queue 2 has moved %d times", n)
		}
		if len(b.notes) != 1 || !strings.Contains(b.notes[0], "queue 2 moves from worker 0 to worker 1") {
			t.Errorf("notes %q", b.notes)
		}
		if b.workers[0].load != 3 || b.workers[1].load != 1 {
			t.Errorf("the workers have %d and %d queues", b.workers[0].load, b.workers[1].load)
		}
		// The queue takes more where it is. It does not go back, and another one waits.
		one := []int{0, 0, 1, 0}
		seconds(2, one, []float64{0.3, 0.9}, 10, 10, 50, 5)
		seconds(10, one, []float64{0.3, 0.9}, 10, 10, 50, 5)
		seconds(4, []int{0, 1, 1, 0}, []float64{0.9, 0.3}, 30, 20, 10, 10)
		// What has moved stays for a while, and then for longer.
		seconds(40, []int{0, 1, 1, 0}, []float64{0.1, 0.9}, 1, 10, 10, 1)
		seconds(30, []int{0, 1, 0, 0}, []float64{0.1, 0.9}, 1, 10, 10, 1)
		seconds(10, []int{0, 1, 0, 0}, []float64{0.6, 0.6}, 1, 10, 10, 1)
		if b.conn.spread[2].stays.Before(b.now.Add(stayTime)) {
			t.Error("a queue that has moved twice may move soon")
		}
	})
}

// TestNewQueuesGoToTheLeastBusyWorker, and if nothing is known of loads to that with the fewest.
func TestNewQueuesGoToTheLeastBusyWorker(t *testing.T) {
	for _, tt := range []struct {
		name  string
		loads []float64 // nil: not measured
		have  []int     // queues
		want  []int     // the workers of queues that come
	}{
		{"not measured", nil, []int{2, 0, 1}, []int{1, 1, 2, 0}},
		{"all idle", []float64{0, 0.05, 0}, []int{1, 0, 1}, []int{1, 0, 2, 1}},
		{"one busy", []float64{0.9, 0.1, 0}, []int{0, 5, 6}, []int{2, 1, 2, 1}},
		{"by load, and then by number", []float64{0.35, 0}, []int{0, 3}, []int{1, 1, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &Pool{measured: tt.loads != nil}
			for i, n := range tt.have {
				w := &worker{index: i, load: n}
				if tt.loads != nil {
					w.expected = tt.loads[i]
				}
				p.workers = append(p.workers, w)
			}
			var got []int
			for range tt.want {
				q := new(Queue)
				p.pick(q)
				got = append(got, q.worker.Load().index)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("workers %v, want %v", got, tt.want)
				}
			}
		})
	}
}

// TestQueuesThatStay: those in breach, in a resteering, of a vif that is closed, of a costly guest,
// and those of a spare.
func TestQueuesThatStay(t *testing.T) {
	inModes(t, allModes[1:2], func(t *testing.T, m mode) {
		b := newSpreadBed(t, m, 2, setup{cfg: full, queues: orderQueues})
		q := b.queue()
		for _, tt := range []struct {
			name string
			set  func(on bool)
		}{
			{"breach", func(on bool) { q.breached = on }},
			{"resteering", func(on bool) {
				if on {
					b.prepare(&resteering{kernel: true})
					return
				}
				b.begin(q.resteer.resteering)
				b.settle()
			}},
			{"closing", b.conn.closing.Store},
			{"costly", func(on bool) { q.account.costly = on }},
			{"resting", func(on bool) {
				if q.account.rest = (time.Time{}); on {
					q.account.rest = b.now
				}
			}},
			{"worker has been replaced", func(on bool) {
				if b.w.pool.workers = b.workers; on {
					b.w.pool.workers = []*worker{b.workers[1], b.workers[1]}
				}
			}},
			{"", func(bool) {}},
		} {
			tt.set(true)
			b.move(q, 1)
			b.settle()
			if moved := q.worker.Load() != b.w; moved != (tt.name == "") {
				t.Errorf("%q: moves: %t", tt.name, moved)
			}
			tt.set(false)
		}
	})
}

// TestThreadLoad: the meter counts the time that a thread runs, with the file of its waits and
// without it.
func TestThreadLoad(t *testing.T) {
	p, err := NewPool(Options{Workers: 1, NoUring: true})
	must(t, err)
	defer p.Close()
	w := p.workers[0]
	for _, way := range []string{"file", "clock"} {
		before := w.meter.read()
		w.post(nil, func(*worker) {
			for start := threadTime(); threadTime()-start < 20*time.Millisecond; {
			}
		})
		must(t, p.Ping(t.Context()))
		if n := w.meter.read() - before; n < 10*time.Millisecond {
			t.Errorf("%s: %v more, it ran for 20 ms", way, n)
		}
		w.meter.file.Store(nil)
	}
}

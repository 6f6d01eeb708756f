// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/heldwait"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// lineup is queues of some guests that take turns without threads.
type lineup struct {
	*testing.T
	turns  turns
	guests map[string]*Guest
	queues map[string]*queue
}

func newLineup(t *testing.T, most int) *lineup {
	l := &lineup{T: t, turns: newTurns(most), guests: map[string]*Guest{}, queues: map[string]*queue{}}
	t.Cleanup(func() {
		for _, q := range l.queues {
			l.turns.give(q)
		}
		for _, q := range l.queues {
			l.turns.close(q)
		}
		if n := len(l.turns.parties) + len(l.turns.inside) + len(l.turns.wait); n != 0 || l.turns.crowded.Load() {
			t.Errorf("at the end there are %d guests, queues that wait, or turns", n)
		}
		if l.turns.check != nil {
			l.turns.check.Stop()
		}
	})
	return l
}

// enter lets queues want a turn. The name of a queue begins with that of its guest, a letter.
func (l *lineup) enter(names ...string) {
	l.Helper()
	for _, n := range names {
		g := l.guests[n[:1]]
		if g == nil {
			g = NewGuest(0)
			l.guests[n[:1]] = g
		}
		if l.queues[n] == nil {
			l.queues[n] = &queue{}
			l.turns.open(l.queues[n], g)
		}
		l.turns.enter(l.queues[n])
	}
}

// give ends turns.
func (l *lineup) give(names ...string) {
	for _, n := range names {
		l.turns.give(l.queues[n])
	}
}

// want checks that these queues are in a turn, and that those which waited were told.
func (l *lineup) want(names ...string) {
	l.Helper()
	got := []string{}
	for n, q := range l.queues {
		if q.visit.inside {
			got = append(got, n)
		}
		select {
		case <-q.visit.enter:
			if !q.visit.inside {
				l.Errorf("%s was told to enter, and its turn does not count", n)
			}
		default:
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(names, got); diff != "" {
		l.Errorf("in a turn (-want +got)\n%s", diff)
	}
}

// TestTurnsOfGuests: a guest with many queues has what no other guest wants.
func TestTurnsOfGuests(t *testing.T) {
	l := newLineup(t, 2)
	l.enter("a1", "b1", "a2", "a3", "a4")
	l.want("a1", "b1")
	l.give("b1")
	l.want("a1", "a2") // a processor would be idle
	l.enter("b1", "c1")
	l.want("a1", "a2", "b1", "c1") // each guest may always have one
	l.give("a1")
	l.want("a2", "b1", "c1") // but no more while others have turns
	l.give("a2")
	l.want("a3", "b1", "c1")
	l.enter("b2", "a2")
	l.give("b1")
	l.want("a3", "b2", "c1")
	l.give("c1")
	l.want("a3", "b2")
	l.give("b2")
	l.want("a3", "a4") // in the order in which they came
	l.give("a3", "a4")
	l.want("a2")
}

// TestTurnsByWeight: further turns go to the guest that has the fewest for its weight.
func TestTurnsByWeight(t *testing.T) {
	l := newLineup(t, 4)
	l.guests["a"], l.guests["b"] = NewGuest(0), NewGuest(0)
	one, other := &Conn{cfg: Config{Guest: l.guests["a"]}}, &Conn{cfg: Config{Guest: l.guests["a"]}}
	one.SetWeight(3)
	other.SetWeight(2)
	l.enter("a1", "b1", "a2", "b2", "a3", "a4", "a5", "b3")
	l.want("a1", "a2", "a3", "b1", "b2")
	l.give("b1")
	l.want("a1", "a2", "a3", "b2")
	l.give("a1")
	l.want("a2", "a3", "a4", "b2")
	other.SetWeight(1)
	one.SetWeight(1)
	l.give("b2")
	l.want("a2", "a3", "a4", "b3")
	for n, want := range map[int]int{-1: 1, 0: 1, 16: 16, 17: 16} {
		one.SetWeight(n)
		if got := l.guests["a"].Weight(); got != want {
			t.Errorf("weight %d becomes %d, want %d", n, got, want)
		}
	}
	l.give("a2", "a3", "a4", "b3")
}

// TestTurnsAlone: a guest without others has no bound, and has one at once when another comes.
func TestTurnsAlone(t *testing.T) {
	l := newLineup(t, 1)
	l.enter("a1", "a2", "a3")
	l.want("a1", "a2", "a3")
	l.enter("b1")
	l.want("a1", "a2", "a3", "b1")
	l.give("a1")
	l.enter("a1")
	l.want("a2", "a3", "b1")
	l.turns.mixed = time.Now().Add(-2 * aloneAfter)
	l.enter("a4")
	l.want("a2", "a3", "a4", "b1")
	l.give("a2", "a3", "a4", "b1")
	l.want("a1")
}

// TestTurnsThatDoNotEnd: a queue that hangs in a turn keeps no other from theirs.
func TestTurnsThatDoNotEnd(t *testing.T) {
	l := newLineup(t, 1)
	l.enter("b1")
	l.give("b1")
	l.enter("a1", "a2")
	l.want("a1")
	l.turns.look()
	l.want("a1")
	l.turns.look()
	l.want("a2")
	l.enter("a3")
	l.turns.look()
	l.give("a1") // late
	l.want("a2")
	l.turns.look()
	l.want("a3")
	l.give("a2", "a3")
}

// crowd is some guests' frontends, which read without end.
type crowd struct {
	stop atomic.Bool
	wg   sync.WaitGroup
}

// read makes a connection of a guest read 4 KiB at a time from its disk, with so many requests
// in flight, and counts the reads.
func (c *crowd) read(b *bed, depth int, count *atomic.Int64) {
	c.wg.Go(func() {
		for i := range depth {
			q := b.request(blkif.OpRead, uint64(i)*8, i, 1, i)
			b.front.Put(&q)
		}
		b.push()
		for !c.stop.Load() {
			n, err := b.front.Responses()
			if err != nil {
				b.Error(err)
				return
			}
			if n == 0 {
				if more, _ := b.front.Arm(); !more {
					select {
					case <-b.guest.Wake(b.port):
					case <-time.After(10 * time.Millisecond): // for stop
					}
				}
				continue
			}
			for range n {
				rsp := b.front.Response(b.front.RspCons())
				b.front.Take(1)
				i := int(rsp.ID) % depth
				q := b.request(blkif.OpRead, uint64(i)*8, i, 1, i)
				b.front.Put(&q)
			}
			count.Add(int64(n))
			b.push()
		}
	})
}

// TestBenchGuests measures a guest with one queue beside one with many, with and without turns.
func TestBenchGuests(t *testing.T) {
	if os.Getenv(envBench) == "" {
		t.Skip("set " + envBench + "=1")
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 8) // as blkbackd does
	heldwait.Allow(8)
	for range 2 {
		for _, turns := range []int{1 << 20, 0} {
			for _, queues := range []int{0, 1, 8, 32} {
				benchGuests(t, turns, queues)
			}
		}
	}
}

// benchGuests has a guest read with one request at a time, and another one with many.
func benchGuests(tb testing.TB, turns, queues int) {
	d := fileDisk(tb, 1<<20, disk.CacheWriteback)
	if _, err := unix.Pwrite(d.FD(), make([]byte, 1<<20), 0); err != nil {
		tb.Fatal(err)
	}
	pool := NewPool(Options{Turns: turns})
	many, one := NewGuest(0), NewGuest(0)
	var c crowd
	var ofMany, ofOne atomic.Int64
	var beds []*bed
	connect := func(g *Guest, depth int, count *atomic.Int64) {
		b := newBed(tb, bedConfig{disk: d, pages: 64, noJournal: true, config: func(c *Config) { c.Guest = g }})
		var err error
		if b.conn, err = pool.Connect(b.cfg); err != nil {
			tb.Fatal(err)
		}
		b.conn.Start()
		c.read(b, depth, count)
		beds = append(beds, b)
	}
	for range queues {
		connect(many, 32, &ofMany)
	}
	connect(one, 1, &ofOne)
	<-time.After(300 * time.Millisecond)
	a, b := ofMany.Load(), ofOne.Load()
	began, used := time.Now(), cpuTime(unix.RUSAGE_SELF)
	<-time.After(2 * time.Second)
	took := time.Since(began).Seconds()
	used = cpuTime(unix.RUSAGE_SELF) - used
	n, m := ofMany.Load()-a, ofOne.Load()-b
	tb.Logf("turns %d, %d queues of a busy guest: %.0f requests/s of that, %.0f of a quiet one; %.1f us of processor time each, %.2f processors",
		turns, queues, float64(n)/took, float64(m)/took, used.Seconds()*1e6/float64(n+m), used.Seconds()/took)
	c.stop.Store(true)
	c.wg.Wait()
	for _, b := range beds {
		b.disconnect()
	}
}

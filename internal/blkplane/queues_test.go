// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestTwoQueues: queues share a disk, and one whose operation hangs does not hold up the
// other.
func TestTwoQueues(t *testing.T) {
	gate := make(chan struct{})
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Write && o.Off == 0 {
			<-gate
		}
		return powercut.Fault{}
	})})
	const secondRing xen.Gref = 200
	other := *b
	other.ring = b.guest.GrantRun(secondRing, 1, gntdev.ReadWrite)
	other.port = b.guest.Offer()
	other.newRing(blkif.X8664)
	b.cfg.Queues = append(b.cfg.Queues, QueueConfig{Refs: []xen.Gref{secondRing}, Port: other.port, Journal: b.cfg.Queues[0].Journal + "-1"})
	b.connect()
	other.conn = b.conn
	want := bytes.Clone(b.fill(0, 20, 1))
	hung := b.put(b.request(blkif.OpWrite, 0, 40, 1, 0))
	b.push()
	if st := other.do(other.request(blkif.OpWrite, 64, 0, 20, 0)); st != blkif.StatusOkay {
		t.Fatal(st)
	}
	if st := other.do(other.request(blkif.OpRead, 64, 100, 20, 1)); st != blkif.StatusOkay || !bytes.Equal(b.page(100, 20), want) {
		t.Errorf("read through the other queue: %v", st)
	}
	close(gate)
	if got := b.take(1); got[hung].Status != blkif.StatusOkay {
		t.Errorf("%+v", got)
	}
	b.drain()
}

// heldGrants are devices whose copies wait.
type heldGrants struct {
	Grants
	hang <-chan struct{}
}

func (g heldGrants) Copy(segs []gntdev.Segment) error {
	<-g.hang
	return g.Grants.Copy(segs)
}

// heldHost opens such devices.
type heldHost struct {
	doubles
	hang <-chan struct{}
}

func (h heldHost) OpenGrants() (Grants, error) {
	g, err := h.doubles.OpenGrants()
	return heldGrants{g, h.hang}, err
}

// TestQueueThatIsHeld: a thread that does not come back from the kernel costs its queue. Another
// guest is served, and the pool names the queue, once.
func TestQueueThatIsHeld(t *testing.T) {
	hang := make(chan struct{})
	b := newBed(t, bedConfig{})
	b.cfg.Host = heldHost{doubles{b.guest}, hang}
	b.opts.Turns = 1
	b.connect()
	id := b.put(b.request(blkif.OpWrite, 0, 0, 1, 0))
	b.push()
	pool := b.conn.pool
	other := newBed(t, bedConfig{})
	var err error
	if other.conn, err = pool.Connect(other.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.disconnect)
	other.conn.Start()
	inTurn := func() bool {
		pool.turns.mu.Lock()
		defer pool.turns.mu.Unlock()
		return b.conn.queues[0].visit.busy
	}
	for range 3 {
		if s := other.do(other.request(blkif.OpWrite, 0, 0, 1, 0)); s != blkif.StatusOkay {
			t.Fatal(s)
		}
	}
	for deadline := time.Now().Add(patience); !inTurn(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the queue takes no turn")
		}
	}
	now := time.Now()
	for i, want := range []int{0, 0, 1, 0} {
		now = now.Add(heldAfter / 2)
		if held := pool.turns.watch(now); len(held) != want || want == 1 && held[0] != b.conn.queues[0] {
			t.Errorf("look %d: %d queues are held, want %d", i, len(held), want)
		}
	}
	pool.turns.mu.Lock()
	b.conn.queues[0].visit.since, b.conn.queues[0].visit.named = time.Now().Add(-heldAfter), false
	pool.turns.mu.Unlock()
	pool.Watch()
	if n := <-b.notices; n.Kind != Held || !b.conn.Status(0).Stuck {
		t.Errorf("notice %+v, status %+v", n, b.conn.Status(0))
	}
	close(hang)
	if got := b.take(1); got[id].Status != blkif.StatusOkay {
		t.Errorf("%+v", got)
	}
}

// TestIdle: a queue returns its memory when it has been idle, and works again afterwards.
func TestIdle(t *testing.T) {
	b := newBed(t, bedConfig{})
	b.connect()
	b.fill(0, 100, 1)
	for range 2 {
		if st := b.do(b.request(blkif.OpWrite, 0, 0, 100, 0)); st != blkif.StatusOkay {
			t.Fatal(st)
		}
		for deadline := time.Now().Add(patience); b.conn.Status(0).Held != 0; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%+v", b.conn.Status(0))
			}
		}
	}
}

// TestMaps: the pool bounds the persistent grants of all queues. What is not mapped is
// copied.
func TestMaps(t *testing.T) {
	b := newBed(t, bedConfig{opts: Options{MaxMaps: 10}, config: func(c *Config) { c.Persistent = true }})
	b.connect()
	want := bytes.Clone(b.fill(0, 30, 1))
	if st := b.do(b.request(blkif.OpWrite, 0, 0, 30, 0)); st != blkif.StatusOkay {
		t.Fatal(st)
	}
	if !bytes.Equal(b.store.Bytes()[:len(want)], want) {
		t.Error("other data on the disk")
	}
	pool := b.conn.pool
	if n := pool.Maps(); n != 10 {
		t.Errorf("%d maps", n)
	}
	b.disconnect()
	if n := pool.Maps(); n != 0 {
		t.Errorf("%d maps are left", n)
	}
}

// TestThreads: the pool bounds the threads of all connections.
func TestThreads(t *testing.T) {
	b := newBed(t, bedConfig{})
	p := NewPool(Options{MaxThreads: 1})
	b.cfg.Queues = append(b.cfg.Queues, b.cfg.Queues[0])
	if _, err := p.Connect(b.cfg); err == nil || p.Threads() != 0 {
		t.Errorf("%d threads, error %v", p.Threads(), err)
	}
}

// TestNoAllocation: requests allocate nothing once the tables are made.
func TestNoAllocation(t *testing.T) {
	for name, persistent := range map[string]bool{"copies": false, "maps": true} {
		t.Run(name, func(t *testing.T) {
			d := fileDisk(t, 16<<20, disk.CacheWriteback)
			b := newBed(t, bedConfig{disk: d, config: func(c *Config) { c.Persistent = persistent }})
			b.connect()
			const depth, rounds = 8, 200
			var made [depth]blkif.Request
			for i := range made {
				made[i] = b.request(blkif.Op(i%2), uint64(i)*256, i*20, 20, i)
				if i == depth-1 {
					made[i] = blkif.Request{Op: blkif.OpFlush}
				}
			}
			round := func() {
				for i := range made {
					made[i].ID = uint64(i)
					b.front.Put(&made[i])
				}
				b.push()
				for left := uint32(depth); left > 0; {
					n, _ := b.front.Responses()
					b.front.Take(n)
					if left -= n; n == 0 {
						if more, _ := b.front.Arm(); !more {
							<-b.guest.Wake(b.port)
						}
					}
				}
			}
			for range 20 {
				round()
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range rounds {
				round()
			}
			runtime.ReadMemStats(&after)
			if per := float64(after.Mallocs-before.Mallocs) / (rounds * depth); per > 0.1 {
				t.Errorf("%.2f allocations for each request", per)
			}
		})
	}
}

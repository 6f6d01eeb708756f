// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// TestFailedWritesFreeMemory: writes that wait for memory go on when those before them fail
// before any of them reaches the disk. No completion wakes the queue for that.
func TestFailedWritesFreeMemory(t *testing.T) {
	b := newBed(t, bedConfig{config: func(c *Config) { c.Guest = NewGuest(4096) }})
	if err := b.tryConnect(); err != nil {
		t.Fatal(err)
	}
	q := b.conn.queues[0]
	q.journal.hook = func(s step) {
		if s == stepCons {
			q.tell(cmdDrain) // from now on the queue does not wake up by itself
		}
	}
	b.conn.Start()
	const n = 6
	for i := range n {
		r := b.request(blkif.OpWrite, 0, 0, maxChunk/blkif.PageSize, i)
		set := i * blkif.MaxIndirectPages * blkif.PageSize
		blkif.EncodeIndirect(b.pages[set:], []blkif.RawSegment{{Gref: 5, Last: 7}})
		b.put(r)
	}
	b.push()
	for id, r := range b.take(n) {
		if r.Status != blkif.StatusError {
			t.Errorf("request %d: %v", id, r.Status)
		}
	}
	b.drain()
}

// TestBrokenQueueReturnsMemory: the memory of operations that end after their queue has
// stopped goes back to the guest's budget.
func TestBrokenQueueReturnsMemory(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	g := NewGuest(0)
	b := newBed(t, bedConfig{sectors: 1 << 16, pages: 1024, config: func(c *Config) { c.Guest = g },
		store: hooked(func(o powercut.Op) powercut.Fault {
			entered <- struct{}{}
			<-gate
			return powercut.Fault{}
		})})
	b.connect()
	for i := range 4 {
		b.put(b.request(blkif.OpRead, 0, 256*i, 256, i))
	}
	b.push()
	<-entered
	b.front.SetReqProd(1000)
	_ = b.guest.Send(b.port)
	if n := <-b.notices; n.Kind != Broken {
		t.Fatalf("notice %+v", n)
	}
	if g.Used() == 0 {
		t.Error("the requests do not count against the budget")
	}
	close(gate)
	b.disconnect()
	if n := g.Used(); n != 0 {
		t.Errorf("%d bytes are left in use", n)
	}
}

// TestDrainWithoutEngine: a queue whose engine could not be made counts as drained.
func TestDrainWithoutEngine(t *testing.T) {
	b := newBed(t, bedConfig{})
	if err := b.tryConnect(); err != nil {
		t.Fatal(err)
	}
	b.conn.queues[0].bell.close() // it cannot be polled
	b.conn.Start()
	if n := <-b.notices; n.Kind != Broken {
		t.Fatalf("notice %+v", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := b.conn.Drain(ctx); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// TestFaultsAreContained: a page of the ring that cannot be accessed stops the queue, in a
// turn and between two.
func TestFaultsAreContained(t *testing.T) {
	for name, at := range map[string]step{"in a turn": stepRecord, "after a turn": stepNotify} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			if err := b.tryConnect(); err != nil {
				t.Fatal(err)
			}
			q := b.conn.queues[0]
			mem := q.pages.Bytes()
			q.journal.hook = func(s step) {
				if s == at {
					if err := unix.Mprotect(mem, unix.PROT_NONE); err != nil {
						t.Error(err)
					}
				}
			}
			b.conn.Start()
			b.put(b.request(blkif.OpRead, 0, 0, 1, 0))
			b.push()
			if n := <-b.notices; n.Kind != Broken {
				t.Errorf("notice %+v", n)
			}
			b.disconnect()
		})
	}
}

// TestFlushAgain: a flush that was interrupted is made again, and loses nothing.
func TestFlushAgain(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EINTR, unix.EAGAIN, unix.ECANCELED} {
		first := true
		b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
			if o.Kind == powercut.Sync && first {
				first = false
				return powercut.Fault{Err: errno}
			}
			return powercut.Fault{}
		})})
		b.connect()
		for range 2 {
			if st := b.do(blkif.Request{Op: blkif.OpFlush}); st != blkif.StatusOkay {
				t.Errorf("flush after %v: %v", errno, st)
			}
		}
		b.disconnect()
	}
}

// TestCancelled: an operation that io_uring cancelled, because it had no thread for it, is made
// again.
func TestCancelled(t *testing.T) {
	for op, kind := range map[blkif.Op]powercut.Kind{blkif.OpRead: powercut.Read, blkif.OpWrite: powercut.Write, blkif.OpDiscard: powercut.Discard} {
		first := true
		b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
			if o.Kind == kind && first {
				first = false
				return powercut.Fault{Err: unix.ECANCELED}
			}
			return powercut.Fault{}
		})})
		b.connect()
		r := b.request(op, 0, 0, 1, 0)
		if op == blkif.OpDiscard {
			r = blkif.Request{Op: op, NrSectors: 8}
		}
		if st := b.do(r); st != blkif.StatusOkay || first {
			t.Errorf("%v: %v, cancelled %t", op, st, !first)
		}
		b.disconnect()
	}
}

// TestCancelledForEver: an operation that the kernel cancels each time ends with an error, and
// a flush that was never made does not count as lost data.
func TestCancelledForEver(t *testing.T) {
	for op, kind := range map[blkif.Op]powercut.Kind{
		blkif.OpRead: powercut.Read, blkif.OpWrite: powercut.Write, blkif.OpDiscard: powercut.Discard, blkif.OpFlush: powercut.Sync,
	} {
		left := maxAgain + 1
		b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
			if o.Kind != kind || left == 0 {
				return powercut.Fault{}
			}
			left--
			return powercut.Fault{Err: unix.ECANCELED}
		})})
		b.connect()
		r := b.request(op, 0, 0, 1, 0)
		switch op {
		case blkif.OpDiscard:
			r = blkif.Request{Op: op, NrSectors: 8}
		case blkif.OpFlush:
			r = blkif.Request{Op: op}
		}
		for _, want := range []blkif.Status{blkif.StatusError, blkif.StatusOkay} {
			if st := b.do(r); st != want {
				t.Errorf("%v: %v, want %v", op, st, want)
			}
		}
		b.disconnect()
	}
}

// TestLossOutlivesTheDaemon: once a flush has failed, no flush of the connection succeeds,
// also if a successor serves it. The kernel does not report the loss again.
func TestLossOutlivesTheDaemon(t *testing.T) {
	first := true
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Sync && first {
			first = false
			return powercut.Fault{Err: unix.EIO}
		}
		return powercut.Fault{}
	})})
	for i := range 3 {
		b.connect()
		if b.conn.Adopted() != (i > 0) {
			t.Fatalf("daemon %d: adopted %v", i, i == 0)
		}
		if st := b.do(blkif.Request{Op: blkif.OpFlush}); st != blkif.StatusError {
			t.Errorf("flush by daemon %d: %v", i, st)
		}
		if n := <-b.notices; n.Kind != DiskError || !errors.Is(n.Err, unix.EIO) {
			t.Errorf("notice %+v", n)
		}
		b.disconnect()
	}
	b.newRing(blkif.X8664)
	b.connect()
	if st := b.do(blkif.Request{Op: blkif.OpFlush}); st != blkif.StatusOkay {
		t.Errorf("flush of a new connection: %v", st)
	}
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// hooked returns a disk of a bed with a hook.
func hooked(hook func(powercut.Op) powercut.Fault) *powercut.Disk {
	d := powercut.New(8192*512, 1)
	d.Hook = hook
	return d
}

// TestDiskErrors: an error or a short transfer makes the response an error, or is
// continued. A request after it succeeds.
func TestDiskErrors(t *testing.T) {
	fault := func(k powercut.Kind, f powercut.Fault) func(powercut.Op) powercut.Fault {
		var done atomic.Bool
		return func(o powercut.Op) powercut.Fault {
			if o.Kind == k && !done.Swap(true) {
				return f
			}
			return powercut.Fault{}
		}
	}
	cancelled := func(o powercut.Op) (f powercut.Fault) {
		if o.Kind == powercut.Discard {
			f.Err = unix.ECANCELED
		}
		return f
	}
	for name, c := range map[string]struct {
		hook    func(powercut.Op) powercut.Fault
		op      blkif.Op
		want    blkif.Status
		counter Counter
	}{
		"read":        {fault(powercut.Read, powercut.Fault{Err: unix.EIO}), blkif.OpRead, blkif.StatusError, ErrDisk},
		"write":       {fault(powercut.Write, powercut.Fault{Err: unix.ENOSPC}), blkif.OpWrite, blkif.StatusError, ErrDisk},
		"read again":  {fault(powercut.Read, powercut.Fault{Err: unix.EAGAIN}), blkif.OpRead, blkif.StatusOkay, OKs},
		"short read":  {fault(powercut.Read, powercut.Fault{Short: 1024}), blkif.OpRead, blkif.StatusOkay, DiskShort},
		"short write": {fault(powercut.Write, powercut.Fault{Short: 512}), blkif.OpWrite, blkif.StatusOkay, DiskShort},
		"barrier":     {fault(powercut.Write, powercut.Fault{Err: unix.EIO}), blkif.OpBarrier, blkif.StatusError, ErrDisk},
		"flush":       {fault(powercut.Sync, powercut.Fault{Err: unix.EIO}), blkif.OpFlush, blkif.StatusError, ErrSync},
		"before":      {fault(powercut.Sync, powercut.Fault{Err: unix.EIO}), blkif.OpBarrier, blkif.StatusError, ErrSync},
		"discard":     {fault(powercut.Discard, powercut.Fault{Err: unix.EIO}), blkif.OpDiscard, blkif.StatusError, ErrDiscard},
		"cancelled":   {cancelled, blkif.OpDiscard, blkif.StatusError, ErrDiscard},
		"no discard":  {fault(powercut.Discard, powercut.Fault{Err: unix.EOPNOTSUPP}), blkif.OpDiscard, blkif.StatusNotSupported, ErrDiscard},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{store: hooked(c.hook)})
			b.connect()
			b.fill(0, 4, 1)
			r := b.request(c.op, 8, 0, 4, 0)
			switch c.op {
			case blkif.OpDiscard:
				r = blkif.Request{Op: c.op, Sector: 8, NrSectors: 8}
			case blkif.OpFlush:
				r = blkif.Request{Op: c.op}
			}
			if st := b.do(r); st != c.want {
				t.Errorf("%v, want %v", st, c.want)
			}
			if st := b.do(b.request(blkif.OpWrite, 8, 0, 4, 0)); st != blkif.StatusOkay {
				t.Errorf("a write after it: %v", st)
			}
			if b.count(c.counter) == 0 {
				t.Errorf("counter %v is 0", c.counter)
			}
			lost := c.counter == ErrSync
			if st := b.do(blkif.Request{Op: blkif.OpFlush}); (st == blkif.StatusError) != lost {
				t.Errorf("a flush after it: %v", st)
			}
		})
	}
}

// TestStaleData: a read that fails leaves the guest's pages alone, so they never show what
// another request left in the buffer.
func TestStaleData(t *testing.T) {
	var fail atomic.Bool
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Read && fail.Load() {
			return powercut.Fault{Err: unix.EIO}
		}
		return powercut.Fault{}
	})})
	b.connect()
	b.fill(0, 4, 77)
	b.do(b.request(blkif.OpWrite, 0, 0, 4, 0))
	fail.Store(true)
	if st := b.do(b.request(blkif.OpRead, 0, 8, 4, 0)); st != blkif.StatusError {
		t.Fatal(st)
	}
	if !bytes.Equal(b.page(8, 4), make([]byte, 4*4096)) {
		t.Error("a read that failed changed the guest's pages")
	}
}

// TestBadGrants: a page that cannot be used fails its request and no other of the batch.
func TestBadGrants(t *testing.T) {
	for name, c := range map[string]struct {
		op      blkif.Op
		spoil   func(b *bed, r *blkif.Request)
		counter blkif.Reason
	}{
		"write data": {blkif.OpWrite, func(b *bed, r *blkif.Request) { r.Segs[2].Gref = 5 }, blkif.ReasonGrant},
		"read data":  {blkif.OpRead, func(b *bed, r *blkif.Request) { r.Segs[2].Gref = 5 }, blkif.ReasonGrant},
		"read-only page": {blkif.OpRead, func(b *bed, r *blkif.Request) {
			if err := b.guest.SetProt(r.Segs[1].Gref, gntdev.ReadOnly); err != nil {
				b.Fatal(err)
			}
		}, blkif.ReasonGrant},
		"indirect page": {blkif.OpWrite, func(b *bed, r *blkif.Request) {
			*r = b.request(blkif.OpWrite, 8, 0, 600, 3)
			r.Grefs[1] = 5
		}, blkif.ReasonIndirectGrant},
	} {
		for _, persistent := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				b := newBed(t, bedConfig{pages: 1024, config: func(c *Config) { c.Persistent = persistent }})
				b.connect()
				b.fill(0, 1024, 1)
				bad := b.request(c.op, 8, 0, 4, 0)
				c.spoil(b, &bad)
				before := b.put(b.request(blkif.OpWrite, 64, 20, 2, 0))
				id := b.put(bad)
				after := b.put(b.request(blkif.OpWrite, 128, 30, 200, 1))
				b.push()
				got := b.take(3)
				if got[id].Status != blkif.StatusError {
					t.Errorf("bad request: %v", got[id])
				}
				if got[before].Status != blkif.StatusOkay || got[after].Status != blkif.StatusOkay {
					t.Errorf("others: %v, %v", got[before], got[after])
				}
				b.drain()
				if n := b.count(refusal(c.counter)); n != 1 {
					t.Errorf("counter %v is %d", c.counter, n)
				}
				n := <-b.notices
				if n.Kind != BadRequest || n.Reason != refusal(c.counter) {
					t.Errorf("notice %+v", n)
				}
				if used := b.conn.Status(0).Bytes; used != 0 {
					t.Errorf("%d bytes of buffers are left in use", used)
				}
			})
		}
	}
}

// TestOverrun: a frontend that breaks the ring stops its queue for good, and nothing else.
func TestOverrun(t *testing.T) {
	b := newBed(t, bedConfig{})
	b.connect()
	b.front.SetReqProd(1000)
	_ = b.guest.Send(b.port)
	n := <-b.notices
	if n.Kind != Broken || !errors.Is(n.Err, blkif.ErrOverrun) {
		t.Fatalf("notice %+v", n)
	}
	b.disconnect()
	if err := b.tryConnect(); err == nil {
		t.Error("a broken ring can be connected again")
	}
}

// TestPanic: a panic stops the queue and not the process.
func TestPanic(t *testing.T) {
	b := newBed(t, bedConfig{})
	if err := b.tryConnect(); err != nil {
		t.Fatal(err)
	}
	b.conn.queues[0].journal.hook = func(s step) {
		if s == stepCons {
			panic(killed)
		}
	}
	b.conn.Start()
	b.put(b.request(blkif.OpRead, 0, 0, 1, 0))
	b.push()
	if n := <-b.notices; n.Kind != Broken || !strings.Contains(n.Err.Error(), "internal error") {
		t.Errorf("notice %+v", n)
	}
	if !b.conn.Status(0).Broken {
		t.Error("the queue does not look broken")
	}
	b.drain2()
}

// drain2 checks that the drain of a broken queue does not wait.
func (b *bed) drain2() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	b.conn.Close()
	if err := b.conn.Drain(ctx); err != nil {
		b.Errorf("drain of a broken queue: %v", err)
	}
}

// TestHungDisk: a drain is bounded. After it the memory stays until the disk has ended its
// operation, whose request is then answered.
func TestHungDisk(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Read {
			close(entered)
			<-gate
		}
		return powercut.Fault{}
	})})
	b.connect()
	id := b.put(b.request(blkif.OpRead, 0, 0, 2, 0))
	b.push()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := b.conn.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain: %v", err)
	}
	unseen := b.put(b.request(blkif.OpRead, 8, 4, 2, 0))
	b.push()
	c := b.conn
	c.Close()
	select {
	case <-c.Done():
		t.Fatal("the queue ended while the disk had an operation")
	case <-time.After(20 * time.Millisecond):
	}
	if u := b.guest.Usage(); u.Pages == 0 {
		t.Error("the ring was unmapped")
	}
	close(gate)
	b.disconnect()
	got := b.take(1)
	if got[id].Status != blkif.StatusOkay {
		t.Errorf("late answer: %+v", got)
	}
	if _, ok := got[unseen]; ok {
		t.Error("a request that came after the drain was consumed")
	}
}

// TestFlushesShare: flushes that come while one is under way are answered by the next, and
// by one.
func TestFlushesShare(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Sync {
			entered <- struct{}{}
			<-gate
		}
		return powercut.Fault{}
	})})
	b.connect()
	first := b.put(blkif.Request{Op: blkif.OpFlush})
	b.push()
	<-entered
	for range 5 {
		b.put(blkif.Request{Op: blkif.OpFlush})
	}
	// The write is done when the flushes before it have been started.
	write := b.put(b.request(blkif.OpWrite, 0, 0, 1, 0))
	b.push()
	if _, ok := b.take(1)[write]; !ok {
		t.Fatal("the write has no response")
	}
	gate <- struct{}{}
	if got := b.take(1); got[first].ID != first {
		t.Errorf("the first flush answered others: %v", got)
	}
	close(gate)
	b.take(5)
	b.drain()
	if s, f := b.count(Syncs), b.count(FlushesShared); s != 2 || f != 4 {
		t.Errorf("%d flushes of the disk, %d shared: want 2 and 4", s, f)
	}
}

// TestBarrierOrder: a barrier waits for the requests before it, and the others wait for it.
func TestBarrierOrder(t *testing.T) {
	gate := make(chan struct{})
	ops := make(chan powercut.Op, 100)
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		ops <- o
		if o.Kind == powercut.Write && o.Off == 0 {
			<-gate
		}
		return powercut.Fault{}
	})})
	b.connect()
	b.put(b.request(blkif.OpWrite, 0, 0, 1, 0))
	b.put(b.request(blkif.OpBarrier, 8, 1, 1, 0))
	b.put(b.request(blkif.OpWrite, 16, 2, 1, 0))
	b.put(blkif.Request{Op: blkif.OpBarrier})
	b.put(b.request(blkif.OpRead, 16, 3, 1, 0))
	b.push()
	if o := <-ops; o.Off != 0 {
		t.Errorf("first %+v", o)
	}
	select {
	case o := <-ops:
		t.Errorf("%+v did not wait", o)
	case <-time.After(20 * time.Millisecond):
	}
	close(gate)
	b.take(5)
	for i, want := range []powercut.Op{
		{Kind: powercut.Sync}, {Kind: powercut.Write, Off: 8 * 512, N: 4096}, {Kind: powercut.Sync},
		{Kind: powercut.Write, Off: 16 * 512, N: 4096}, {Kind: powercut.Sync}, {Kind: powercut.Read, Off: 16 * 512, N: 4096},
	} {
		if o := <-ops; o != want {
			t.Errorf("operation %d: %+v, want %+v", i, o, want)
		}
	}
}

// TestMemory: a guest whose budget is used up goes on, more slowly, and all memory comes
// back.
func TestMemory(t *testing.T) {
	for name, budget := range map[string]int64{"little": 4096, "two chunks": 2 * maxChunk, "plenty": 0} {
		t.Run(name, func(t *testing.T) {
			g := NewGuest(budget)
			b := newBed(t, bedConfig{pages: 1024, sectors: 1 << 18, config: func(c *Config) { c.Guest = g }})
			b.connect()
			for range 3 {
				for i := range 32 {
					b.put(b.request(blkif.OpWrite, uint64(i)*1024*8, 0, 1024-i, i))
				}
				b.push()
				for id, r := range b.take(32) {
					if r.Status != blkif.StatusOkay {
						t.Fatalf("request %d: %v", id, r.Status)
					}
				}
			}
			b.drain()
			if n := g.Used(); n != 0 {
				t.Errorf("%d bytes are left in use", n)
			}
			if w := b.count(MemoryWaits); w == 0 {
				t.Error("no request waited for memory")
			}
		})
	}
}

// TestPersistent: grants are mapped once, and unmapped at the end.
func TestPersistent(t *testing.T) {
	b := newBed(t, bedConfig{pages: 2048, config: func(c *Config) { c.Persistent = true }})
	b.connect()
	for i := range 3 {
		want := bytes.Clone(b.fill(0, 256, i))
		if st := b.do(b.request(blkif.OpWrite, 0, 0, 256, 0)); st != blkif.StatusOkay {
			t.Fatal(st)
		}
		if st := b.do(b.request(blkif.OpRead, 0, 256, 256, 1)); st != blkif.StatusOkay {
			t.Fatal(st)
		}
		if !bytes.Equal(b.page(256, 256), want) {
			t.Fatal("other data")
		}
	}
	// More pages than there is room for: the rest is copied.
	for i := range 4 {
		want := bytes.Clone(b.fill(i*512, 512, i))
		if st := b.do(b.request(blkif.OpWrite, 0, i*512, 512, 0)); st != blkif.StatusOkay {
			t.Fatal(st)
		}
		if !bytes.Equal(b.store.Bytes()[:len(want)], want) {
			t.Fatal("other data on the disk")
		}
	}
	b.drain()
	if m := b.count(Maps); m != MaxPersistent {
		t.Errorf("%d maps, want %d", m, MaxPersistent)
	}
	if h, g := b.count(MapHits), b.count(GrantOps); h == 0 || g == 0 {
		t.Errorf("%d hits, %d grant copies", h, g)
	}
	b.disconnect()
	if u := b.guest.Usage(); u != (xentest.Usage{}) {
		t.Errorf("left: %v", u)
	}
}

// TestResize: requests must keep to the size that was set last.
func TestResize(t *testing.T) {
	b := newBed(t, bedConfig{sectors: 1024})
	b.connect()
	for _, c := range []struct {
		sectors uint64
		want    blkif.Status
	}{{1024, blkif.StatusOkay}, {1023, blkif.StatusError}, {1024, blkif.StatusOkay}} {
		b.conn.Resize(c.sectors)
		if st := b.do(b.request(blkif.OpRead, 1016, 0, 1, 0)); st != c.want {
			t.Errorf("%d sectors: %v, want %v", c.sectors, st, c.want)
		}
	}
}

// TestEvents: events without requests do not keep the thread busy, and no request is lost
// behind them.
func TestEvents(t *testing.T) {
	b := newBed(t, bedConfig{})
	b.connect()
	for i := range 200 {
		_ = b.guest.Send(b.port)
		if i%10 == 0 {
			if st := b.do(b.request(blkif.OpRead, 0, 0, 1, 0)); st != blkif.StatusOkay {
				t.Fatal(st)
			}
		}
	}
	b.guest.Intercept(nil)
}

// TestEngines: the line works with files, with io_uring and without.
func TestEngines(t *testing.T) {
	for name, noUring := range map[string]bool{"io_uring": false, "threads": true} {
		for _, cache := range []disk.Cache{disk.CacheWriteback, disk.CacheDirect} {
			t.Run(name+"-"+cache.String(), func(t *testing.T) {
				d := fileDisk(t, 16<<20, cache)
				b := newBed(t, bedConfig{pages: 2048, disk: d, opts: Options{NoUring: noUring}})
				b.connect()
				want := bytes.Clone(b.fill(0, 1024, 5))
				for _, r := range []blkif.Request{
					b.request(blkif.OpWrite, 8, 0, 1024, 0),
					{Op: blkif.OpFlush},
					b.request(blkif.OpRead, 8, 1024, 1024, 1),
					{Op: blkif.OpDiscard, Sector: 16, NrSectors: 8},
				} {
					if st := b.do(r); st != blkif.StatusOkay {
						t.Fatalf("%v: %v", r.Op, st)
					}
				}
				if !bytes.Equal(b.page(1024, 1024), want) {
					t.Error("other data")
				}
				b.do(b.request(blkif.OpRead, 16, 0, 1, 0))
				if !bytes.Equal(b.page(0, 1), make([]byte, 4096)) {
					t.Error("the discarded sectors have data")
				}
				if b.conn.Status(0).IOUring == noUring {
					t.Errorf("io_uring: %v", !noUring)
				}
				b.disconnect()
			})
		}
	}
}

// fileDisk opens a file of so many bytes.
func fileDisk(tb testing.TB, size int64, cache disk.Cache) *disk.Disk {
	tb.Helper()
	path := tb.TempDir() + "/disk"
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(unix.Ftruncate(fd, size), unix.Close(fd)); err != nil {
		tb.Fatal(err)
	}
	d, err := disk.Open(context.Background(), disk.Options{Path: path, Cache: cache})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = d.Close() })
	return d
}

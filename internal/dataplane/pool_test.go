// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// live is a pool whose workers run in their own threads, and a vif on a TAP.
type live struct {
	t       *testing.T
	pool    *Pool
	host    *host
	fronts  []*front
	conn    *Conn
	notices chan Notice
	cfg     Config
	queues  []QueueConfig
}

func newLive(t *testing.T, m mode, workers, queues int, cfg Config) *live {
	t.Helper()
	opts := Options{Workers: workers, NoUring: !m.uring, Warn: func(err error) { t.Error(err) }}
	if m.ownPages() {
		opts.OwnPager = startOwn(t)
	}
	p, err := NewPool(opts)
	must(t, err)
	t.Cleanup(p.Close)
	l := &live{t: t, pool: p, notices: make(chan Notice, 100)}
	end := sharedTAP(t, queues, m.vnet)
	l.host = end.host
	l.host.tb = t
	l.cfg = cfg
	l.cfg.Domid, l.cfg.VnetHdr = testDomid, m.vnet
	l.cfg.Notice = func(n Notice) { l.notices <- n }
	for i := range queues {
		f := newFront(t, testDomid)
		f.grants.worker = func() *worker { return l.conn.queues[i].worker.Load() }
		f.events.wake = make(chan struct{}, 1)
		l.fronts = append(l.fronts, f)
		q := f.config()
		q.Tap = end.tap.Queue(i)
		l.queues = append(l.queues, q)
	}
	l.connect()
	t.Cleanup(func() { l.conn.Close() })
	return l
}

func (l *live) connect() {
	l.t.Helper()
	var err error
	for _, f := range l.fronts {
		f.events.rebind()
	}
	// The grants ask for the worker as soon as there is work.
	c, err := newConn(l.cfg, l.queues)
	must(l.t, err)
	l.conn = c
	must(l.t, l.pool.serve(c))
}

// patience bounds the wait of a test for an event that must happen.
const patience = 10 * time.Second

// take waits until n answers have come and returns them.
func (f *front) take(n int) (got []answer) {
	f.tb.Helper()
	deadline := time.After(patience)
	for {
		got = append(got, f.answers()...)
		if len(got) >= n {
			return got
		}
		if more, _ := f.tx.Arm(); more {
			continue
		}
		select {
		case <-f.events.wake:
		case <-deadline:
			f.tb.Fatalf("%d answers, want %d", len(got), n)
		}
	}
}

// TestLive: workers wake up for events and sleep otherwise.
func TestLive(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		l := newLive(t, m, 2, 2, full)
		if l.conn.Queues() != 2 || l.pool.Workers() != 2 {
			t.Errorf("%d queues, %d workers", l.conn.Queues(), l.pool.Workers())
		}
		for i, f := range l.fronts {
			for range 100 {
				want := f.put(packet{frame: udp(30, 1)})
				f.push()
				if diff := cmp.Diff(want, f.take(1)); diff != "" {
					t.Fatalf("answers (-want +got):\n%s", diff)
				}
			}
			f.post(200)
			if s := l.conn.State(i); s.Worker != l.conn.queues[i].worker.Load().index || s.Uring != m.uring || s.Tx.ReqCons != 100 || s.Rx.ReqProd != 200 {
				t.Errorf("state %+v", s)
			}
			if n := l.conn.Stats(i).Load(TxPackets); n != 100 {
				t.Errorf("queue %d: %d packets", i, n)
			}
		}
		if a, b := l.conn.State(0).Worker, l.conn.State(1).Worker; a == b {
			t.Error("both queues on one worker, the other idle")
		}
		// The host may choose either queue.
		l.host.sendPlain(udp(9, 1), udp(9, 2), udp(9, 3))
		n := 0
		for deadline := time.Now().Add(patience); n < 3; {
			for _, f := range l.fronts {
				n += len(f.received())
				_, _ = f.rx.Arm()
			}
			if n < 3 && time.Now().After(deadline) {
				t.Fatalf("%d packets delivered", n)
			}
			if n < 3 {
				select {
				case <-l.fronts[0].events.wake:
				case <-l.fronts[1].events.wake:
				case <-time.After(time.Millisecond):
				}
			}
		}
		l.conn.Close()
		l.conn.Close()
		if s := l.conn.State(0); s != (QueueState{}) {
			t.Errorf("state after Close: %+v", s)
		}
		if l.pool.workers[0].load != 0 || l.pool.workers[1].load != 0 {
			t.Error("workers think that they still have queues")
		}
	})
}

// TestTheRateResumesByItself, on the worker's own clock.
func TestTheRateResumesByItself(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		cfg.Limiter.Set(10_000_000, time.Second)
		l := newLive(t, m, 1, 1, cfg)
		f := l.fronts[0]
		start := time.Now()
		sent := 0
		for sent < 10_500_000 {
			var want []answer
			for f.tx.Free() >= 15 {
				want = append(want, f.put(packet{frame: udp(60000, 1)})...)
				sent += 60042
			}
			f.push()
			if diff := cmp.Diff(want, f.take(len(want))); diff != "" {
				t.Fatalf("answers (-want +got):\n%s", diff)
			}
			l.host.drain()
		}
		if d := time.Since(start); d < 50*time.Millisecond {
			t.Errorf("half a megabyte beyond the burst took %v at 10 MB/s", d)
		}
	})
}

// TestCloseWhileBusy: Close returns at once in the middle of traffic, and nothing touches
// the vif's memory afterwards. The other vif is not affected.
func TestCloseWhileBusy(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		l := newLive(t, m, 1, 2, full)
		// Two vifs of one queue each.
		l.conn.Close()
		var conns [2]*Conn
		for i := range conns {
			c, err := newConn(l.cfg, l.queues[i:i+1])
			must(t, err)
			conns[i] = c
			l.fronts[i].grants.worker = func() *worker { return c.queues[0].worker.Load() }
			must(t, l.pool.serve(c))
			t.Cleanup(c.Close)
		}
		a, b := l.fronts[0], l.fronts[1]
		for range 50 {
			a.fill()
			a.push()
			want := b.put(packet{frame: udp(30, 1)})
			b.push()
			conns[0].Close()
			copies := a.guest.Counts().CopyCalls
			answered := a.answers()
			if diff := cmp.Diff(want, b.take(1)); diff != "" {
				t.Fatalf("answers of the other vif (-want +got):\n%s", diff)
			}
			if got := a.answers(); got != nil || a.guest.Counts().CopyCalls != copies {
				t.Fatalf("a closed vif answered %d after %d, copied %d times after %d", len(got), len(answered), a.guest.Counts().CopyCalls, copies)
			}
			// It comes back on the rings as they are.
			a.events.rebind()
			c, err := newConn(l.cfg, l.queues[:1])
			must(t, err)
			conns[0] = c
			a.grants.worker = func() *worker { return c.queues[0].worker.Load() }
			must(t, l.pool.serve(c))
			a.take(256 - len(answered))
			l.host.drain()
		}
		conns[0].Close()
	})
}

// TestAGuestThatChangesItsMind overwrites requests while they are read: XSA-155. Every
// copy must stay within a page, which the test's grants check, and the daemon must
// survive.
func TestAGuestThatChangesItsMind(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		l := newLive(t, m, 1, 1, full)
		f := l.fronts[0]
		var stop atomic.Bool
		var wg sync.WaitGroup
		tx, rx := f.mem[:netif.PageSize], f.mem[netif.PageSize:2*netif.PageSize]
		wg.Go(func() {
			state := uint32(1)
			rnd := func() uint32 {
				state ^= state << 13
				state ^= state >> 17
				state ^= state << 5
				return state
			}
			for !stop.Load() {
				xentest.PokeTx(tx, netif.Index(rnd()), netif.TxRequest{
					Gref: firstRef + xen.Gref(rnd()%600), Offset: uint16(rnd()), Size: uint16(rnd()) >> (rnd() % 16),
					Flags: netif.TxFlags(rnd() % 16), ID: uint16(rnd()),
				})
				xentest.PokeRx(rx, netif.Index(rnd()), netif.RxRequest{Gref: firstRef + xen.Gref(rnd()%600), ID: uint16(rnd())})
			}
		})
		defer wg.Wait()
		defer stop.Store(true)
		rounds := 500
		if testing.Short() {
			rounds = 50
		}
		breaches := 0
		for range rounds {
			for range 64 {
				f.tx.Put(netif.TxRequest{Gref: firstRef, Size: 60})
			}
			f.tx.Push()
			f.rx.SetReqProd(f.rx.ReqProd() + netif.Index(f.rx.Free()))
			_, _ = f.tx.ArmFor(64)
			f.events.send(txPort)
			l.host.sendPlain(udp(2000, 1), udp(10, 2))
			for deadline := time.Now().Add(patience); f.tx.State().RspProd != f.tx.ReqProd(); {
				select {
				case <-f.events.wake:
					continue
				case n := <-l.notices:
					// A breach is possible. The guest then reconnects.
					if n.Kind != Breach {
						t.Fatalf("notice %+v", n)
					}
					breaches++
					l.conn.Close()
					f.restart()
					l.connect()
				case <-time.After(time.Until(deadline)):
					t.Fatalf("tx ring stands at %+v", f.tx.State())
				}
			}
			// The frontend does not check responses that it has overwritten.
			n, err := f.tx.Responses()
			must(t, err)
			f.tx.Take(n)
			n, err = f.rx.Responses()
			must(t, err)
			f.rx.Take(n)
			l.host.drain()
		}
		n := l.conn.Stats(0)
		t.Logf("%d breaches; last connection: %d packets out, %d in", breaches, n.Load(TxPackets), n.Load(RxPackets))
	})
}

// restart initialises both rings again.
func (f *front) restart() {
	tx, err := netif.InitTx(f.mem[:netif.PageSize])
	must(f.tb, err)
	rx, err := netif.InitRx(f.mem[netif.PageSize : 2*netif.PageSize])
	must(f.tb, err)
	*f.tx, *f.rx = *tx, *rx
}

// TestConnectThatFails leaves nothing behind.
func TestConnectThatFails(t *testing.T) {
	netns.NeedTUN(t)
	l := newLive(t, allModes[0], 2, 2, full)
	l.conn.Close()
	files := openFiles(t)

	t.Run("ring out of bounds", func(t *testing.T) {
		l.fronts[1].tx.SetReqProd(300)
		defer l.fronts[1].tx.SetReqProd(0)
		if _, err := l.pool.Connect(l.cfg, l.queues); !errors.Is(err, netif.ErrOverflow) {
			t.Error(err)
		}
	})
	t.Run("event handle that cannot be watched", func(t *testing.T) {
		q := append([]QueueConfig{}, l.queues...)
		q[1].Events = noEvents{-1}
		if _, err := l.pool.Connect(l.cfg, q); !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
	})
	t.Run("event handle of another queue", func(t *testing.T) {
		q := append([]QueueConfig{}, l.queues...)
		q[1].Events = q[0].Events
		p, err := NewPool(Options{Workers: 1})
		must(t, err)
		defer p.Close()
		if _, err := p.Connect(l.cfg, q); !errors.Is(err, unix.EEXIST) {
			t.Error(err)
		}
	})
	t.Run("ring page that is not there", func(t *testing.T) {
		q := append([]QueueConfig{}, l.queues...)
		q[1].TxPage = q[1].TxPage[:100]
		if _, err := l.pool.Connect(l.cfg, q); err == nil {
			t.Error("no error")
		}
	})
	t.Run("ring page gone bad", func(t *testing.T) {
		page, err := unix.Mmap(-1, 0, netif.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		must(t, err)
		defer unix.Munmap(page)
		_, err = netif.InitTx(page)
		must(t, err)
		q := append([]QueueConfig{}, l.queues...)
		q[1].TxPage = page
		c, err := newConn(l.cfg, q)
		must(t, err)
		j := NewJournal()
		j.recordTx(0, []netif.TxResponse{{}})
		c.queues[1].journal = j
		must(t, unix.Mprotect(page, unix.PROT_NONE))
		p, err := NewPool(Options{Workers: 1})
		must(t, err)
		defer p.Close()
		if err := p.serve(c); err == nil || !strings.Contains(err.Error(), "internal error") {
			t.Error(err)
		}
	})
	for i, w := range l.pool.workers {
		if w.load != 0 {
			t.Errorf("worker %d thinks it has %d queues", i, w.load)
		}
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d files open, %d before", n, files)
	}
	// And it can still be done right.
	l.connect()
	want := l.fronts[1].put(packet{frame: udp(30, 1)})
	l.fronts[1].push()
	if diff := cmp.Diff(want, l.fronts[1].take(1)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// addressSpace is the memory this process has mapped, in bytes.
func addressSpace(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	must(t, err)
	_, err = fmt.Sscan(string(b), &n)
	must(t, err)
	return n * os.Getpagesize()
}

// TestAThousandConnections: connections come and go, each with a packet both ways and one
// that still waits, and leave no files or memory behind.
func TestAThousandConnections(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cycles := 1000
		if testing.Short() {
			cycles = 100
		}
		l := newLive(t, m, 2, 2, full)
		l.conn.Close()
		dir := t.TempDir()
		var files, space int
		for i := range cycles {
			if i == 10 {
				files, space = openFiles(t), addressSpace(t)
			}
			for k := range l.queues {
				j, err := OpenJournal(dir + "/ring" + string(rune('0'+k)))
				must(t, err)
				j.Begin(netif.NewStamp(), 8, 9)
				l.queues[k].Journal = j
			}
			l.connect()
			for k, f := range l.fronts {
				f.put(packet{frame: udp(30, uint16(k))})
				f.push()
			}
			l.host.sendPlain(udp(30, 1), udp(30, 2))
			for _, f := range l.fronts {
				f.take(1)
			}
			l.conn.Close()
			for k := range l.queues {
				must(t, l.queues[k].Journal.Close())
			}
			l.host.drain()
		}
		if n := openFiles(t); n != files {
			t.Errorf("%d files open, %d after the first connections", n, files)
		}
		// The bound is half a backlog per connection, each of which had two: the
		// runtime and the C library reserve tens of megabytes when they start a thread.
		if n := addressSpace(t); n > space+cycles*backlogBytes/2 {
			t.Errorf("%d bytes mapped, %d after the first connections", n, space)
		}
	})
}

// TestAPoolThatIsClosed: its methods return errors and use no closed file.
func TestAPoolThatIsClosed(t *testing.T) {
	netns.NeedTUN(t)
	l := newLive(t, allModes[0], 1, 1, full)
	p, err := NewPool(Options{Workers: 1})
	must(t, err)
	c, err := p.Connect(l.cfg, nil)
	must(t, err)
	c.Close()
	p.Close()
	p.Close()
	q, err := newConn(l.cfg, l.queues)
	must(t, err)
	if err := p.serve(q); !errors.Is(err, ErrClosed) {
		t.Errorf("connect: %v", err)
	}
	if s := q.State(0); s != (QueueState{}) {
		t.Errorf("state: %+v", s)
	}
	q.Close()
}

// TestNoticeKinds have names.
func TestNoticeKinds(t *testing.T) {
	want := []string{"breach", "stalled", "resumed", "tap gone", "too big", "coalescing", "unknown(6)"}
	var got []string
	for k := range NoticeKind(7) {
		got = append(got, k.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// TestCountersAreDescribed, each by a name of its own.
func TestCountersAreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for c, info := range Counters {
		if info.Name == "" || info.Help == "" || seen[info.Name] {
			t.Errorf("counter %d: %+v", c, info)
		}
		seen[info.Name] = true
		if Counter(c).String() != info.Name {
			t.Errorf("counter %d calls itself %v", c, Counter(c))
		}
	}
}

// TestPing: running workers answer, and the error names one that is stuck or has ended.
func TestPing(t *testing.T) {
	p, err := NewPool(Options{Workers: 2, NoUring: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := p.Ping(ctx); err != nil {
		t.Error(err)
	}
	stuck, free := make(chan struct{}), make(chan struct{})
	p.workers[1].post(nil, func(*worker) { close(stuck); <-free })
	<-stuck
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if err := p.Ping(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "worker 1") {
		t.Errorf("got %v", err)
	}
	close(free)
	if err := p.Ping(ctx); err != nil {
		t.Error(err)
	}
	p.Close()
	if err := p.Ping(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

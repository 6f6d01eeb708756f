// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

const testDomid = 7

// mode selects the way of packets into and out of the TAP.
type mode struct{ vnet, uring bool }

func (m mode) String() string {
	return map[bool]string{true: "vnet", false: "plain"}[m.vnet] + "," +
		map[bool]string{true: "io_uring", false: "syscalls"}[m.uring]
}

// ownPages reports whether the worker has own pages in this mode.
func (m mode) ownPages() bool { return m.vnet }

var allModes = []mode{{true, true}, {true, false}, {false, true}, {false, false}}

// inModes runs a test in each mode.
func inModes(t *testing.T, modes []mode, test func(t *testing.T, m mode)) {
	netns.NeedTUN(t)
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			if m.uring {
				if err := iouring.Supported(); err != nil {
					t.Skip(err)
				}
			}
			test(t, m)
		})
	}
}

// bed is a worker without a goroutine, a vif that it serves, and the host behind the
// vif's TAP. The test is the worker's thread and its clock: the worker runs only in
// settle.
type bed struct {
	tb      testing.TB
	w       *worker
	tap     *tap.Device
	host    *host
	conn    *Conn
	fronts  []*front
	now     time.Time
	notices []Notice
	warned  []error
	pager   OwnPager // nil: all copies go by address
}

// setup holds the options of a bed.
type setup struct {
	queues   int // 0: 1
	onePort  bool
	portFile bool // the handle for event channels is a file, as of a real Xen
	cfg      Config
	offload  *tap.Offload // nil: all, if there is a vnet header
	pager    OwnPager     // nil: one with enough pages, in some modes
	ownTAP   bool         // the test changes the TAP and needs one of its own
	fronts   []*front     // nil: new ones
	journals []*Journal
}

// full configures a guest that takes all offloads.
var full = Config{
	SG: true, RxNotify: true,
	Coalesce: CoalesceAll,
	Guest:    offload.Guest{CsumIPv4: true, CsumIPv6: true, GSOTCPv4: true, GSOTCPv6: true},
}

func newBed(tb testing.TB, m mode, s setup) *bed {
	tb.Helper()
	b := &bed{tb: tb, now: time.Unix(1e9, 0)}
	if b.pager = s.pager; b.pager == nil && m.ownPages() {
		b.pager = startOwn(tb)
	}
	b.newWorker(m.uring)
	b.newTAP(m.vnet, &s)
	b.connect(m, &s)
	return b
}

func (b *bed) newWorker(uring bool) {
	b.tb.Helper()
	runtime.LockOSThread() // for good: an io_uring belongs to a thread
	debug.SetPanicOnFault(true)
	p := &Pool{opts: Options{OwnPager: b.pager, Warn: func(err error) { b.warned = append(b.warned, err) }}}
	w, err := newWorker(p, 0)
	must(b.tb, err)
	b.tb.Cleanup(w.release)
	p.workers = []*worker{w}
	w.clock = func() time.Time { return b.now }
	w.now = b.now
	if uring {
		must(b.tb, w.openRing())
		w.reads.compared = true // use io_uring even if it is slower here
	}
	b.w = w
}

func (b *bed) newTAP(vnet bool, s *setup) {
	b.tb.Helper()
	offload := tap.Offload{Csum: vnet, TSO4: vnet, TSO6: vnet}
	if s.offload != nil {
		offload = *s.offload
	}
	if s.ownTAP {
		b.tap = createTAP(b.tb, ownName, max(s.queues, 1), vnet)
		b.host = newHost(b.tb, b.tap.Index())
		b.tb.Cleanup(func() { _ = b.tap.Close() })
		b.tb.Cleanup(b.host.close)
	} else {
		t := sharedTAP(b.tb, max(s.queues, 1), vnet)
		b.tap, b.host = t.tap, t.host
		b.host.tb = b.tb
	}
	must(b.tb, b.tap.SetOffload(offload))
}

// tapOf is the key of a shared TAP.
type tapOf struct {
	queues int
	vnet   bool
}

// sharedTAPs holds TAPs and their host sides. Tests use them one after the other, because
// the kernel takes tens of milliseconds to close one.
type sharedTAPs map[tapOf]sharedEnd

type sharedEnd struct {
	tap  *tap.Device
	host *host
}

var shared = sharedTAPs{}

func sharedTAP(tb testing.TB, queues int, vnet bool) sharedEnd {
	tb.Helper()
	key := tapOf{queues, vnet}
	t, ok := shared[key]
	if !ok {
		t.tap = createTAP(tb, fmt.Sprintf("sh%d.%d", os.Getpid(), len(shared)), queues, vnet)
		t.host = newHost(tb, t.tap.Index())
		shared[key] = t
	}
	t.host.drain()
	buf := make([]byte, 64)
	for i := range queues {
		for {
			if _, err := t.tap.Queue(i).Read(buf); err != nil {
				break
			}
		}
	}
	return t
}

func (s sharedTAPs) close() {
	for _, t := range s {
		t.host.close()
		_ = t.tap.Close()
	}
}

// ownName is the name of the TAP of a test that changes it. Other test processes use
// other names.
var ownName = fmt.Sprintf("own%d", os.Getpid())

func createTAP(tb testing.TB, name string, queues int, vnet bool) *tap.Device {
	tb.Helper()
	d, err := tap.Create(tap.Config{Name: name, Queues: queues, VnetHdr: vnet})
	must(tb, err)
	must(tb, d.SetMTU(65521)) // finished packets of all sizes
	must(tb, netns.Up(name))
	return d
}

func (b *bed) connect(m mode, s *setup) {
	b.tb.Helper()
	cfg := s.cfg
	cfg.Domid = testDomid
	cfg.VnetHdr = m.vnet
	cfg.Notice = func(n Notice) { b.notices = append(b.notices, n) }
	b.fronts = s.fronts
	var queues []QueueConfig
	for i := range max(s.queues, 1) {
		if s.fronts == nil {
			b.fronts = append(b.fronts, newFront(b.tb, testDomid))
		}
		f := b.fronts[i]
		f.grants.worker = func() *worker { return b.w }
		if s.onePort {
			f.rxPort = f.txPort
		}
		if s.portFile {
			f.file = newPortPipe(b.tb, f.events)
		}
		q := f.config()
		q.Tap = b.tap.Queue(i)
		if s.journals != nil {
			q.Journal = s.journals[i]
		}
		queues = append(queues, q)
	}
	var err error
	b.conn, err = newConn(cfg, queues)
	must(b.tb, err)
	for _, q := range b.conn.queues {
		q.worker.Store(b.w)
		must(b.tb, b.w.attach(q))
	}
	b.tb.Cleanup(b.disconnect)
}

func (b *bed) disconnect() {
	for _, q := range b.conn.queues {
		b.w.detach(q)
	}
}

// front returns the first queue's guest side.
func (b *bed) front() *front { return b.fronts[0] }

// queue returns the first queue.
func (b *bed) queue() *Queue { return b.conn.queues[0] }

// settle runs the worker until it would sleep, and returns the number of rounds.
func (b *bed) settle() (rounds int) {
	b.tb.Helper()
	for ; ; rounds++ {
		must(b.tb, b.w.poll(0))
		b.w.expire()
		if !b.w.sched.waits() {
			return rounds
		}
		b.w.round()
		if rounds > 100000 {
			b.tb.Fatal("the worker does not come to rest")
		}
	}
}

// pass moves the clock forward by d and runs the worker if one of its timers has expired.
func (b *bed) pass(d time.Duration) {
	b.tb.Helper()
	b.settle()
	end := b.now.Add(d)
	for {
		ms := b.w.timeout()
		next := b.now.Add(time.Duration(ms) * time.Millisecond)
		if ms < 0 || next.After(end) {
			break
		}
		b.now = next
		b.settle()
	}
	b.now = end
	b.settle()
}

// stat reads a counter of the first queue.
func (b *bed) stat(c Counter) uint64 { return b.conn.Stats(0).Load(c) }

// stats returns the counters of the first queue that are of the given kinds and not 0, by
// name.
func (b *bed) stats(kinds ...Kind) map[string]uint64 {
	got := map[string]uint64{}
	n := b.conn.Stats(0).Snapshot()
	for c, info := range Counters {
		for _, k := range kinds {
			if info.Kind == k && n[c] != 0 {
				got[info.Name] = n[c]
			}
		}
	}
	return got
}

// breach returns the error of the only breach, or nil.
func (b *bed) breach() (err error) {
	b.tb.Helper()
	for _, n := range b.notices {
		if n.Kind != Breach {
			continue
		}
		if err != nil {
			b.tb.Errorf("two breaches: %v and %v", err, n.Err)
		}
		err = fmt.Errorf("queue %d: %w", n.Queue, n.Err)
	}
	return err
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

const orderQueues = 4

// numbered returns frame n of a flow, with at least size bytes.
func numbered(flow, n, size int) []byte {
	payload := make([]byte, max(size, 8))
	binary.BigEndian.PutUint32(payload, uint32(flow))
	binary.BigEndian.PutUint32(payload[4:], uint32(n))
	f := packettest.Frame{TCP: &packettest.TCP{SrcPort: uint16(1000 + flow), Flags: packettest.ACK}, Payload: payload}
	if flow%2 == 0 {
		f.IPv4 = &packettest.IPv4{}
	} else {
		f.IPv6 = &packettest.IPv6{}
	}
	return f.Bytes()
}

// numberOf returns the flow and the number of a frame of numbered.
func numberOf(frame []byte) (flow, n int) {
	at := 14 + 20 + 20
	if frame[12] == 0x86 {
		at += 20
	}
	return int(binary.BigEndian.Uint32(frame[at:])), int(binary.BigEndian.Uint32(frame[at+4:]))
}

// table returns a configuration of all types with these entries.
func table(tb testing.TB, entries ...uint32) *steer.Config {
	tb.Helper()
	m := toeplitz.NewMapping(orderQueues)
	must(tb, m.SetSize(uint32(len(entries))))
	must(tb, m.Set(0, entries))
	return &steer.Config{Types: toeplitz.AllTypes, Hasher: hasher(tb), Mapping: m}
}

// kernelSteering is a TAP whose packets the kernel steers.
type kernelSteering struct {
	tap     *tap.Device
	program *steer.Program
	now     *steer.Config
}

func newKernelSteering(tb testing.TB, d *tap.Device) *kernelSteering {
	tb.Helper()
	p, err := steer.New()
	if err != nil {
		tb.Skip(err)
	}
	tb.Cleanup(func() {
		must(tb, d.SetSteering(-1))
		must(tb, p.Close())
	})
	return &kernelSteering{tap: d, program: p}
}

// change makes the kernel steer by c, or by its own choice if c is nil, and returns after
// the last packet was steered the old way.
func (k *kernelSteering) change(c *steer.Config) error {
	var err error
	switch was := k.now; {
	case c == nil:
		err = errors.Join(k.tap.SetSteering(-1), k.program.Set(new(steer.Config)))
	case was == nil:
		err = errors.Join(k.program.Set(c), k.tap.SetSteering(k.program.FD()), k.program.Set(c))
	default:
		err = k.program.Set(c)
	}
	k.now = c
	return err
}

// orderJudge is a guest that reads its queues and checks the order in which flows are
// published: when a packet is there, all its predecessors must be there.
type orderJudge struct {
	fronts []*front
	next   [][]int // by queue and flow: the least number allowed next
	floor  []int   // by flow: the least number allowed for packets not published yet
	seen   []map[int]bool
	total  int
}

func newOrderJudge(fronts []*front, flows int) *orderJudge {
	j := &orderJudge{fronts: fronts, floor: make([]int, flows)}
	for range fronts {
		j.next = append(j.next, make([]int, flows))
	}
	for range flows {
		j.seen = append(j.seen, map[int]bool{})
	}
	return j
}

// look takes all published packets and checks them.
func (j *orderJudge) look() error {
	var at [orderQueues]uint32
	for i, f := range j.fronts {
		n, err := f.rx.Responses()
		if err != nil {
			return err
		}
		at[i] = n
	}
	// Packets that are in the rings now come before packets published from here on.
	floor := append([]int(nil), j.floor...)
	for i, f := range j.fronts {
		slots := uint32(0)
		for _, d := range f.received() {
			flow, n := numberOf(d.Frame)
			switch {
			case n < j.floor[flow]:
				return fmt.Errorf("flow %d: packet %d comes on queue %d after packet %d was there", flow, n, i, j.floor[flow]-1)
			case n < j.next[i][flow]:
				return fmt.Errorf("flow %d: packet %d comes on queue %d behind %d", flow, n, i, j.next[i][flow]-1)
			case j.seen[flow][n]:
				return fmt.Errorf("flow %d: packet %d comes twice", flow, n)
			}
			j.seen[flow][n] = true
			j.next[i][flow] = n + 1
			j.total++
			if slots < at[i] {
				floor[flow] = max(floor[flow], n+1)
			}
			slots += uint32(d.Slots)
		}
	}
	j.floor = floor
	return nil
}

// TestOrderUnderTraffic changes the steering repeatedly while packets of many flows
// come, and the guest withholds slots from one queue after the other. No packet is lost,
// and the packets of a flow are published in the order in which they were sent, across
// queues.
func TestOrderUnderTraffic(t *testing.T) {
	const (
		flows   = 32
		window  = 200 // packets on their way; a TAP queue keeps 500 or more
		changes = 30
	)
	for _, way := range []string{"kernel", "netbackd"} {
		t.Run(way, func(t *testing.T) {
			inModes(t, allModes[:2], func(t *testing.T, m mode) {
				cfg := full
				cfg.OneWorker = way != "kernel"
				l := newLive(t, m, 2, orderQueues, cfg)
				must(t, sharedTAP(t, orderQueues, m.vnet).tap.SetOffload(tap.Offload{}))
				set := l.conn.SetSteering
				if way == "kernel" {
					k := newKernelSteering(t, sharedTAP(t, orderQueues, m.vnet).tap)
					set = func(c *steer.Config) error {
						return l.conn.Resteer(k.now, c, func() error { return k.change(c) })
					}
				}
				random := rand.New(rand.NewPCG(1, 2))
				configs := make([]*steer.Config, changes)
				for i := range configs {
					if i%7 == 6 {
						continue // the host chooses
					}
					entries := make([]uint32, 1+random.IntN(40))
					for j := range entries {
						entries[j] = uint32(random.IntN(orderQueues))
					}
					configs[i] = table(t, entries...)
					key := make([]byte, 40)
					for j := range key {
						key[j] = byte(random.Uint32())
					}
					if i%3 == 0 {
						h, err := toeplitz.New(key)
						must(t, err)
						configs[i].Hasher = h
					}
				}

				var sent, got atomic.Int32
				var enough atomic.Bool
				changed, sender := make(chan error, 1), make(chan error, 1)
				go func() {
					var hdr [packetHdrLen]byte
					for n := 0; !enough.Load(); n++ {
						for flow := range flows {
							for sent.Load()-got.Load() >= window {
								if enough.Load() {
									break
								}
								time.Sleep(20 * time.Microsecond)
							}
							if _, err := unix.Write(l.host.fd, append(hdr[:], numbered(flow, n, 60)...)); err != nil {
								sender <- err
								return
							}
							sent.Add(1)
						}
					}
					sender <- nil
				}()
				go func() {
					for _, c := range configs {
						if err := set(c); err != nil {
							changed <- err
							return
						}
						from := got.Load()
						for deadline := time.Now().Add(patience); got.Load() < from+2*flows && time.Now().Before(deadline); {
							time.Sleep(50 * time.Microsecond)
						}
					}
					changed <- nil
				}()

				j := newOrderJudge(l.fronts, flows)
				deadline := time.Now().Add(6 * patience)
				starved, since, done := 0, time.Now(), false
				for {
					if now := time.Now(); now.Sub(since) > 10*time.Millisecond {
						starved, since = random.IntN(2*orderQueues), now
					}
					for i, f := range l.fronts {
						if i != starved || done {
							f.post(int(f.rx.Free()))
						}
					}
					must(t, j.look())
					got.Store(int32(j.total))
					select {
					case err := <-changed:
						must(t, err)
						enough.Store(true)
						must(t, <-sender)
						done = true
					default:
					}
					if done && int32(j.total) == sent.Load() {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("%d of %d packets came, all changes made: %v", j.total, sent.Load(), done)
					}
					time.Sleep(20 * time.Microsecond)
				}
				var moved, steered uint64
				for i := range orderQueues {
					n := l.conn.Stats(i).Snapshot()
					moved += n[RxMoved]
					steered += n[RxSteered]
					for c, info := range Counters {
						if (info.Kind == Drop || Counter(c) == RxUnordered) && n[c] != 0 {
							t.Errorf("queue %d: %s %d", i, info.Name, n[c])
						}
					}
				}
				if moved == 0 {
					t.Error("no packet had to wait for others")
				}
				t.Logf("%d packets, %d set aside, %d handed over", j.total, moved, steered)
			})
		})
	}
}

// TestOrderModel mixes packets, slots and changes in any order, with steering by netbackd.
// At every moment the published packets of a flow are a prefix of those sent, and in the
// end all are published.
func TestOrderModel(t *testing.T) {
	netns.NeedTUN(t)
	const flows, most = 8, 400
	b := newBed(t, mode{vnet: true}, setup{cfg: full, queues: orderQueues})
	sent := make([]int, flows)
	j := newOrderJudge(b.fronts, flows)
	total := 0
	rapid.Check(t, func(rt *rapid.T) {
		var now, next *steer.Config
		var m *resteering
		turned := 0 // queues that follow next
		begin := func() {
			for ; turned < orderQueues; turned++ {
				b.conn.queues[turned].steer = next
			}
			b.begin(m)
			now = next
		}
		b.settle()
		look := func() {
			must(t, j.look())
		}
		rt.Repeat(map[string]func(*rapid.T){
			"send": func(rt *rapid.T) {
				for range rapid.IntRange(1, 12).Draw(rt, "packets") {
					if total-j.total >= most {
						break // a TAP queue keeps 500
					}
					flow := rapid.IntRange(0, flows-1).Draw(rt, "flow")
					b.host.sendPlain(numbered(flow, sent[flow], 8+1000*rapid.IntRange(0, 8).Draw(rt, "size")))
					sent[flow]++
					total++
				}
			},
			"post": func(rt *rapid.T) {
				queue := rapid.IntRange(0, orderQueues-1).Draw(rt, "queue")
				if n, err := b.conn.queues[queue].rx.Available(); err != nil || n > 4 {
					rt.Skip("enough to be left without one day")
				}
				b.fronts[queue].post(rapid.IntRange(1, 6).Draw(rt, "slots"))
			},
			"serve": func(*rapid.T) { b.settle() },
			"change": func(rt *rapid.T) {
				if m != nil && !m.isOver() {
					rt.Skip("the one before is not over")
				}
				if next = nil; rapid.IntRange(0, 4).Draw(rt, "hashing") > 0 {
					next = table(b.tb, rapid.SliceOfN(rapid.Uint32Range(0, orderQueues-1), 1, 8).Draw(rt, "table")...)
				}
				m, turned = b.prepare(&resteering{from: now, to: next}), 0
			},
			"turn": func(rt *rapid.T) {
				if m == nil || turned == orderQueues {
					rt.Skip("nothing to do")
				}
				b.conn.queues[turned].steer = next
				if turned++; turned == orderQueues {
					begin()
				}
			},
			"": func(*rapid.T) { look() },
		})
		if m != nil && turned < orderQueues {
			begin()
		}
		b.settle()
		for range 2 * most {
			if j.total == total && (m == nil || m.isOver()) {
				break
			}
			for i, q := range b.conn.queues {
				if q.waitsForSlots() {
					b.fronts[i].post(3)
				}
			}
			b.settle()
			look()
		}
		if j.total != total || m != nil && !m.isOver() {
			rt.Fatalf("%d of %d packets came; a change is not over: %v", j.total, total, m != nil && !m.isOver())
		}
		// The next one begins with the host's choice.
		b.prepare(&resteering{from: now})
		for _, q := range b.conn.queues {
			q.steer = nil
		}
		b.begin(b.conn.queues[0].resteer.resteering)
		b.settle()
	})
	for _, c := range []Counter{RxUnordered, DropRxBacklog, DropRxStalled} {
		if n := b.sum(c); n != 0 {
			t.Errorf("%v: %d", c, n)
		}
	}
}

// orderBed is a bed whose packets the kernel steers, in which a change from queue 0
// to queue 1 is under way.
type orderBed struct {
	*bed
	k          *kernelSteering
	resteering *resteering
}

func newOrderBed(t *testing.T) *orderBed {
	t.Helper()
	b := &orderBed{bed: newBed(t, mode{vnet: true}, setup{cfg: full, queues: orderQueues})}
	b.k = newKernelSteering(t, b.tap)
	must(t, b.k.change(table(t, 0)))
	return b
}

// start prepares the queues for a change of all flows to another queue.
func (b *orderBed) start(to *steer.Config) {
	b.resteering = b.prepare(&resteering{from: b.k.now, to: to, kernel: true})
}

func (b *bed) prepare(m *resteering) *resteering {
	m.undrained.Store(orderQueues)
	m.unfinished.Store(orderQueues)
	m.over = make(chan struct{})
	for _, q := range b.conn.queues {
		q.prepareResteer(m)
	}
	return m
}

func (b *bed) begin(m *resteering) {
	for _, q := range b.conn.queues {
		q.resteered(m)
	}
}

func (m *resteering) isOver() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

// send sends packets from to to-1 of flow 0.
func (b *orderBed) send(from, to int) {
	b.tb.Helper()
	for n := from; n < to; n++ {
		b.host.sendPlain(numbered(0, n, 60))
	}
}

// numbers returns the numbers of the packets that came on a queue.
func (b *bed) numbers(queue int) (got []int) {
	b.tb.Helper()
	for _, d := range b.fronts[queue].received() {
		_, n := numberOf(d.Frame)
		got = append(got, n)
	}
	return got
}

// sum returns the sum of a counter over all queues.
func (b *bed) sum(c Counter) (n uint64) {
	for i := range b.conn.queues {
		n += b.conn.Stats(i).Load(c)
	}
	return n
}

// want compares the published packets on queues 0 and 1.
func (b *orderBed) want(what string, old, now []int) {
	b.tb.Helper()
	if diff := cmp.Diff([][]int{old, now}, [][]int{b.numbers(0), b.numbers(1)}); diff != "" {
		b.tb.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestPacketsWaitForThoseBeforeThem(t *testing.T) {
	b := newOrderBed(t)
	b.fronts[1].post(100)
	b.send(0, 3)
	b.settle() // one in the backlog, the others in the TAP
	to := table(t, 1)
	b.start(to)
	must(t, b.k.change(to))
	b.send(3, 6)
	b.settle()
	b.want("before the kernel is known to have changed", nil, nil)
	b.begin(b.resteering)
	b.settle()
	b.want("while the old queue has no slots", nil, nil)
	if b.resteering.isOver() || b.conn.queues[1].waiting() != 3 {
		t.Errorf("%d packets set aside, over %v", b.conn.queues[1].waiting(), b.resteering.isOver())
	}
	b.fronts[0].post(2)
	b.settle()
	b.want("while the old queue has too few slots", []int{0, 1}, nil)
	b.fronts[0].post(1)
	b.settle()
	b.want("at last", []int{2}, []int{3, 4, 5})
	b.send(6, 8)
	b.settle()
	b.want("after it", nil, []int{6, 7})
	if n := b.sum(RxUnordered); n != 0 || b.sum(RxMoved) != 3 || !b.resteering.isOver() {
		t.Errorf("%d unordered, %d moved, over %v", n, b.sum(RxMoved), b.resteering.isOver())
	}
	for i, q := range b.conn.queues {
		if q.resteer != nil || q.backlog.mem.arena != nil {
			t.Errorf("queue %d keeps something of the change", i)
		}
	}
}

// TestAGuestThatDoesNotTakeThem: packets wait only for a bounded time for predecessors
// that the guest does not take.
func TestAGuestThatDoesNotTakeThem(t *testing.T) {
	b := newOrderBed(t)
	b.fronts[1].post(100)
	b.send(0, 3)
	b.settle()
	to := table(t, 1)
	b.start(to)
	must(t, b.k.change(to))
	b.begin(b.resteering)
	b.send(3, 6)
	b.pass(maxAside - time.Millisecond)
	b.want("in time", nil, nil)
	b.pass(2 * time.Millisecond)
	b.want("late", nil, []int{3, 4, 5})
	if n := b.sum(RxUnordered); n != 3 {
		t.Errorf("%d unordered", n)
	}
	b.fronts[0].post(100)
	b.settle()
	b.want("when it takes them", []int{0, 1, 2}, nil)
	if !b.resteering.isOver() {
		t.Error("the change is not over")
	}
}

// TestTooManyToSetAside: packets for which there is no room wait in the TAP until the
// kernel has changed. Only then are packets published out of order.
func TestTooManyToSetAside(t *testing.T) {
	b := newOrderBed(t)
	b.fronts[1].post(200)
	b.send(0, 1)
	b.settle()
	to := table(t, 1)
	b.start(to)
	must(t, b.k.change(to))
	const size, sent = 60000, 90
	for n := 1; n <= sent; n++ {
		b.host.sendPlain(numbered(0, n, size))
	}
	b.settle()
	aside := b.conn.queues[1].waiting()
	if aside >= sent || aside < 4<<20/(size+netif.PageSize) {
		t.Errorf("%d of %d packets set aside", aside, sent)
	}
	b.want("while the kernel changes", nil, nil)
	b.begin(b.resteering)
	var got []int
	for range sent {
		b.settle()
		got = append(got, b.numbers(1)...)
		b.fronts[1].post(int(b.fronts[1].rx.Free()))
	}
	var want []int
	for n := 1; n <= sent; n++ {
		want = append(want, n)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
	if n := b.sum(RxUnordered); n != uint64(aside) {
		t.Errorf("%d unordered, want the %d that were set aside", n, aside)
	}
	if n := b.sum(DropRxBacklog); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// TestChangesOneUponTheOther: if a guest takes no packets and changes the table again, the
// packets set aside by the first change join the backlog of their queue.
func TestChangesOneUponTheOther(t *testing.T) {
	b := newOrderBed(t)
	b.send(0, 1)
	b.settle()
	one, two := table(t, 1), table(t, 2)
	b.start(one)
	must(t, b.k.change(one))
	b.begin(b.resteering)
	b.send(1, 3)
	b.settle()
	first := b.resteering
	b.start(two)
	must(t, b.k.change(two))
	b.begin(b.resteering)
	b.send(3, 5)
	b.settle()
	if !first.isOver() || b.resteering.isOver() {
		t.Error("the first change is over when the second begins, and that is not yet")
	}
	b.fronts[0].post(10)
	b.settle()
	b.want("first", []int{0}, nil)
	b.fronts[2].post(10)
	b.fronts[1].post(10)
	b.settle()
	b.want("then", nil, []int{1, 2})
	if diff := cmp.Diff([]int{3, 4}, b.numbers(2)); diff != "" {
		t.Errorf("at last (-want +got):\n%s", diff)
	}
	if n := b.sum(RxUnordered); n != 0 {
		t.Errorf("%d unordered", n)
	}
}

// TestAQueueThatGoes: other queues do not wait for a queue in breach, and a queue that is
// detached drops the packets that it has set aside.
func TestAQueueThatGoes(t *testing.T) {
	for what, end := range map[string]func(b *orderBed, q *Queue){
		"breach": func(b *orderBed, q *Queue) { b.w.breach(q, errors.New("breach")) },
		"detach": func(b *orderBed, q *Queue) { b.w.detach(q) },
	} {
		for queue := range 2 {
			t.Run(fmt.Sprint(what, queue), func(t *testing.T) {
				b := newOrderBed(t)
				b.fronts[1].post(100)
				b.send(0, 3)
				b.settle()
				to := table(t, 1)
				b.start(to)
				must(t, b.k.change(to))
				b.begin(b.resteering)
				b.send(3, 6)
				b.settle()
				end(b, b.conn.queues[queue])
				b.settle()
				if queue == 0 {
					if diff := cmp.Diff([]int{3, 4, 5}, b.numbers(1)); diff != "" {
						t.Errorf("packets (-want +got):\n%s", diff)
					}
				} else {
					b.fronts[0].post(10)
					b.settle()
				}
				if !b.resteering.isOver() {
					t.Error("the change is not over")
				}
				if q := b.conn.queues[queue]; q.resteer != nil {
					t.Error("the queue goes on with the change")
				}
			})
		}
	}
}

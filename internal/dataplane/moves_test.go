// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// labelled returns packet n of a flow, in a datagram whose size follows from n.
func labelled(port uint16, flow, n int) []byte {
	frame := udp(20+(n*37+flow)%1400, port+uint16(flow))
	if n%11 == 0 {
		frame = udp(3000+n%9000, port+uint16(flow))
	}
	binary.BigEndian.PutUint32(frame[42:], uint32(flow))
	binary.BigEndian.PutUint32(frame[46:], uint32(n))
	frame[40], frame[41] = 0, 0 // no checksum
	return frame
}

// tape checks that the packets of each flow come whole, once and in order.
type tape struct {
	tb   testing.TB
	port uint16 // of flow 0. A TAP steers by what the guest has sent with the same ports.
	sent []int  // by flow
	got  []int
}

// next returns the next packet of a flow.
func (p *tape) next(flow int) []byte {
	p.sent[flow]++
	return labelled(p.port, flow, p.sent[flow]-1)
}

// take checks packets that came.
func (p *tape) take(frames ...[]byte) {
	p.tb.Helper()
	for _, frame := range frames {
		flow, n := int(binary.BigEndian.Uint32(frame[42:])), int(binary.BigEndian.Uint32(frame[46:]))
		if n != p.got[flow] || n >= p.sent[flow] {
			p.tb.Fatalf("flow %d: packet %d came, want %d of %d", flow, n, p.got[flow], p.sent[flow])
		}
		if !bytes.Equal(frame, labelled(p.port, flow, n)) {
			p.tb.Fatalf("flow %d: packet %d of %d bytes has other bytes", flow, n, len(frame))
		}
		p.got[flow]++
	}
}

// waiting returns the number of packets that did not come yet.
func (p *tape) waiting() (n int) {
	for flow := range p.sent {
		n += p.sent[flow] - p.got[flow]
	}
	return n
}

// movesModel is a vif whose queues move between workers at random, with all that may wait in them.
type movesModel struct {
	*spreadBed
	rnd     *rand.Rand
	up      tape // from the guest, a flow for each queue
	down    tape // to the guest
	pending [][]answer
	steer   *steer.Config // of a vif with one worker
	change  *resteering
	limiter *Limiter
}

const modelFlows = 12

func newMovesModel(t *testing.T, m mode, oneWorker bool) *movesModel {
	cfg := full
	cfg.OneWorker = oneWorker
	cfg.Limiter = new(Limiter)
	cfg.Drain, cfg.Stall = time.Hour, time.Hour
	b := &movesModel{
		spreadBed: newSpreadBed(t, m, 3, setup{cfg: cfg, queues: orderQueues}),
		rnd:       rand.New(rand.NewPCG(3, 4)),
		up:        tape{tb: t, port: 100, sent: make([]int, orderQueues), got: make([]int, orderQueues)},
		down:      tape{tb: t, port: 200, sent: make([]int, modelFlows), got: make([]int, modelFlows)},
		pending:   make([][]answer, orderQueues),
		limiter:   cfg.Limiter,
	}
	if oneWorker {
		b.steer = table(t, 0, 1, 2, 3)
		for _, q := range b.conn.queues {
			q.steer = b.steer
		}
	}
	return b
}

// do takes a random step.
func (b *movesModel) do() {
	i := b.rnd.IntN(orderQueues)
	f, q := b.fronts[i], b.conn.queues[i]
	switch b.rnd.IntN(10) {
	case 0, 1:
		for range b.rnd.IntN(40) {
			if f.tx.Free() < 8 {
				break
			}
			b.pending[i] = append(b.pending[i], f.put(packet{frame: b.up.next(i), offset: b.rnd.IntN(200)})...)
		}
		f.push()
	case 2, 3:
		for range min(b.rnd.IntN(40), 100-b.down.waiting()) {
			b.host.sendPlain(b.down.next(b.rnd.IntN(modelFlows)))
		}
	case 4:
		f.post(min(b.rnd.IntN(30), int(f.rx.Free())))
	case 5:
		b.grants(f)
	case 6:
		b.resteer()
	case 7:
		if b.limiter.Set(0, 0); b.rnd.IntN(2) == 0 {
			b.limiter.Set(minBurst, 100*time.Millisecond)
		}
		b.now = b.now.Add(time.Duration(b.rnd.IntN(100)) * time.Millisecond)
	default:
		b.move(q, b.rnd.IntN(len(b.workers)))
	}
	for range b.rnd.IntN(4) {
		b.step(b.workers[b.rnd.IntN(len(b.workers))])
	}
	b.look()
}

// grants makes pages static grants, or gives up some.
func (b *movesModel) grants(f *front) {
	from := b.rnd.IntN(2 * frontPages)
	list := refs(from, min(from+b.rnd.IntN(200), 2*frontPages))
	if b.rnd.IntN(2) == 0 {
		var fresh []xen.Gref
		for _, r := range list {
			if f.static.Lookup(r).Page == nil {
				fresh = append(fresh, r)
			}
		}
		f.makeStatic(0, fresh...)
		return
	}
	var old []netif.GrefEntry
	for _, r := range list {
		old = append(old, netif.GrefEntry{Ref: r})
	}
	_, err := f.static.Detach(old).Unmap()
	must(b.tb, err)
}

// resteer begins a change of the steering, or goes on with it.
func (b *movesModel) resteer() {
	for _, q := range b.conn.queues {
		if !q.worker.Load().has(q) {
			return // the daemon's mail would wait until the queue has been adopted
		}
	}
	if b.change == nil {
		b.change = b.prepare(&resteering{from: b.steer, to: b.steer, kernel: b.steer == nil})
		return
	}
	if v := b.queue().resteer; v != nil && v.phase == preparing {
		b.begin(b.change)
	}
	if b.change.isOver() {
		b.change = nil
	}
}

// look checks what came.
func (b *movesModel) look() {
	b.tb.Helper()
	for i, f := range b.fronts {
		got := f.answers()
		if len(got) > len(b.pending[i]) {
			b.tb.Fatalf("%d answers on queue %d, %d wait", len(got), i, len(b.pending[i]))
		}
		if diff := cmp.Diff(b.pending[i][:len(got)], got, cmpopts.EquateEmpty()); diff != "" {
			b.tb.Fatalf("answers on queue %d (-want +got):\n%s", i, diff)
		}
		b.pending[i] = b.pending[i][len(got):]
		b.down.take(framesOf(f.received())...)
	}
	b.up.take(b.host.frames()...)
}

// finish lets everything arrive.
func (b *movesModel) finish() {
	b.tb.Helper()
	b.limiter.Set(0, 0)
	for n := 0; b.up.waiting()+b.down.waiting() > 0 || b.change != nil; n++ {
		if b.change != nil {
			b.resteer()
		}
		for _, f := range b.fronts {
			f.post(int(f.rx.Free()))
		}
		b.now = b.now.Add(10 * time.Millisecond)
		b.settle()
		b.look()
		if n > 1000 {
			b.tb.Fatalf("%v of %v packets from the guest came, %v of %v to it", b.up.got, b.up.sent, b.down.got, b.down.sent)
		}
	}
}

// TestMovesModel: queues move at random between workers that have no threads of their own, at any
// turn boundary, while they have events not read, packets that wait, static grants, a rate, a part
// in a resteering. All packets come whole, once and in order.
func TestMovesModel(t *testing.T) {
	steps := 1000
	if testing.Short() || raced {
		steps = 400
	}
	for _, oneWorker := range []bool{false, true} {
		name := map[bool]string{false: "queue by queue", true: "whole vifs"}[oneWorker]
		t.Run(name, func(t *testing.T) {
			inModes(t, allModes[:3], func(t *testing.T, m mode) {
				b := newMovesModel(t, m, oneWorker)
				for range steps {
					b.do()
				}
				b.finish()
				if len(b.notices) > 0 {
					t.Errorf("notices %+v", b.notices)
				}
				for c, info := range Counters {
					if n := b.sum(Counter(c)); n != 0 && info.Kind == Drop {
						t.Errorf("%s: %d", info.Name, n)
					}
				}
				moves, load := b.sum(WorkerMoves), 0
				for _, w := range b.workers {
					load += w.load
				}
				if moves < uint64(steps/100) || load != orderQueues {
					t.Errorf("%d moves, a load of %d", moves, load)
				}
				t.Logf("%d moves; %v packets from the guest, %v to it, %d parked, %d waits for the rate",
					moves, b.up.sent, b.down.sent, b.sum(RxParked), b.sum(RateWaits))
			})
		})
	}
}

// movesLive is a vif with workers that run, and packets both ways.
type movesLive struct {
	*live
	rnd     *rand.Rand
	up      tape // from the guest, a flow for each queue
	down    tape
	pending [][]answer
}

// exchange takes what came, and sends more packets.
func (l *movesLive) exchange(more bool) {
	l.t.Helper()
	for i, f := range l.fronts {
		for more && f.tx.Free() >= 8 && l.up.sent[i]-l.up.got[i] < 100 {
			l.pending[i] = append(l.pending[i], f.put(packet{frame: l.up.next(i)})...)
		}
		f.push()
		f.post(int(f.rx.Free()))
		got := f.answers()
		if len(got) > len(l.pending[i]) || len(got) > 0 && !cmp.Equal(l.pending[i][:len(got)], got) {
			l.t.Fatalf("queue %d: answers %v", i, got)
		}
		l.pending[i] = l.pending[i][len(got):]
		_, err := f.tx.Arm()
		must(l.t, err)
		l.down.take(framesOf(f.received())...)
		_, err = f.rx.Arm()
		must(l.t, err)
	}
	for range 10 {
		if more && l.down.waiting() < 100 {
			l.host.sendPlain(l.down.next(l.rnd.IntN(modelFlows)))
		}
	}
	l.up.take(l.host.frames()...)
}

// moves returns how often the queues have moved.
func (l *movesLive) moves() (n uint64) {
	for i := range orderQueues {
		n += l.conn.Stats(i).Load(WorkerMoves)
	}
	return n
}

// keepMoving moves queues, asks for the state and changes the weight until stop is set.
func (l *movesLive) keepMoving(stop *atomic.Bool) error {
	rnd := rand.New(rand.NewPCG(7, 8))
	for !stop.Load() {
		l.move(l.conn.queues[rnd.IntN(orderQueues)], rnd.IntN(3))
		_ = l.conn.State(rnd.IntN(orderQueues))
		if err := l.conn.SetWeight(1 + rnd.IntN(4)); err != nil {
			return err
		}
	}
	return nil
}

// move makes a queue move to a worker.
func (l *live) move(q *Queue, to int) {
	q.worker.Load().post(q, func(w *worker) { w.moveAway(q, to, "for a test") })
}

// closeWhileMoving closes the vif. No worker has a queue of it afterwards.
func (l *movesLive) closeWhileMoving() {
	l.t.Helper()
	for range 50 {
		for _, q := range l.conn.queues {
			l.move(q, l.rnd.IntN(3))
		}
	}
	l.conn.Close()
	for _, w := range l.pool.workers {
		w.post(nil, func(w *worker) {
			for _, q := range w.queues {
				if q != nil {
					l.t.Errorf("%s still has %s", w, q)
				}
			}
		})
	}
	must(l.t, l.pool.Ping(l.t.Context()))
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	for _, w := range l.pool.workers {
		if w.load != 0 {
			l.t.Errorf("%s has a load of %d", w, w.load)
		}
	}
}

// TestMovesUnderTraffic moves queues at random between workers that run, while packets come both
// ways and another goroutine asks for the state and changes settings. Then the vif is closed, and
// comes back on its rings as they are.
func TestMovesUnderTraffic(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cycles, moves := 5, uint64(30)
		if testing.Short() || raced {
			cycles, moves = 4, 15
		}
		cfg := full
		cfg.Coalesce = CoalesceOff
		cfg.Limiter = new(Limiter)
		l := &movesLive{
			live:    newLive(t, m, 3, orderQueues, cfg),
			rnd:     rand.New(rand.NewPCG(5, 6)),
			up:      tape{tb: t, port: 100, sent: make([]int, orderQueues), got: make([]int, orderQueues)},
			down:    tape{tb: t, port: 200, sent: make([]int, modelFlows), got: make([]int, modelFlows)},
			pending: make([][]answer, orderQueues),
		}
		var moved uint64
		for range cycles {
			var stop atomic.Bool
			mover := make(chan error, 1)
			go func() { mover <- l.keepMoving(&stop) }()
			for deadline := time.Now().Add(patience); l.moves() < moves || l.up.waiting()+l.down.waiting() > 0; {
				l.exchange(l.moves() < moves)
				if time.Now().After(deadline) {
					t.Fatalf("%d moves; %v of %v packets from the guest came, %v of %v to it",
						l.moves(), l.up.got, l.up.sent, l.down.got, l.down.sent)
				}
			}
			stop.Store(true)
			must(t, <-mover)
			moved += l.moves()
			l.closeWhileMoving()
			l.connect()
		}
		select {
		case n := <-l.notices:
			t.Errorf("notice %+v", n)
		default:
		}
		t.Logf("%d moves; %v packets from the guest, %v to it", moved, l.up.sent, l.down.sent)
	})
}

// waysOfMail are the ways that mail about queue 0 can take while the queue moves.
var waysOfMail = []struct {
	name string
	do   func(b *spreadBed, q *Queue, mail func())
	want int // the worker that has the queue in the end
}{
	{"read together with the letter of the move", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		mail()
	}, 1},
	{"posted while the queue is on its way", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		b.workers[0].readMail()
		mail()
	}, 1},
	{"the new worker has other mail", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		b.workers[1].post(nil, func(w *worker) { w.detachAll(b.conn) })
		b.workers[0].readMail()
		mail()
	}, 1},
	{"two moves at once", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		b.move(q, 2)
		mail()
	}, 2},
	{"the new worker is replaced", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		b.workers[0].readMail()
		w := b.workers[1]
		w.watch.queue.Store(&Queue{conn: &Conn{cfg: Config{Domid: testDomid + 1}}})
		heir, err := b.w.pool.heir(w)
		must(b.tb, err)
		b.tb.Cleanup(w.release)
		b.w.pool.replace(w, heir)
		mail()
		b.workers[1] = heir
	}, 1},
	{"the guest goes to a slow lane", func(b *spreadBed, q *Queue, mail func()) {
		b.move(q, 1)
		b.workers[0].readMail()
		mail()
		lane := b.workers[2]
		lane.watch.spare, lane.watch.lane = true, true
		p := b.w.pool
		p.workers, p.spares = p.workers[:2:2], []*worker{lane}
		b.move(b.conn.queues[1], 1)
		b.workers[0].readMail()
		b.workers[1].readMail() // has both, and mail
		b.workers[1].post(nil, func(w *worker) { w.sendTo(lane, q.conn.guest()) })
		mail()
		b.move(b.conn.queues[2], 1) // is on its way meanwhile
		b.workers[0].readMail()
	}, 2},
}

// TestMailFollowsAQueue: mail about a queue runs on the worker that has it, wherever it is on its
// way, and a vif that is closed is detached as a whole.
func TestMailFollowsAQueue(t *testing.T) {
	inModes(t, allModes[1:2], func(t *testing.T, m mode) {
		for _, tt := range waysOfMail {
			t.Run(tt.name, func(t *testing.T) {
				b := newSpreadBed(t, m, 3, setup{cfg: full, queues: orderQueues})
				b.settle()
				q := b.queue()
				posted, ran := 0, 0
				tt.do(b, q, func() {
					posted++
					q.worker.Load().post(q, func(w *worker) {
						if ran++; !w.has(q) {
							t.Errorf("runs on %s, the queue is with %s", w, q.worker.Load())
						}
					})
				})
				b.settle()
				if posted == 0 || ran != posted {
					t.Errorf("%d letters of %d were read", ran, posted)
				}
				if w := b.workers[tt.want]; !w.has(q) {
					t.Errorf("the queue is with %s, want %s", q.worker.Load(), w)
				}
				for i, f := range b.fronts {
					want := f.put(packet{frame: udp(30, uint16(i))})
					f.push()
					b.settle()
					if diff := cmp.Diff(want, f.answers()); diff != "" {
						t.Errorf("answers of queue %d (-want +got):\n%s", i, diff)
					}
				}
				load := 0
				for _, w := range b.workers {
					load += w.load
				}
				if load != orderQueues {
					t.Errorf("a load of %d in all, want %d", load, orderQueues)
				}
			})
		}
	})
}

// TestPairsMove: a pair of virtqueues moves between workers while packets come both ways, its memory
// is sent again, and its rings are stopped and started.
func TestPairsMove(t *testing.T) {
	inFormats(t, vnetModes, []vOptions{
		{features: vModern, indirect: true}, {features: vModern, grants: true, packed: true, indirect: true},
	}, func(t *testing.T, m mode, o vOptions) {
		l := newVlive(t, m, o, 1)
		l.share()
		l.start()
		q := l.conn.c.queues[0]
		var enough atomic.Bool
		mover := make(chan error, 1)
		go func() {
			for to := 0; !enough.Load(); to = 1 - to {
				q.worker.Load().post(q, func(w *worker) { w.moveAway(q, to, "for a test") })
				if err := q.call(func() error { return nil }); err != nil {
					mover <- err
					return
				}
			}
			mover <- nil
		}()
		for range 3 {
			l.traffic(10)
			l.share()
			for _, r := range []*vring{&l.g.rx, &l.g.tx} {
				base, err := l.front.StopRing(uint32(r.set.Index))
				must(t, err)
				r.set.Base = base
			}
			l.start()
		}
		l.traffic(5)
		enough.Store(true)
		must(t, <-mover)
		if n := l.conn.Stats(0).Load(WorkerMoves); n < 10 || len(l.notices) > 0 {
			t.Errorf("%d moves, %d notices", n, len(l.notices))
		}
		l.hangUp()
	})
}

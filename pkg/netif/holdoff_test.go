// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xen"
)

// A notification is held off when the peer is known to be awake. What must hold
// is that no wake-up is ever lost: a consumer that armed, looked once more and
// went to sleep is woken by the push that brings what it sleeps for.

// TestNoInterleavingLosesAWakeUp takes the two loads and two stores of the rule
// apart and runs them in every order there is.
func TestNoInterleavingLosesAWakeUp(t *testing.T) {
	for _, order := range []string{"ppcc", "pcpc", "pccp", "cppc", "cpcp", "ccpp"} {
		for _, start := range []Index{0, math.MaxUint32, math.MaxUint32 - 1} {
			for _, wants := range []uint32{1, 2, 18} {
				for pushed := range uint32(20) {
					mem := newMem()
					p, err := newPage(mem)
					if err != nil {
						t.Fatal(err)
					}
					setWord(mem, wReqProd, uint32(start))
					setWord(mem, wReqEvent, uint32(start)) // long served
					old, now := start, start.Add(pushed)
					var notified, asleep bool
					producer := []func(){
						func() { p.publish(wReqProd, uint32(now)) },
						func() { notified = crossed(Index(p.load(wReqEvent)), old, now) },
					}
					consumer := []func(){
						func() { p.publish(wReqEvent, uint32(start.Add(wants))) },
						func() { asleep = Index(p.load(wReqProd)).Sub(start) < wants },
					}
					for _, who := range order {
						if who == 'p' {
							producer[0]()
							producer = producer[1:]
						} else {
							consumer[0]()
							consumer = consumer[1:]
						}
					}
					if asleep && !notified && pushed >= wants {
						t.Errorf("%s from %d: sleeps for %d with %d pushed", order, start, wants, pushed)
					}
				}
			}
		}
	}
}

// end is one end of a ring as the hold-off model sees it: an event channel and
// whether its owner sleeps.
type end struct {
	pending bool // the event channel's pending bit
	asleep  bool
	wants   uint32 // what it sleeps for
}

func (e *end) wake() {
	e.pending = true
	e.asleep = false
}

// TestHoldOffModel lets both ends of a tx and an rx ring act in any order and
// checks after every step that who sleeps has nothing to do.
func TestHoldOffModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := near().Draw(t, "start")
		f, b, _ := txPair(t, start)
		var front, back end
		t.Repeat(map[string]func(*rapid.T){
			"front puts and pushes": func(t *rapid.T) {
				n := rapid.Uint32Range(0, min(f.Free(), 40)).Draw(t, "n")
				for range n {
					f.Put(TxRequest{})
				}
				if f.Push() {
					back.wake()
				}
			},
			"back consumes": func(t *rapid.T) {
				n, err := b.Available()
				if err != nil {
					t.Fatal(err)
				}
				b.Consume(rapid.Uint32Range(0, n).Draw(t, "n"))
				back.asleep = false
			},
			"back answers": func(t *rapid.T) {
				n := rapid.Uint32Range(0, b.reqCons.Sub(b.rspProd)).Draw(t, "n")
				if b.Commit(make([]TxResponse, n)) {
					front.wake()
				}
			},
			"back arms": func(t *rapid.T) {
				back.wants = rapid.Uint32Range(1, MinSlots).Draw(t, "wants")
				more, err := b.ArmFor(back.wants)
				if err != nil {
					t.Fatal(err)
				}
				back.pending = false
				back.asleep = !more
			},
			"front takes": func(t *rapid.T) {
				n, err := f.Responses()
				if err != nil {
					t.Fatal(err)
				}
				f.Take(rapid.Uint32Range(0, n).Draw(t, "n"))
				front.asleep = false
			},
			"front arms": func(t *rapid.T) {
				front.wants = rapid.Uint32Range(1, MinSlots).Draw(t, "wants")
				more, err := f.ArmFor(front.wants)
				if err != nil {
					t.Fatal(err)
				}
				front.pending = false
				front.asleep = !more
			},
			"": func(t *rapid.T) {
				if n, err := b.Available(); err != nil || back.asleep && n >= back.wants {
					t.Fatalf("the backend sleeps for %d with %d available (%v)", back.wants, n, err)
				}
				if n, err := f.Responses(); err != nil || front.asleep && n >= front.wants {
					t.Fatalf("the frontend sleeps for %d with %d answered (%v)", front.wants, n, err)
				}
			},
		})
	})
}

// TestHoldOffSavesNotifications: an awake peer is not disturbed.
func TestHoldOffSavesNotifications(t *testing.T) {
	f, b, _ := txPair(t, math.MaxUint32-3)
	f.Put(TxRequest{})
	if !f.Push() {
		t.Error("the first request after init does not notify")
	}
	for range 20 {
		f.Put(TxRequest{})
		if f.Push() {
			t.Fatal("a request to a backend that did not arm notifies")
		}
	}
	b.Consume(21)
	if more, err := b.ArmFor(3); more || err != nil {
		t.Fatalf("arm = %v, %v", more, err)
	}
	for i, want := range []bool{false, false, true, false} {
		f.Put(TxRequest{})
		if got := f.Push(); got != want {
			t.Errorf("request %d after ArmFor(3) notifies: %v, want %v", i, got, want)
		}
	}
	if more, err := b.ArmFor(3); !more || err != nil {
		t.Errorf("arm with 4 available = %v, %v, want more", more, err)
	}
}

// event is an event channel as two goroutines of one test see it: a pending bit
// that stays set until it is taken.
type event chan struct{}

func newEvent() event { return make(event, 1) }

func (e event) notify() {
	select {
	case e <- struct{}{}:
	default:
	}
}

const concurrentPackets = 60_000

// TestConcurrentTx moves numbered requests from a frontend to a backend and
// their answers back, each end asleep whenever the rule allows it. A lost
// wake-up hangs the test; under the race detector it also shows that the atomics
// order the plain stores of the slots.
func TestConcurrentTx(t *testing.T) {
	f, b, _ := txPair(t, math.MaxUint32-concurrentPackets/2)
	toBack, toFront := newEvent(), newEvent()
	var wg sync.WaitGroup
	wg.Go(func() {
		var seen uint32
		var rsp []TxResponse
		for seen < concurrentPackets {
			n, err := b.Available()
			if err != nil {
				t.Error(err)
				return
			}
			if n == 0 {
				if more, _ := b.Arm(); !more {
					<-toBack
				}
				continue
			}
			rsp = rsp[:0]
			for range min(n, 1+seen%37) {
				q := b.Request(b.ReqCons())
				if q.Gref != xen.Gref(seen) || q.ID != uint16(seen) || q.Size != uint16(seen>>4) {
					t.Errorf("request %d reads %+v", seen, q)
					return
				}
				b.Consume(1)
				rsp = append(rsp, TxResponse{ID: q.ID, Status: Status(int16(q.Size))})
				seen++
			}
			if b.Commit(rsp) {
				toFront.notify()
			}
		}
	})
	wg.Go(func() {
		var sent, done uint32
		for done < concurrentPackets {
			for n := min(f.Free(), 1+sent%53); n > 0 && sent < concurrentPackets; n-- {
				f.Put(TxRequest{Gref: xen.Gref(sent), ID: uint16(sent), Size: uint16(sent >> 4)})
				sent++
			}
			if f.Push() {
				toBack.notify()
			}
			n, err := f.Responses()
			if err != nil {
				t.Error(err)
				return
			}
			for range n {
				r := f.Response(f.RspCons())
				if r.ID != uint16(done) || r.Status != Status(int16(uint16(done>>4))) {
					t.Errorf("response %d reads %+v", done, r)
					return
				}
				f.Take(1)
				done++
			}
			if n == 0 && (f.Free() == 0 || sent == concurrentPackets) && done < concurrentPackets {
				if more, _ := f.Arm(); !more {
					<-toFront
				}
			}
		}
	})
	wg.Wait()
}

// TestConcurrentRx does the same for buffers posted and filled, with a backend
// that waits for several at a time as it does for a packet of many slots.
func TestConcurrentRx(t *testing.T) {
	f, b, _ := rxPair(t, math.MaxUint32-concurrentPackets/2)
	toBack, toFront := newEvent(), newEvent()
	var wg sync.WaitGroup
	wg.Go(func() {
		var seen uint32
		var slots []RxSlot
		for seen < concurrentPackets {
			wants := min(1+seen%MinSlots, concurrentPackets-seen)
			n, err := b.Available()
			if err != nil {
				t.Error(err)
				return
			}
			if n < wants {
				if more, _ := b.ArmFor(wants); !more {
					<-toBack
				}
				continue
			}
			slots = slots[:0]
			for range wants {
				q := b.Request(b.ReqCons())
				if q.Gref != xen.Gref(seen) || q.ID != uint16(seen) {
					t.Errorf("buffer %d reads %+v", seen, q)
					return
				}
				b.Consume(1)
				slots = append(slots, RxResponse{ID: q.ID, Status: Status(int16(uint16(seen >> 3)))}.Slot())
				seen++
			}
			if b.Commit(slots) {
				toFront.notify()
			}
		}
	})
	wg.Go(func() {
		var posted, done uint32
		for done < concurrentPackets {
			for f.Free() > 0 && posted < concurrentPackets {
				f.Put(RxRequest{ID: uint16(posted), Gref: xen.Gref(posted)})
				posted++
			}
			if f.Push() {
				toBack.notify()
			}
			n, err := f.Responses()
			if err != nil {
				t.Error(err)
				return
			}
			for range n {
				r := f.Slot(f.RspCons()).Response()
				if r.ID != uint16(done) || r.Status != Status(int16(uint16(done>>3))) {
					t.Errorf("response %d reads %+v", done, r)
					return
				}
				f.Take(1)
				done++
			}
			if n == 0 && done < concurrentPackets {
				if more, _ := f.Arm(); !more {
					<-toFront
				}
			}
		}
	})
	wg.Wait()
}

// bit is an event channel whose owner spins on it, so that both ends of a test
// really run at the same time.
type bit struct{ set atomic.Bool }

func (b *bit) notify() { b.set.Store(true) }

// wait reports whether the event came, giving up after a time that no machine
// is too busy for.
func (b *bit) wait() bool {
	var deadline time.Time
	for i := 1; !b.set.CompareAndSwap(true, false); i++ {
		if i%1000 != 0 {
			continue
		}
		runtime.Gosched()
		if now := time.Now(); deadline.IsZero() {
			deadline = now.Add(30 * time.Second)
		} else if now.After(deadline) {
			return false
		}
	}
	return true
}

// TestArmRacesPush lets one end push at the very moment the other arms, over and
// over and at every small distance in time, for both ends in turn: here
// an Arm that looked before it asked would sleep for ever.
func TestArmRacesPush(t *testing.T) {
	const rounds = 300_000
	const last = 0xffff // the size of the request that ends the test
	enough := time.Now().Add(2 * time.Second)
	f, b, _ := txPair(t, math.MaxUint32-rounds/2)
	var toBack, toFront bit
	// pause burns a few nanoseconds, a different number each time.
	pause := func(i uint32) (n uint32) {
		for range i * 7919 % 61 {
			n += i
		}
		return n
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i, size := uint32(0), uint16(0); size != last; i++ {
			for {
				if more, err := b.Arm(); err != nil {
					t.Error(err)
					return
				} else if more {
					break
				}
				if !toBack.wait() {
					t.Errorf("the backend sleeps at %d: %+v", i, b.State())
					return
				}
			}
			size = b.Request(b.ReqCons()).Size
			b.Consume(1)
			pause(i)
			if b.Commit([]TxResponse{{ID: uint16(i)}}) {
				toFront.notify()
			}
		}
	})
	wg.Go(func() {
		for i, size := uint32(0), uint16(0); size != last; i++ {
			pause(i * 31)
			if i == rounds || i%1000 == 0 && time.Now().After(enough) {
				size = last
			}
			f.Put(TxRequest{ID: uint16(i), Size: size})
			if f.Push() {
				toBack.notify()
			}
			for {
				if more, err := f.Arm(); err != nil {
					t.Error(err)
					return
				} else if more {
					break
				}
				if !toFront.wait() {
					t.Errorf("the frontend sleeps at %d: %+v", i, f.State())
					return
				}
			}
			f.Take(1)
		}
	})
	wg.Wait()
}

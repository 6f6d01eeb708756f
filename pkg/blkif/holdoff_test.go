// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xen"
)

// A notification is held off when the peer is known to be awake. What must hold
// is that no wake-up is ever lost: a consumer that armed, looked once more and
// went to sleep is woken by the push that brings what it sleeps for.

// end is one end of a ring as the hold-off model sees it: whether its owner sleeps, and
// what for.
type end struct {
	asleep bool
	wants  uint32
}

// TestHoldOffModel lets both ends act in any order and checks after every step that an end
// that sleeps has nothing to do.
func TestHoldOffModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := rapid.SampledFrom(Protocols()).Draw(rt, "protocol")
		f, b, _ := pair(t, p, rapid.IntRange(0, MaxOrder).Draw(rt, "order"), near().Draw(rt, "start"))
		var front, back end
		rt.Repeat(map[string]func(*rapid.T){
			"front puts and pushes": func(t *rapid.T) {
				for range rapid.Uint32Range(0, min(f.Free(), 40)).Draw(t, "n") {
					f.Put(&Request{})
				}
				if f.Push() {
					back.asleep = false
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
				n := rapid.Uint32Range(0, b.InFlight()).Draw(t, "n")
				if b.Commit(make([]Response, n)) {
					front.asleep = false
				}
			},
			"back arms": func(t *rapid.T) {
				back.wants = rapid.Uint32Range(1, 11).Draw(t, "wants")
				more, err := b.ArmFor(back.wants)
				if err != nil {
					t.Fatal(err)
				}
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
				front.wants = rapid.Uint32Range(1, 11).Draw(t, "wants")
				more, err := f.ArmFor(front.wants)
				if err != nil {
					t.Fatal(err)
				}
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

// event is an event channel as two goroutines of one test see it: a pending bit
// that stays set until it is taken.
type event chan struct{}

func (e event) notify() {
	select {
	case e <- struct{}{}:
	default:
	}
}

// TestConcurrent moves numbered requests from a frontend to a backend and their answers
// back, in another order than the requests, each end asleep whenever the rule allows it. A
// lost wake-up hangs the test; under the race detector it also shows that the atomics order
// the plain stores of the slots.
func TestConcurrent(t *testing.T) {
	const total = 40_000
	f, b, _ := pair(t, X8632, 1, math.MaxUint32-total/2)
	toBack, toFront := make(event, 1), make(event, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		var seen uint32
		var rsp []Response
		for seen < total {
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
				var s Slot
				var q Request
				b.Copy(b.ReqCons(), &s)
				s.Decode(X8632, &q)
				if q.ID != uint64(seen) || q.Sector != uint64(seen)<<20 || q.Segs[0].Gref != xen.Gref(seen) {
					t.Errorf("request %d reads %+v", seen, q)
					return
				}
				b.Consume(1)
				rsp = append([]Response{q.Response(StatusOkay)}, rsp...)
				seen++
			}
			if b.Commit(rsp) {
				toFront.notify()
			}
		}
	})
	wg.Go(func() {
		var sent, done uint32
		seen := make([]bool, total)
		for done < total {
			for n := min(f.Free(), 1+sent%53); n > 0 && sent < total; n-- {
				q := Request{Op: OpWrite, NrSegments: 1, ID: uint64(sent), Sector: uint64(sent) << 20}
				q.Segs[0].Gref = xen.Gref(sent)
				f.Put(&q)
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
				if r.ID >= uint64(sent) || seen[r.ID] || r.Op != OpWrite {
					t.Errorf("response %d reads %+v", done, r)
					return
				}
				seen[r.ID] = true
				f.Take(1)
				done++
			}
			if n == 0 && (f.Free() == 0 || sent == total) && done < total {
				if more, _ := f.Arm(); !more {
					<-toFront
				}
			}
		}
	})
	wg.Wait()
}

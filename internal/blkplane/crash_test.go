// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// killed is the panic that ends a queue's thread as SIGKILL would: after it nothing of the
// ring or the journal changes. Operations under way reach the disk, as they do in the
// kernel.
const killed = "killed by the test"

// killer ends a queue's thread at one of its stores.
type killer struct {
	at    int64         // number of the store; 0: never
	step  atomic.Uint32 // of the kill, plus 1
	calls atomic.Int64
	wreck func() // called before the end
}

func (k *killer) hook(s step) {
	if k.calls.Add(1) != k.at {
		return
	}
	if k.wreck != nil && s == stepRecord {
		k.wreck()
	}
	k.step.Store(uint32(s) + 1)
	panic(killed)
}

// happened reports whether the thread was killed.
func (k *killer) happened() bool { return k.step.Load() != 0 }

// connectTo connects with a killer that waits for a store.
func (b *bed) connectTo(k *killer) {
	b.Helper()
	if err := b.tryConnect(); err != nil {
		b.Fatalf("connect: %v", err)
	}
	b.conn.queues[0].journal.hook = k.hook
	b.conn.Start()
}

// script has the requests that the frontend of a crash test makes, all at once, and checks
// their result when every one has its response.
type script struct {
	*bed
	want map[uint64]blkif.Op
	got  map[uint64]blkif.Response
}

// newScript fills the ring with requests whose result depends on their order.
func newScript(t *testing.T) *script {
	b := newBed(t, bedConfig{sectors: 4096})
	s := &script{bed: b, want: map[uint64]blkif.Op{}, got: map[uint64]blkif.Response{}}
	copy(b.store.Bytes(), bytes.Repeat([]byte{9}, 512))
	add := func(r blkif.Request) { s.want[b.put(r)] = r.Operation() }
	b.fill(0, 64, 1)
	add(b.request(blkif.OpWrite, 0, 0, 1, 0))     // overwritten twice
	add(b.request(blkif.OpWrite, 64, 1, 16, 0))   // indirect, read back below
	add(b.request(blkif.OpBarrier, 0, 20, 1, 0))  // overwrites
	add(blkif.Request{Op: blkif.OpFlush})         //
	add(b.request(blkif.OpRead, 64, 100, 16, 1))  // what the write before the barrier wrote
	add(b.request(blkif.OpBarrier, 8, 21, 2, 0))  //
	add(b.request(blkif.OpWrite, 0, 30, 1, 0))    // after the barrier: it stays
	add(b.request(blkif.OpWrite, 640, 32, 10, 0)) //
	add(blkif.Request{Op: blkif.OpFlush})         //
	add(blkif.Request{Op: blkif.OpDiscard, Sector: 1024, NrSectors: 256})
	add(b.request(blkif.OpRead, 1024, 200, 4, 0)) // any data: the discard is concurrent
	add(b.request(blkif.OpRead, 5000, 0, 1, 0))   // beyond the end
	return s
}

// collect takes the responses that are there, and reports whether all are.
func (s *script) collect() bool {
	s.Helper()
	have, err := s.front.Responses()
	if err != nil {
		s.Fatal(err)
	}
	for i := range have {
		r := s.front.Response(s.front.RspCons().Add(i))
		if _, twice := s.got[r.ID]; twice {
			s.Fatalf("id %d is answered twice", r.ID)
		}
		if op, ok := s.want[r.ID]; !ok || op != r.Op {
			s.Fatalf("response %+v: want operation %v", r, op)
		}
		s.got[r.ID] = r
	}
	s.front.Take(have)
	return len(s.got) == len(s.want)
}

// serve lets a daemon serve the ring until it is killed or everything is answered, and
// reports whether it was killed.
func (s *script) serve(k *killer) bool {
	s.Helper()
	s.connectTo(k)
	_, _ = s.front.Arm()
	_ = s.guest.Send(s.port)
	for !s.collect() && !k.happened() {
		if more, _ := s.front.Arm(); more {
			continue
		}
		select {
		case <-s.guest.Wake(s.port):
		case n := <-s.notices:
			if n.Kind == Broken && !strings.Contains(n.Err.Error(), killed) {
				s.Fatalf("broken: %v", n.Err)
			}
		}
	}
	if !k.happened() {
		s.drain()
	}
	s.disconnect()
	return k.happened()
}

// check checks what must be true in the end.
func (s *script) check() {
	s.Helper()
	if !s.collect() {
		s.Fatalf("%d of %d requests have a response", len(s.got), len(s.want))
	}
	for id, r := range s.got {
		want := blkif.StatusOkay
		if id == uint64(len(s.want)) {
			want = blkif.StatusError
		}
		if r.Status != want {
			s.Errorf("request %d: %v, want %v", id, r.Status, want)
		}
	}
	disk := s.store.Bytes()
	for _, c := range []struct {
		sector, page, pages int
	}{{0, 30, 1}, {8, 21, 2}, {64, 1, 16}, {640, 32, 10}} {
		if !bytes.Equal(disk[c.sector*512:][:c.pages*4096], s.page(c.page, c.pages)) {
			s.Errorf("sector %d has not the data that was written last", c.sector)
		}
	}
	if !bytes.Equal(s.page(100, 16), s.page(1, 16)) {
		s.Error("the read has not the data that was written before the barrier")
	}
}

// TestKillAtEachStore kills the thread after each of its stores to the journal and the ring.
// A successor ends the work: each request gets one response, and the data is right.
func TestKillAtEachStore(t *testing.T) {
	seen := map[step]int{}
	for at := int64(1); ; at++ {
		again := true
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			s := newScript(t)
			s.push()
			k := &killer{at: at}
			if again = s.serve(k); again {
				seen[step(k.step.Load()-1)]++
				s.serve(&killer{})
			}
			s.check()
		})
		if !again || t.Failed() {
			break
		}
	}
	t.Logf("kills by step: %v", seen)
	for st := range numSteps {
		if seen[st] == 0 {
			t.Errorf("no kill at step %d", st)
		}
	}
}

// TestKillWithinCommit kills the thread when the slots of the ring were written in part.
func TestKillWithinCommit(t *testing.T) {
	for part := range 4 {
		for at := int64(1); at < 200; at++ {
			s := newScript(t)
			s.push()
			k := &killer{at: at}
			k.wreck = func() {
				// The successor writes the batch again, over any bytes that it left there.
				h, err := blkif.ReadHeader(s.ring)
				if err != nil {
					panic(err)
				}
				n := uint32(part + 1)
				if h.RspProd == 0 {
					// In the other slots the successor looks for the requests in flight.
					n = min(n, s.conn.queues[0].journal.words[jCount])
				}
				for i := range n {
					slot := 64 + (uint32(h.RspProd)+i)%s.front.Size()*112
					copy(s.ring[slot:slot+16], bytes.Repeat([]byte{0xa5}, 16>>(part%2)))
				}
			}
			if !s.serve(k) {
				break
			}
			s.serve(&killer{})
			s.check()
			if t.Failed() {
				t.Fatalf("part %d, store %d", part, at)
			}
		}
	}
}

// TestKillSuccessors kills one daemon after the other, each after a few stores more.
func TestKillSuccessors(t *testing.T) {
	for stride := int64(1); stride < 40; stride += 3 {
		s := newScript(t)
		s.push()
		lives := 0
		for s.serve(&killer{at: stride + int64(lives)}) {
			if lives++; lives > 1000 {
				t.Fatal("no progress")
			}
		}
		s.check()
		t.Logf("stride %d: %d lives", stride, lives)
	}
}

// TestOtherConnections: a journal is not applied to a ring that is not its own.
func TestOtherConnections(t *testing.T) {
	for name, change := range map[string]func(b *bed){
		"ring made anew": func(b *bed) { b.newRing(blkif.X8664) },
		"stamp gone":     func(b *bed) { clear(b.ring[32:48]) },
		"other port":     func(b *bed) { b.port = b.guest.Offer(); b.cfg.Queues[0].Port = b.port },
		"journal lost":   func(b *bed) { b.cfg.Queues[0].Journal += "2" },
		"other protocol": func(b *bed) { b.cfg.Protocol = blkif.ARM },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			b.connect()
			b.fill(0, 1, 3)
			b.do(b.request(blkif.OpWrite, 0, 0, 1, 0))
			b.disconnect()
			change(b)
			err := b.tryConnect()
			switch {
			case name == "ring made anew":
				if err != nil {
					t.Fatal(err)
				}
				if b.conn.Adopted() {
					t.Error("a new ring was adopted")
				}
				b.conn.Start()
				if st := b.do(b.request(blkif.OpWrite, 0, 0, 1, 0)); st != blkif.StatusOkay {
					t.Error(st)
				}
			case err == nil || !strings.Contains(err.Error(), "journal"):
				t.Errorf("connect: %v, want an error about the journal", err)
			}
		})
	}
}

// TestRingMadeAnew: a frontend has made its ring anew while no daemon ran, with the same
// grefs, port and stamp. The old requests are not made again, and have no answer.
func TestRingMadeAnew(t *testing.T) {
	const consumed = 5 // stores for two requests: slot and state of each, req_cons
	for name, c := range map[string]struct {
		kill int64 // 0: the old requests were answered
		put  func(b *bed) []uint64
	}{
		"other requests": {consumed, func(b *bed) []uint64 {
			return []uint64{b.put(b.request(blkif.OpRead, 0, 8, 1, 0)), b.put(b.request(blkif.OpRead, 8, 9, 1, 0))}
		}},
		"one request": {consumed, func(b *bed) []uint64 { return []uint64{b.put(b.request(blkif.OpRead, 0, 8, 1, 0))} }},
		"none":        {consumed, func(*bed) []uint64 { return nil }},
		"second differs": {consumed, func(b *bed) []uint64 {
			b.ids = 0
			return []uint64{b.put(b.request(blkif.OpWrite, 0, 0, 1, 0)), b.put(b.request(blkif.OpRead, 8, 9, 1, 0))}
		}},
		"after answers": {0, func(b *bed) []uint64 { return []uint64{b.put(b.request(blkif.OpRead, 0, 8, 1, 0))} }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			b.fill(0, 2, 3)
			b.put(b.request(blkif.OpWrite, 0, 0, 1, 0))
			b.put(b.request(blkif.OpWrite, 8, 1, 1, 0))
			b.push()
			k := &killer{at: c.kill}
			b.connectTo(k)
			if c.kill == 0 {
				b.take(2)
				b.drain()
			} else {
				<-b.notices
			}
			b.disconnect()

			disk := bytes.Clone(b.store.Bytes()[4096:8192])
			stamp := bytes.Clone(b.ring[32:48])
			b.newRing(blkif.X8664)
			copy(b.ring[32:], stamp)
			ids := c.put(b)
			b.push()
			b.connect()
			if b.conn.Adopted() {
				t.Error("another ring was adopted")
			}
			got := b.take(len(ids))
			for _, id := range ids {
				if got[id].Status != blkif.StatusOkay {
					t.Errorf("request %d: %+v", id, got)
				}
			}
			b.drain()
			if h, err := blkif.ReadHeader(b.ring); err != nil || h.RspProd != blkif.Index(len(ids)) {
				t.Errorf("%d responses, %v: want %d", h.RspProd, err, len(ids))
			}
			if !bytes.Equal(b.store.Bytes()[4096:8192], disk) {
				t.Error("an old request was made again")
			}
		})
	}
}

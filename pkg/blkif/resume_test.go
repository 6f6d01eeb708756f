// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"errors"
	"math"
	"testing"
)

// TestResume: a successor answers what is in flight and goes on at the req_cons it is given,
// whether the last batch of its predecessor was published or not.
func TestResume(t *testing.T) {
	for _, published := range []bool{false, true} {
		f, b, mem := pair(t, X8632, 1, math.MaxUint32-2)
		for i := range 8 {
			f.Put(&Request{Op: OpFlush, ID: uint64(i)})
		}
		f.Push()
		b.Consume(6)
		batch := []Response{{ID: 4, Op: OpFlush}, {ID: 1, Op: OpFlush}}
		base := b.RspProd()
		if published {
			b.Commit(batch)
		} else { // killed when one slot of the batch was overwritten
			b.ring.putResponse(base, rspWords32, &batch[0])
		}
		cons := b.ReqCons()

		next, err := AttachBack(mem, X8632)
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Resume(cons); err != nil {
			t.Fatal(err)
		}
		if next.RspProd() == base {
			next.Commit(batch)
		}
		if n, err := next.Available(); err != nil || n != 2 || next.InFlight() != 4 {
			t.Fatalf("published %v: available = %d, %v with %d in flight", published, n, err, next.InFlight())
		}
		for range 2 {
			var s Slot
			next.Copy(next.ReqCons(), &s)
			if got, want := s.ID(X8632), uint64(next.ReqCons().Sub(base)); got != want {
				t.Errorf("published %v: request %d, want %d", published, got, want)
			}
			next.Consume(1)
		}
		rest := []Response{{ID: 0}, {ID: 2}, {ID: 3}, {ID: 5}, {ID: 6}, {ID: 7}}
		next.Commit(rest)
		n, err := f.Responses()
		if err != nil || n != 8 {
			t.Fatalf("published %v: responses = %d, %v", published, n, err)
		}
		seen := map[uint64]bool{}
		for i := range n {
			seen[f.Response(f.RspCons().Add(i)).ID] = true
		}
		if len(seen) != 8 {
			t.Errorf("published %v: answers to %v, want one to each of 8", published, seen)
		}
	}
}

func TestResumeOutOfBounds(t *testing.T) {
	for _, c := range []struct {
		cons Index // from rsp_prod; req_prod is 10 ahead
		ok   bool
	}{{0, true}, {10, true}, {11, false}, {33, false}, {math.MaxUint32, false}} {
		f, b, _ := pair(t, ARM, 0, 77)
		f.SetReqProd(87)
		err := b.Resume(77 + c.cons)
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrOverrun) {
			t.Errorf("resume %d ahead: %v", c.cons, err)
		}
		if _, err := b.Available(); c.ok != (err == nil) {
			t.Errorf("available after resume %d ahead: %v", c.cons, err)
		}
	}
}

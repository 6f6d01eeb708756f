// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSplitKilledBetweenSteps kills a back end at each step of publishing a batch. Its
// successor takes exactly the chains that the driver did not get back, in order.
func TestSplitKilledBetweenSteps(t *testing.T) {
	for steps := range 5 {
		t.Run(fmt.Sprint(steps, " steps done"), func(t *testing.T) {
			b := newBed(t)
			d, _, r := b.split(t, 8, features{})
			c := b.config(8, features{})
			c.Inflight = make([]byte, SplitInflightSize(8))
			q := b.attachSplit(t, c, r)
			batch, rest := NewBatch(8), NewBatch(8)
			missing := map[uint16]bool{}
			var order []uint16
			for range 6 {
				id := added(t)(d.Add(write(1)))
				missing[id] = true
				order = append(order, id)
			}
			d.Publish()
			q.Take(rest, 1) // completed last
			q.Take(batch, 1)
			q.Publish(batch)
			q.Take(batch, 2)

			for step, do := range []func(){
				func() { q.putUsed(batch) },
				func() { q.inflight.link(batch.chains) },
				func() { q.usedIdx += 2; q.store() },
				func() { q.inflight.publish(batch.chains, q.usedIdx) },
			} {
				if step < steps {
					do()
				}
			}

			q = b.attachSplit(t, c, r)
			for {
				id, _, ok := d.Poll()
				if !ok {
					break
				}
				delete(missing, id)
			}
			var want []uint16
			for _, id := range order {
				if missing[id] {
					want = append(want, id)
				}
			}
			wantLen := 5
			if steps >= 3 {
				wantLen = 3
			}
			if len(want) != wantLen {
				t.Fatalf("the driver still misses %v", want)
			}
			next := NewBatch(8)
			if n, err := q.Take(next, 2); n != 2 || err != nil {
				t.Fatalf("took %d, %v", n, err)
			}
			q.Return(next, 1) // a chain that was replayed is replayed again
			if more, err := q.Arm(); !more || err != nil {
				t.Errorf("nothing to do: %t, %v", more, err)
			}
			q.Take(next, 8)
			var got []uint16
			for i := range next.Len() {
				got = append(got, next.Chain(i).ID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("chains of the successor (-want +got):\n%s", diff)
			}
			q.Publish(next)
			if base := q.Base(); base != 6 {
				t.Errorf("base %d", base)
			}
			for range want {
				id, _, ok := d.Poll()
				if !ok || !missing[id] {
					t.Errorf("chain %d, %t", id, ok)
				}
				delete(missing, id)
			}
			if len(missing) != 0 {
				t.Errorf("chains %v are lost", missing)
			}
		})
	}
}

// TestSplitInflightRefused: a front end can write anything into the region.
func TestSplitInflightRefused(t *testing.T) {
	for _, tc := range []struct {
		name                          string
		version, num, last, used, nxt uint16
		want                          Reason
	}{
		{name: "nothing wrong", version: 1, num: 4, want: ReasonNone},
		{name: "version of the future", version: 2, num: 4, want: ReasonInflight},
		{name: "another queue", version: 1, num: 8, want: ReasonInflight},
		{name: "used index is far off", version: 1, num: 4, used: 5, want: ReasonInflight},
		{name: "list leaves the queue", version: 1, num: 4, used: 0xffff, last: 4, want: ReasonInflight},
		{name: "list leaves the queue later", version: 1, num: 4, used: 0xfffe, nxt: 4, want: ReasonInflight},
		{name: "list is a loop", version: 1, num: 4, used: 0xfffc, want: ReasonNone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			_, _, r := b.split(t, 4, features{})
			c := b.config(4, features{})
			c.Inflight = make([]byte, SplitInflightSize(4))
			for i, v := range []uint16{tc.version, tc.num, tc.last, tc.used} {
				binary.LittleEndian.PutUint16(c.Inflight[8+2*i:], v)
			}
			binary.LittleEndian.PutUint16(c.Inflight[16+6:], tc.nxt)
			_, err := NewSplit(c, r)
			if got := reasonOf(t, err); got != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestSplitReplayOfBadChain: the descriptors of a chain in flight are checked again.
func TestSplitReplayOfBadChain(t *testing.T) {
	b := newBed(t)
	d, _, r := b.split(t, 4, features{})
	c := b.config(4, features{})
	c.Inflight = make([]byte, SplitInflightSize(4))
	q := b.attachSplit(t, c, r)
	id := added(t)(d.Add(write(1)))
	d.Publish()
	batch := NewBatch(4)
	q.Take(batch, 1)
	PutDesc(r.Desc, int(id), 1, 1)
	q = b.attachSplit(t, c, r)
	if _, err := q.Take(NewBatch(4), 1); reasonOf(t, err) != ReasonAddress {
		t.Errorf("error %v", err)
	}
}

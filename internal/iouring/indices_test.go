// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// memoryKernel is the kernel's side of a ring in plain memory: it lets the
// indices start anywhere, which the real one does not.
type memoryKernel struct {
	sqTail, cqHead, cqTail atomic.Uint32
	sqHead                 uint32
}

// newMemoryRing makes a ring of 2^bits entries whose indices start at start.
func newMemoryRing(bits int, start uint32) (*Ring, *memoryKernel) {
	k := &memoryKernel{sqHead: start}
	k.sqTail.Store(start)
	k.cqHead.Store(start)
	k.cqTail.Store(start)
	n := uint32(1) << bits
	return &Ring{
		sqes: make([]sqe, n), sqMask: n - 1, sqTail: &k.sqTail, tail: start, head: start,
		cqes: make([]cqe, 2*n), cqMask: 2*n - 1, cqHead: &k.cqHead, cqTail: &k.cqTail, taken: start,
		limit: n - 1,
	}, k
}

// run takes everything queued and completes it, and n unasked completions more.
func (k *memoryKernel) run(r *Ring, unasked int) {
	r.sqTail.Store(r.tail)
	post := func(c cqe) {
		tail := k.cqTail.Load()
		r.cqes[tail&r.cqMask] = c
		k.cqTail.Store(tail + 1)
	}
	for ; k.sqHead != k.sqTail.Load(); k.sqHead++ {
		e := r.sqes[k.sqHead&r.sqMask]
		post(cqe{userData: e.userData, res: int32(e.len)})
	}
	for range unasked {
		if k.cqTail.Load()-k.cqHead.Load()+r.limit >= uint32(len(r.cqes)) {
			break // the kernel keeps completions that do not fit
		}
		post(cqe{userData: ^uint64(0)})
	}
	r.head = k.sqHead
}

// TestIndicesMayStartAnywhere: from any start of the indices, operations complete once
// and in order, the ring is full exactly at its limit, and completions without an
// operation do not upset the count.
func TestIndicesMayStartAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(1<<32-40, 1<<32-1)).Draw(t, "start")
		r, k := newMemoryRing(rapid.IntRange(1, 4).Draw(t, "bits"), start)
		var next, want uint64
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			for range rapid.IntRange(0, 20).Draw(t, "queue") {
				full := int(next-want) == r.Entries()
				if r.Write(0, 0, uint32(next), next) == full {
					t.Fatalf("with %d of %d under way: queued %v", next-want, r.Entries(), !full)
				}
				if !full {
					next++
				}
			}
			k.run(r, rapid.IntRange(0, 1).Draw(t, "unasked"))
			dst := make([]Completion, rapid.IntRange(0, 40).Draw(t, "take"))
			n := r.Completions(dst)
			for _, c := range dst[:n] {
				if c.User == ^uint64(0) {
					continue
				}
				if c.User != want || uint32(c.Res) != uint32(want) {
					t.Fatalf("completion %+v, want %d", c, want)
				}
				want++
			}
			if n < len(dst) && want != next {
				t.Fatalf("%d operations under way after taking everything", next-want)
			}
			// An unasked completion may make room early, never keep it.
			if int(r.owed) > int(next-want) {
				t.Fatalf("owed %d, under way %d", r.owed, next-want)
			}
			for int(r.owed) < int(next-want) {
				r.owed++ // back in step with the model
			}
		}
	})
}

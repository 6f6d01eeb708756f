// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// The inflight region of a split ring (VHOST_USER_GET_INFLIGHT_FD) has a header of 16
// bytes for each queue:
//
//	offset  0  u64 features         0
//	offset  8  u16 version          1; 0: a new region
//	offset 10  u16 desc_num         size of the queue
//	offset 12  u16 last_batch_head  the last head that was linked
//	offset 14  u16 used_idx         used.idx, after the flags of a batch were cleared
//
// and 16 bytes for each descriptor, of which those of heads are used:
//
//	offset  0  u8  inflight         1: it was taken and not published
//	offset  6  u16 next             the head that was linked before it
//	offset  8  u64 counter          the order in which heads were taken
//
// A batch is published in steps, so that a back end which is killed between any two leaves
// a region that its successor can complete: link the heads; write used.idx; clear their
// flags; write used_idx. If used_idx differs from used.idx, the heads that were linked last
// are published already.
const (
	inflightVersion = 1
	inflightHeader  = 16
	inflightAlign   = 64 // of the parts of an inflight region
)

// SplitInflightSize is the size in bytes of a split ring's part of the inflight region.
func SplitInflightSize(size int) int {
	return (inflightHeader + 16*size + inflightAlign - 1) &^ (inflightAlign - 1)
}

// splitInflight is a view of that part. The front end can write it: what is read from it
// is checked.
type splitInflight struct {
	w       []uint64 // header, then two words for each descriptor
	size    uint32
	last    uint16 // last_batch_head
	counter uint64
}

// attachSplitInflight begins to use a region. It completes what a predecessor began, and
// returns the heads that it took and did not publish, in order.
func attachSplitInflight(mem []byte, size uint32, usedIdx uint16) (*splitInflight, []uint16, error) {
	w, ok := doubles(mem)
	if !ok || len(mem) < SplitInflightSize(int(size)) {
		return nil, nil, &Error{Reason: ReasonInflight}
	}
	f := &splitInflight{w: w, size: size}
	head := atomic.LoadUint64(&w[1])
	if uint16(head) == 0 {
		f.header(usedIdx)
		return f, nil, nil
	}
	if uint16(head) != inflightVersion || uint32(uint16(head>>16)) != size {
		return nil, nil, &Error{Reason: ReasonInflight}
	}
	f.last = uint16(head >> 32)
	if !f.complete(usedIdx - uint16(head>>48)) {
		return nil, nil, &Error{Reason: ReasonInflight}
	}
	f.header(usedIdx)
	heads := f.heads()
	return f, heads, nil
}

// complete clears the flags of the last n heads that were linked.
func (f *splitInflight) complete(n uint16) bool {
	if uint32(n) > f.size {
		return false
	}
	for i := f.last; n > 0; n-- {
		if uint32(i) >= f.size {
			return false
		}
		w := &f.w[2+2*uint32(i)]
		state := atomic.LoadUint64(w)
		atomic.StoreUint64(w, state&^0xff)
		i = uint16(state >> 48)
	}
	return true
}

// heads returns the heads in flight in the order of their counters, and continues to
// count after the last one.
func (f *splitInflight) heads() []uint16 {
	type taken struct {
		counter uint64
		head    uint16
	}
	var all []taken
	for i := range f.size {
		if atomic.LoadUint64(&f.w[2+2*i])&0xff != 0 {
			all = append(all, taken{atomic.LoadUint64(&f.w[3+2*i]), uint16(i)})
		}
	}
	slices.SortStableFunc(all, func(a, b taken) int { return cmp.Compare(a.counter, b.counter) })
	heads := make([]uint16, len(all))
	for i, t := range all {
		// Counting anew keeps the counter from wrapping if the region had large numbers.
		atomic.StoreUint64(&f.w[3+2*uint32(t.head)], uint64(i))
		heads[i] = t.head
	}
	f.counter = uint64(len(all))
	return heads
}

// header writes the second word of the header.
func (f *splitInflight) header(usedIdx uint16) {
	atomic.StoreUint64(&f.w[1], inflightVersion|uint64(uint16(f.size))<<16|uint64(f.last)<<32|uint64(usedIdx)<<48)
}

// take records that a chain was taken.
func (f *splitInflight) take(head uint16) {
	i := 2 + 2*uint32(head)
	atomic.StoreUint64(&f.w[i+1], f.counter)
	f.counter++
	atomic.StoreUint64(&f.w[i], atomic.LoadUint64(&f.w[i])|1)
}

// giveBack records that a chain is available again.
func (f *splitInflight) giveBack(head uint16) {
	w := &f.w[2+2*uint32(head)]
	atomic.StoreUint64(w, atomic.LoadUint64(w)&^0xff)
}

// link records the chains that are about to be published.
func (f *splitInflight) link(chains []Chain) {
	usedIdx := uint16(atomic.LoadUint64(&f.w[1]) >> 48)
	for i := range chains {
		id := chains[i].ID
		atomic.StoreUint64(&f.w[2+2*uint32(id)], 1|uint64(f.last)<<48)
		f.last = id
	}
	f.header(usedIdx)
}

// publish records that they are.
func (f *splitInflight) publish(chains []Chain, usedIdx uint16) {
	for i := range chains {
		f.giveBack(chains[i].ID)
	}
	f.header(usedIdx)
}

// takeReplay appends the next chain that a predecessor left to b.
func (q *Split) takeReplay(b *Batch) error {
	if err := q.chain(b, q.replay[q.replayed]); err != nil {
		return err
	}
	b.chains[len(b.chains)-1].replayed = true
	q.replayed++
	return nil
}

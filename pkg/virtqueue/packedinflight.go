// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// The inflight region of a packed ring has a header of 32 bytes for each queue:
//
//	offset  0  u64 features               0
//	offset  8  u16 version                1; 0: a new region
//	offset 10  u16 desc_num               size of the queue
//	offset 12  u16 free_head              first free entry
//	offset 14  u16 old_free_head          the same, before the batch being published
//	offset 16  u16 used_idx               slot of the next chain to publish
//	offset 18  u16 old_used_idx           the same, before that batch
//	offset 20  u8  used_wrap_counter
//	offset 21  u8  old_used_wrap_counter
//
// and an entry of 32 bytes for each descriptor, which is free or has a copy of a descriptor
// in flight, as the ring's own may be overwritten:
//
//	offset  0  u8  inflight   1: a chain that begins here was taken and not published
//	offset  2  u16 next       the next entry of the chain, or of the free ones
//	offset  4  u16 last       the last entry of the chain
//	offset  6  u16 num        the number of entries
//	offset  8  u64 counter    the order in which chains were taken
//	offset 16  u16 id, u16 flags, u32 len, u64 addr
//
// Both free heads are in one 64-bit word and all used indices are in another, so that each
// changes at once. A batch is published in steps: free the entries and write free_head;
// write used_idx; write the ring; clear the flags; write old_free_head; write old_used_idx. If
// the indices differ, the ring tells whether the batch was published.
const packedHeader = 32

const (
	hdrHeads = 1 // words of the header
	hdrUsed  = 2
	hdrWords = 4
	entWords = 4 // of an entry
)

// PackedInflightSize is the size in bytes of a packed ring's part of the inflight region.
func PackedInflightSize(size int) int {
	return (packedHeader + 32*size + inflightAlign - 1) &^ (inflightAlign - 1)
}

// packedInflight is a view of that part. What a chain consists of is also in private
// memory, since the front end can write the region.
type packedInflight struct {
	w       []uint64
	fresh   bool
	free    uint16
	used    position
	counter uint64
	entries []packedEntry
}

type packedEntry struct{ next, last, num uint16 }

// replayChain is a chain that a predecessor took and did not publish.
type replayChain struct {
	entry uint16
	descs [][2]uint64 // as in the ring
}

// attachPackedInflight begins to use a region. It completes or undoes what a predecessor
// began, and returns where the next chain is published and the chains in flight, in order.
// flags reads those of a descriptor in the ring.
func attachPackedInflight(mem []byte, size uint32, used position, flags func(slot uint16) uint16) (
	*packedInflight, position, []replayChain, error) {
	bad := &Error{Reason: ReasonInflight}
	w, ok := doubles(mem)
	if !ok || len(mem) < PackedInflightSize(int(size)) {
		return nil, used, nil, bad
	}
	f := &packedInflight{w: w, used: used, entries: make([]packedEntry, size)}
	heads := atomic.LoadUint64(&w[hdrHeads])
	if uint16(heads) == 0 {
		f.fresh = true
		f.rebuild(nil)
		return f, used, nil, nil
	}
	free, usedIdx := f.recover(heads, flags)
	if uint16(heads) != inflightVersion || uint32(uint16(heads>>16)) != size || uint32(usedIdx.slot) >= size {
		return nil, used, nil, bad
	}
	f.used = usedIdx
	if !f.clearFree(free) {
		return nil, used, nil, bad
	}
	chains, ok := f.chains()
	if !ok {
		return nil, used, nil, bad
	}
	f.rebuild(chains)
	return f, usedIdx, chains, nil
}

// recover returns the free head and the used position that hold: the new ones if the last
// batch is in the ring.
func (f *packedInflight) recover(heads uint64, flags func(slot uint16) uint16) (free uint16, used position) {
	u := atomic.LoadUint64(&f.w[hdrUsed])
	now := position{uint16(u), u>>32&1 != 0}
	old := position{uint16(u >> 16), u>>40&1 != 0}
	if now != old && int(old.slot) < len(f.entries) && !old.available(flags(old.slot)) {
		return uint16(heads >> 32), now
	}
	return uint16(heads >> 48), old
}

// clearFree clears the flags of the free entries.
func (f *packedInflight) clearFree(free uint16) bool {
	for range f.entries {
		if int(free) >= len(f.entries) {
			break
		}
		w := f.entry(free)
		state := atomic.LoadUint64(&w[0])
		atomic.StoreUint64(&w[0], state&^0xff)
		free = uint16(state >> 16)
	}
	return int(free) >= len(f.entries) // the list ends
}

func (f *packedInflight) entry(i uint16) []uint64 {
	return f.w[hdrWords+entWords*int(i):][:entWords]
}

// chains reads the chains in flight, in the order of their counters.
func (f *packedInflight) chains() ([]replayChain, bool) {
	type taken struct {
		counter uint64
		chain   replayChain
	}
	var all []taken
	seen := make([]bool, len(f.entries))
	for head := range uint16(len(f.entries)) {
		w := f.entry(head)
		state := atomic.LoadUint64(&w[0])
		if state&0xff == 0 {
			continue
		}
		c := replayChain{entry: head}
		num := uint16(state >> 48)
		for at := head; len(c.descs) < int(num); {
			if int(at) >= len(f.entries) || seen[at] {
				return nil, false
			}
			seen[at] = true
			e := f.entry(at)
			v := atomic.LoadUint64(&e[2])
			c.descs = append(c.descs, [2]uint64{atomic.LoadUint64(&e[3]), v>>32 | v<<32})
			next := uint16(atomic.LoadUint64(&e[0]) >> 16)
			f.entries[at].next = next
			f.entries[head].last = at
			at = next
		}
		if num == 0 {
			return nil, false
		}
		f.entries[head].num = num
		all = append(all, taken{atomic.LoadUint64(&w[1]), c})
	}
	slices.SortStableFunc(all, func(a, b taken) int { return cmp.Compare(a.counter, b.counter) })
	out := make([]replayChain, len(all))
	for i, t := range all {
		atomic.StoreUint64(&f.entry(t.chain.entry)[1], uint64(i)) // see splitInflight.heads
		out[i] = t.chain
	}
	f.counter = uint64(len(all))
	return out, true
}

// rebuild makes the list of free entries of all that are in no chain, and writes the
// header. Only links among free entries change, so that it can be done again.
func (f *packedInflight) rebuild(chains []replayChain) {
	busy := make([]bool, len(f.entries))
	for _, c := range chains {
		for i, at := 0, c.entry; i < len(c.descs); i++ {
			busy[at] = true
			at = f.entries[at].next
		}
	}
	f.free = uint16(len(f.entries)) // the end of the list
	for i := len(f.entries) - 1; i >= 0; i-- {
		if !busy[i] {
			f.entries[i].next = f.free
			f.putState(uint16(i), 0)
			f.free = uint16(i)
		}
	}
	f.putUsed(f.used)
	f.putHeads(f.free)
}

// putState writes the first word of an entry.
func (f *packedInflight) putState(i uint16, inflight uint64) {
	e := &f.entries[i]
	atomic.StoreUint64(&f.entry(i)[0], inflight|uint64(e.next)<<16|uint64(e.last)<<32|uint64(e.num)<<48)
}

// putHeads writes free_head, and old as old_free_head.
func (f *packedInflight) putHeads(old uint16) {
	atomic.StoreUint64(&f.w[hdrHeads],
		inflightVersion|uint64(len(f.entries))<<16|uint64(f.free)<<32|uint64(old)<<48)
}

// putUsed writes used_idx and its wrap counter, and old as the old ones.
func (f *packedInflight) putUsed(old position) {
	w := uint64(f.used.slot) | uint64(old.slot)<<16
	if f.used.wrap {
		w |= 1 << 32
	}
	if old.wrap {
		w |= 1 << 40
	}
	atomic.StoreUint64(&f.w[hdrUsed], w)
}

// take records a chain and returns its entry. There are enough free ones: the descriptors
// in flight are at most as many as the queue has.
func (f *packedInflight) take(descs [][2]uint64) (head uint16) {
	head = f.free
	for _, d := range descs {
		e := f.entry(f.free)
		atomic.StoreUint64(&e[2], d[1]>>32|d[1]<<32)
		atomic.StoreUint64(&e[3], d[0])
		f.entries[head].last = f.free
		f.free = f.entries[f.free].next
	}
	f.entries[head].num = uint16(len(descs))
	atomic.StoreUint64(&f.entry(head)[1], f.counter)
	f.counter++
	f.putState(head, 1)
	f.putHeads(f.free)
	return head
}

// unlink puts the entries of a chain at the front of the free ones.
func (f *packedInflight) unlink(head uint16) {
	last := f.entries[head].last
	f.entries[last].next = f.free
	if last == head {
		f.putState(head, 1)
	} else {
		f.putState(last, 0)
	}
	f.free = head
}

// giveBack records that a chain is available again.
func (f *packedInflight) giveBack(head uint16) {
	f.unlink(head)
	f.putHeads(f.free)
	f.putState(head, 0)
}

// link records the chains that are about to be published, and where the next one will be.
func (f *packedInflight) link(chains []Chain, used position) {
	oldFree, oldUsed := f.free, f.used
	for i := range chains {
		f.unlink(chains[i].entry)
	}
	f.used = used
	f.putHeads(oldFree)
	f.putUsed(oldUsed)
}

// publish records that they are.
func (f *packedInflight) publish(chains []Chain) {
	for i := range chains {
		f.putState(chains[i].entry, 0)
	}
	f.putHeads(f.free)
	f.putUsed(f.used)
}

// takeReplay appends the next chain that a predecessor left to b.
func (q *Packed) takeReplay(b *Batch) error {
	r := &q.replay[q.replayed]
	c := b.open(0)
	for i, raw := range r.descs {
		d := packedDesc(raw[0], raw[1])
		reason, err := q.one(b, c, d)
		if reason == ReasonNone && (d.flags&descNext != 0) != (i+1 < len(r.descs)) {
			reason = ReasonInflight
		}
		if reason != ReasonNone {
			b.cut(len(b.chains) - 1)
			return q.fail(broke(reason, d.next, d, err))
		}
		c.ID = d.next
	}
	c.slots, c.entry, c.replayed = uint16(len(r.descs)), r.entry, true
	q.replayed++
	return nil
}

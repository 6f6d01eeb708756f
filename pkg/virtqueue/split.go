// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "sync/atomic"

// SplitRings is the memory of a split ring. Used may be longer than the ring, as may the
// others. It stays mapped as long as the queue is used.
type SplitRings struct {
	Desc  []byte // 16 bytes for each descriptor, aligned to 16
	Avail []byte // 4 bytes, 2 for each descriptor, 2 with EventIdx; aligned to 2
	Used  []byte // 4 bytes, 8 for each descriptor, 2 with EventIdx; aligned to 4
}

// Split is the device's side of a split virtqueue (virtio 1.2, 2.7). It belongs to one
// goroutine.
type Split struct {
	queue
	mask uint32

	desc  [][2]uint64
	avail halves   // flags, idx, ring, used_event
	used  []uint32 // flags and idx, then id and length of each entry
	event half     // avail_event

	flags    uint16 // used.flags, as last written
	seen     uint16 // avail.idx, as last read
	next     uint16 // index of the next chain to take
	usedIdx  uint16 // used.idx, as last written
	open     uint16 // chains taken, or to be replayed, that were not published
	inflight *splitInflight
	replay   []uint16 // heads that a predecessor took and did not publish, in order
	replayed int      // of them, how many were taken
}

// NewSplit attaches to a split ring. The next chain is that at used.idx, which is read from
// the ring: all before it were published, in order, and none behind it was. Base is not used.
// It is the same number if a front end sends back what [Split.Base] returned, but DPDK sends 0
// when it connects to the successor of a back end that was killed. With an inflight region
// chains that a predecessor left are taken first.
//
// With EventIdx the first [Split.Publish] reports that the driver wants to be notified in
// any case, since a predecessor may have died before it did so. A program that takes over
// from one notifies the driver at once.
func NewSplit(c Config, r SplitRings) (*Split, error) {
	common, err := newQueue(&c)
	if err != nil {
		return nil, err
	}
	q := &Split{queue: common, mask: common.size - 1}
	if q.size&q.mask != 0 {
		return nil, &Error{Reason: ReasonSize, Len: q.size}
	}
	if !q.view(r) {
		return nil, &Error{Reason: ReasonRing}
	}
	q.usedIdx = uint16(atomic.LoadUint32(&q.used[0]) >> 16)
	q.next = q.usedIdx
	if c.Inflight != nil {
		q.inflight, q.replay, err = attachSplitInflight(c.Inflight, q.size, q.usedIdx)
		if err != nil {
			return nil, err
		}
		q.open = uint16(len(q.replay))
		q.next = q.usedIdx + q.open
	}
	q.seen = q.next
	return q, nil
}

// view makes the views of the ring's parts.
func (q *Split) view(r SplitRings) bool {
	n := int(q.size)
	event := 0
	if q.eventIdx {
		event = 2
	}
	var ok [3]bool
	q.desc, ok[0] = table(r.Desc, n)
	q.avail, ok[1] = newHalves(r.Avail, 4+2*n+event)
	q.used, ok[2] = words(r.Used, 4)
	if !ok[0] || !ok[1] || !ok[2] || len(r.Used) < 4+8*n+event {
		return false
	}
	if q.eventIdx {
		q.event = newHalf(r.Used, 4+8*n)
	}
	return true
}

// Base returns the index in the available ring of the first chain that was not published:
// the answer to GET_VRING_BASE.
func (q *Split) Base() uint32 { return uint32(q.next - q.open) }

// Take appends at most max chains to b, in the order in which the driver made them
// available, and returns how many. It takes fewer if there are no more or b is full. An
// error is an [*Error]; the chains that were taken before it are good. After an error
// every call returns it.
func (q *Split) Take(b *Batch, max int) (int, error) {
	n := 0
	for ; n < max && !b.Full(); n++ {
		if q.broken != nil {
			return n, q.broken
		}
		if q.replayed < len(q.replay) {
			if err := q.takeReplay(b); err != nil {
				return n, err
			}
			continue
		}
		if q.next == q.seen {
			if more, err := q.look(); err != nil || !more {
				return n, err
			}
		}
		head := q.avail.load(2 + uint32(q.next)&q.mask)
		if err := q.chain(b, head); err != nil {
			return n, err
		}
		if q.inflight != nil {
			q.inflight.take(head)
		}
		q.next++
		q.open++
	}
	return n, nil
}

// TakeFor appends chains to b until they have n writable bytes, at least 1: the buffers of
// one packet. It returns how many, 0 if there are not enough yet or b is full; then none is
// taken, and ArmFor(Available()+1) asks for a kick at the next one. If more than max chains
// would be needed it takes none and returns [ErrMax]: the packet cannot be delivered. A
// chain with nothing to write to breaks the rules of a ring for such packets.
func (q *Split) TakeFor(b *Batch, n uint32, max int) (int, error) {
	first := b.Len()
	for have := uint32(0); have < n; {
		err := ErrMax
		got := 0
		if b.Len()-first < max {
			got, err = q.Take(b, 1)
		}
		if err != nil || got == 0 {
			q.Return(b, first)
			return 0, err
		}
		c := &b.chains[b.Len()-1]
		if c.WriteLen == 0 {
			e := &Error{Reason: ReasonNotWritable, ID: c.ID}
			q.Return(b, first)
			return 0, q.fail(e)
		}
		have += min(c.WriteLen, n-have)
	}
	return b.Len() - first, nil
}

// Return gives back the chains of b from number keep on, as if they had not been taken.
// They must be the last ones that were taken from q.
func (q *Split) Return(b *Batch, keep int) {
	for i := keep; i < len(b.chains); i++ {
		c := &b.chains[i]
		if c.replayed {
			q.replayed--
			continue
		}
		q.next--
		q.open--
		if q.inflight != nil {
			q.inflight.giveBack(c.ID)
		}
	}
	b.cut(keep)
}

// Available returns how many chains are known to be available. [Split.Take] and
// [Split.ArmFor] read how many there are.
func (q *Split) Available() int { return int(q.seen-q.next) + len(q.replay) - q.replayed }

// AvailableUpTo returns how many chains are available, at most n. Unlike [Split.Available]
// it reads the ring if fewer are known.
func (q *Split) AvailableUpTo(n int) (int, error) {
	if q.Available() < n {
		if _, err := q.look(); err != nil {
			return 0, err
		}
	}
	return min(q.Available(), n), nil
}

// look reads how far the driver is, and reports whether there are more chains.
func (q *Split) look() (bool, error) {
	if q.broken != nil {
		return false, q.broken
	}
	idx := q.avail.load(1)
	ahead := idx - q.next
	if uint32(ahead) > q.size || uint32(ahead)+uint32(q.open) > q.size {
		return false, q.fail(&Error{Reason: ReasonAvailIndex, ID: idx})
	}
	q.seen = idx
	return ahead != 0, nil
}

// load reads descriptor i once.
func (q *Split) load(i uint32) desc {
	d := &q.desc[i]
	return splitDesc(atomic.LoadUint64(&d[0]), atomic.LoadUint64(&d[1]))
}

// chain reads and checks the chain at head and appends it to b.
func (q *Split) chain(b *Batch, head uint16) error {
	if uint32(head) >= q.size {
		return q.fail(&Error{Reason: ReasonHead, ID: head})
	}
	c := b.open(head)
	d := q.load(uint32(head))
	for n := uint32(1); ; n++ {
		reason, err := q.one(b, c, d)
		if reason == ReasonNone {
			if d.flags&descNext == 0 {
				return nil
			}
			if uint32(d.next) >= q.size {
				reason = ReasonNext
			} else if n == q.size {
				reason = ReasonLoop
			}
		}
		if reason != ReasonNone {
			b.cut(len(b.chains) - 1)
			return q.fail(broke(reason, head, d, err))
		}
		d = q.load(uint32(d.next))
	}
}

// one appends a descriptor, or the table that it refers to, to the chain c.
func (q *Split) one(b *Batch, c *Chain, d desc) (Reason, error) {
	if d.flags&descIndirect == 0 {
		return q.add(b, c, d), nil
	}
	table, reason, err := q.indirectTable(d)
	if reason != ReasonNone {
		return reason, err
	}
	count := len(table) / descBytes
	for i, n := 0, 1; ; n++ {
		e := splitDesc(rawDesc(table, i))
		if e.flags&descIndirect != 0 {
			return ReasonIndirectNested, nil
		}
		if reason := q.add(b, c, e); reason != ReasonNone {
			return reason, nil
		}
		if e.flags&descNext == 0 {
			return ReasonNone, nil
		}
		if int(e.next) >= count {
			return ReasonNext, nil
		}
		if n == count {
			return ReasonLoop, nil
		}
		i = int(e.next)
	}
}

// Publish gives all chains of b to the driver, in order and with one store, empties b, and
// reports whether the driver wants to be notified. With InOrder, batches must be published in
// the order in which they were taken.
func (q *Split) Publish(b *Batch) (notify bool) {
	n := uint16(len(b.chains))
	if n == 0 {
		return false
	}
	old := q.usedIdx
	if q.logging.Log != nil {
		q.logData(b)
	}
	entries := q.putUsed(b)
	if q.inflight != nil {
		q.inflight.link(b.chains)
	}
	q.usedIdx += n
	q.open -= min(q.open, n)
	q.store()
	if q.inflight != nil {
		q.inflight.publish(b.chains, q.usedIdx)
	}
	for i := range entries {
		q.logRing(4+8*uint64(uint32(old+i)&q.mask), 8)
	}
	b.reset()
	return q.wants(old)
}

// putUsed writes the used entries of b and returns how many there are. If the driver
// relies on order and has no lengths to read, the last one stands for all.
func (q *Split) putUsed(b *Batch) uint16 {
	chains := b.chains
	if q.inOrder && !writable(chains) {
		chains = chains[len(chains)-1:]
	}
	for i := range chains {
		e := q.used[1+2*(uint32(q.usedIdx+uint16(i))&q.mask):][:2]
		e[0], e[1] = uint32(chains[i].ID), chains[i].written()
	}
	return uint16(len(chains))
}

// writable reports whether the device was to write to any of the chains.
func writable(chains []Chain) bool {
	for i := range chains {
		if chains[i].WriteLen != 0 {
			return true
		}
	}
	return false
}

// store writes used.flags and used.idx, after everything written before and before
// everything loaded after: Go's atomics are sequentially consistent. It is a swap since
// the race detector makes a mere release of a store.
func (q *Split) store() {
	atomic.SwapUint32(&q.used[0], uint32(q.flags)|uint32(q.usedIdx)<<16)
	q.logRing(0, 4)
}

// wants reports whether the driver asked to be notified of the chains published since
// used.idx was old.
func (q *Split) wants(old uint16) bool {
	first := !q.signalled
	q.signalled = true
	if !q.eventIdx {
		return q.avail.load(0)&availNoInterrupt == 0
	}
	return first || needEvent(q.avail.load(2+q.size), q.usedIdx, old)
}

// Arm asks for a kick at the next chain and reports whether there is one already; then
// the caller goes on instead of waiting.
func (q *Split) Arm() (more bool, err error) { return q.ArmFor(1) }

// ArmFor asks for a kick once n chains are available, at least 1, and reports whether they
// are. Without EventIdx the driver kicks at each.
func (q *Split) ArmFor(n int) (more bool, err error) {
	if q.broken != nil {
		return false, q.broken
	}
	n = max(1, min(n, int(q.size)))
	q.flags &^= usedNoNotify
	if q.eventIdx {
		q.event.put(q.next + uint16(n) - 1)
	}
	q.store() // also orders avail_event before the look
	if q.eventIdx {
		q.logRing(4+8*uint64(q.size), 2)
	}
	if _, err := q.look(); err != nil {
		return false, err
	}
	return q.Available() >= n, nil
}

// Disarm asks for no kicks. The driver may kick all the same.
func (q *Split) Disarm() {
	if !q.eventIdx && q.flags&usedNoNotify == 0 {
		q.flags |= usedNoNotify
		q.store()
	}
}

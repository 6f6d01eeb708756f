// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "sync/atomic"

// PackedRings is the memory of a packed ring. Each part may be longer than the ring. It
// stays mapped as long as the queue is used.
type PackedRings struct {
	Desc   []byte // 16 bytes for each descriptor, aligned to 16
	Driver []byte // the 4 bytes of the driver's event suppression, aligned to 4
	Device []byte // the 4 bytes of the device's
}

// position is a place in a packed ring: a slot, and the wrap counter, which changes each
// time that the slots start again.
type position struct {
	slot uint16
	wrap bool
}

// positionOf decodes 15 bits of a slot and the wrap counter above them.
func positionOf(v uint16) position { return position{v & 0x7fff, v&0x8000 != 0} }

// encode is the inverse of positionOf.
func (p position) encode() uint16 {
	if p.wrap {
		return p.slot | 0x8000
	}
	return p.slot
}

// move returns the position n slots on, -size <= n <= size.
func (p position) move(n int, size uint32) position {
	to := int(p.slot) + n
	switch {
	case to >= int(size):
		return position{uint16(to - int(size)), !p.wrap}
	case to < 0:
		return position{uint16(to + int(size)), !p.wrap}
	}
	return position{uint16(to), p.wrap}
}

// sub returns the distance from o to p, which is negative or over the size if p is behind.
func (p position) sub(o position, size uint32) int {
	d := int(p.slot) - int(o.slot)
	if p.wrap != o.wrap {
		d += int(size)
	}
	return d
}

// available reports whether flags, as found at p, say that the driver made a descriptor
// available.
func (p position) available(flags uint16) bool {
	return flags&descAvail != 0 == p.wrap && flags&descUsed != 0 != p.wrap
}

// usedFlags are the flags of a used descriptor at p.
func (p position) usedFlags() uint64 {
	if p.wrap {
		return (descAvail | descUsed) << 48
	}
	return 0
}

// Packed is the device's side of a packed virtqueue (virtio 1.2, 2.8). It belongs to one
// goroutine. Its methods are those of [Split].
type Packed struct {
	queue
	desc   [][2]uint64
	driver []uint32 // its event suppression: offset and wrap, then flags
	device []uint32 // ours

	next     position // of the next chain to take
	used     position // of the next chain to publish
	open     int      // slots of chains taken, or to be replayed, that were not published
	raw      [][2]uint64
	inflight *packedInflight
	replay   []replayChain
	replayed int // how many of them were taken
}

// NewPacked attaches to a packed ring. The low half of Base is the position in the ring of
// the next chain to take, the high half that of the next one to publish: 15 bits and the
// wrap counter each. A new ring has 0x80008000. If the high half is 0 it is the same as the
// low one: DPDK sends only that. With an inflight region that is not new Base is not used:
// chains that a predecessor left are taken first.
//
// With EventIdx the first [Packed.Publish] reports that the driver wants to be notified in
// any case, since a predecessor may have died before it did so. A program that takes over
// from one notifies the driver at once.
func NewPacked(c Config, r PackedRings) (*Packed, error) {
	common, err := newQueue(&c)
	if err != nil {
		return nil, err
	}
	q := &Packed{queue: common}
	var ok [3]bool
	q.desc, ok[0] = table(r.Desc, c.Size)
	q.driver, ok[1] = words(r.Driver, 4)
	q.device, ok[2] = words(r.Device, 4)
	if ok != [3]bool{true, true, true} {
		return nil, &Error{Reason: ReasonRing}
	}
	q.next, q.used = positionOf(uint16(c.Base)), positionOf(uint16(c.Base>>16))
	if c.Base>>16 == 0 {
		q.used = q.next
	}
	ahead := q.next.sub(q.used, q.size)
	if uint32(q.next.slot) >= q.size || uint32(q.used.slot) >= q.size || ahead < 0 || ahead > c.Size {
		return nil, &Error{Reason: ReasonBase, ID: q.next.encode()}
	}
	if c.Inflight != nil {
		if err := q.attachInflight(c.Inflight); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// attachInflight begins to use an inflight region, and moves to where it says that a
// predecessor was.
func (q *Packed) attachInflight(mem []byte) error {
	f, used, old, err := attachPackedInflight(mem, q.size, q.used, func(slot uint16) uint16 {
		return uint16(atomic.LoadUint64(&q.desc[slot][1]) >> 48)
	})
	if err != nil {
		return err
	}
	q.inflight, q.replay, q.used = f, old, used
	q.raw = make([][2]uint64, 0, q.size)
	for _, c := range old {
		q.open += len(c.descs)
	}
	if q.open > int(q.size) {
		return &Error{Reason: ReasonInflight}
	}
	if !f.fresh {
		q.next = used.move(q.open, q.size)
	}
	return nil
}

// Base returns the positions of the first chain that was not published and of the next one
// to publish, as NewPacked takes them: the answer to GET_VRING_BASE.
func (q *Packed) Base() uint32 {
	return uint32(q.next.move(-q.open, q.size).encode()) | uint32(q.used.encode())<<16
}

// Take does what [Split.Take] does.
func (q *Packed) Take(b *Batch, max int) (int, error) {
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
		d, ok := q.load(q.next)
		if !ok {
			return n, nil
		}
		if err := q.chain(b, d); err != nil {
			return n, err
		}
	}
	return n, nil
}

// load reads the descriptor at p, and reports whether it is available.
func (q *Packed) load(p position) (desc, bool) {
	w := &q.desc[p.slot]
	rest := atomic.LoadUint64(&w[1])
	if !p.available(uint16(rest >> 48)) {
		return desc{}, false
	}
	return packedDesc(atomic.LoadUint64(&w[0]), rest), true
}

// chain reads and checks the chain that begins with d at q.next, appends it to b and takes
// it.
func (q *Packed) chain(b *Batch, d desc) error {
	c := b.open(0)
	q.raw = q.raw[:0]
	for n := 1; ; n++ {
		reason, err := q.one(b, c, d)
		if q.open+n > int(q.size) {
			reason = ReasonAvailIndex
		} else if reason == ReasonNone && d.flags&descNext != 0 && n == int(q.size) {
			reason = ReasonLoop
		}
		if reason != ReasonNone {
			b.cut(len(b.chains) - 1)
			return q.fail(broke(reason, d.next, d, err))
		}
		if q.inflight != nil {
			q.raw = append(q.raw, [2]uint64{d.addr, d.rest()})
		}
		if d.flags&descNext == 0 {
			c.ID, c.slots = d.next, uint16(n)
			break
		}
		w := &q.desc[q.next.move(n, q.size).slot]
		rest := atomic.LoadUint64(&w[1])
		d = packedDesc(atomic.LoadUint64(&w[0]), rest)
	}
	if q.inflight != nil {
		c.entry = q.inflight.take(q.raw)
	}
	q.next = q.next.move(int(c.slots), q.size)
	q.open += int(c.slots)
	return nil
}

// rest encodes all but the address.
func (d desc) rest() uint64 { return uint64(d.len) | uint64(d.next)<<32 | uint64(d.flags)<<48 }

// one appends a descriptor, or the table that it refers to, to the chain c.
func (q *Packed) one(b *Batch, c *Chain, d desc) (Reason, error) {
	if d.flags&descIndirect == 0 {
		return q.add(b, c, d), nil
	}
	table, reason, err := q.indirectTable(d)
	if reason != ReasonNone {
		return reason, err
	}
	for i := range len(table) / descBytes {
		e := packedDesc(rawDesc(table, i))
		if e.flags&descIndirect != 0 {
			return ReasonIndirectNested, nil
		}
		if reason := q.add(b, c, e); reason != ReasonNone {
			return reason, nil
		}
	}
	return ReasonNone, nil
}

// TakeFor does what [Split.TakeFor] does.
func (q *Packed) TakeFor(b *Batch, n uint32, max int) (int, error) {
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

// Return does what [Split.Return] does.
func (q *Packed) Return(b *Batch, keep int) {
	for i := len(b.chains) - 1; i >= keep; i-- {
		c := &b.chains[i]
		if c.replayed {
			q.replayed--
			continue
		}
		q.next = q.next.move(-int(c.slots), q.size)
		q.open -= int(c.slots)
		if q.inflight != nil {
			q.inflight.giveBack(c.entry)
		}
	}
	b.cut(keep)
}

// Available returns how many descriptors are available; a chain has at least one. Unlike
// that of [Split] it reads the ring.
func (q *Packed) Available() int { return q.availableUpTo(int(q.size)) }

// AvailableUpTo does what [Split.AvailableUpTo] does, for descriptors.
func (q *Packed) AvailableUpTo(n int) (int, error) {
	if q.broken != nil {
		return 0, q.broken
	}
	return q.availableUpTo(n), nil
}

// availableUpTo counts available descriptors, and stops at n.
func (q *Packed) availableUpTo(n int) int {
	have := 0
	for _, c := range q.replay[q.replayed:] {
		have += len(c.descs)
	}
	for ahead := 0; have < n && ahead < int(q.size); ahead++ {
		if _, ok := q.load(q.next.move(ahead, q.size)); !ok {
			break
		}
		have++
	}
	return min(have, n)
}

// Publish does what [Split.Publish] does.
func (q *Packed) Publish(b *Batch) (notify bool) {
	if len(b.chains) == 0 {
		return false
	}
	if q.logging.Log != nil {
		q.logData(b)
	}
	old := q.used
	first := q.putUsed(b)
	if q.inflight != nil {
		q.inflight.link(b.chains, q.used)
	}
	atomic.SwapUint64(&q.desc[old.slot][1], first)
	if q.inflight != nil {
		q.inflight.publish(b.chains)
	}
	q.logUsed(old, b.chains)
	b.reset()
	return q.wants(old.slot)
}

// putUsed writes the used descriptors of b but for the first one, whose second word it
// returns: writing that one publishes all. It moves on by the slots of all. If the driver
// relies on order and has no lengths to read, one descriptor with the id of the last chain
// stands for all.
func (q *Packed) putUsed(b *Batch) (first uint64) {
	alone := q.inOrder && !writable(b.chains)
	start := q.used
	for i := range b.chains {
		c := &b.chains[i]
		n := c.written()
		w := uint64(n) | uint64(c.ID)<<32 | q.used.usedFlags()
		if n > 0 {
			w |= descWrite << 48
		}
		switch {
		case alone:
			first = uint64(c.ID)<<32 | start.usedFlags()
		case i == 0:
			first = w
		default:
			q.desc[q.used.slot][1] = w
		}
		q.used = q.used.move(int(c.slots), q.size)
		q.open -= int(c.slots)
	}
	return first
}

// logUsed records the used descriptors of chains that were published from start on.
func (q *Packed) logUsed(start position, chains []Chain) {
	if q.logging.Log == nil || !q.logging.Ring {
		return
	}
	for i := range chains {
		q.logRing(descBytes*uint64(start.slot), descBytes)
		start = start.move(int(chains[i].slots), q.size)
	}
}

// wants reports whether the driver asked to be notified of the slots published since old.
func (q *Packed) wants(old uint16) bool {
	first := !q.signalled
	q.signalled = true
	w := atomic.LoadUint32(&q.driver[0])
	switch flags := w >> 16 & 3; {
	case flags == eventDisable:
		return false
	case flags == eventEnable || first || !q.eventIdx:
		return true
	}
	return crossed(positionOf(uint16(w)), q.used, old, uint16(q.size))
}

// crossed reports whether moving from slot old to now, by at least one, passed event.
func crossed(event, now position, old, size uint16) bool {
	if now.slot <= old {
		old -= size
	}
	if event.wrap != now.wrap {
		event.slot -= size
	}
	return needEvent(event.slot, now.slot, old)
}

// Arm does what [Split.Arm] does.
func (q *Packed) Arm() (more bool, err error) { return q.ArmFor(1) }

// ArmFor does what [Split.ArmFor] does, for n descriptors.
func (q *Packed) ArmFor(n int) (more bool, err error) {
	if q.broken != nil {
		return false, q.broken
	}
	n = max(1, min(n, int(q.size)))
	w := uint32(eventEnable << 16)
	if q.eventIdx {
		w = uint32(q.next.move(n-1, q.size).encode()) | eventDesc<<16
	}
	q.storeEvent(w)
	return q.availableUpTo(n) == n, nil
}

// Disarm asks for no kicks. The driver may kick all the same.
func (q *Packed) Disarm() {
	if w := uint32(eventDisable << 16); atomic.LoadUint32(&q.device[0]) != w {
		q.storeEvent(w)
	}
}

// storeEvent writes our event suppression before everything loaded after; see [Split.store].
func (q *Packed) storeEvent(w uint32) {
	atomic.SwapUint32(&q.device[0], w)
	if q.logging.Log != nil && q.logging.Ring {
		q.logging.Log.Mark(q.logging.EventAddr, 4)
	}
}

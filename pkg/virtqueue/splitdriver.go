// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"encoding/binary"
	"sync/atomic"
)

// Buffer is a part of a chain as the driver adds it.
type Buffer struct {
	Addr  uint64 // guest address
	Len   uint32
	Write bool // the device writes to it
}

// DriverConfig configures a driver of either format.
type DriverConfig struct {
	// Size is the number of descriptors.
	Size int
	// EventIdx and InOrder say that the device offered the feature.
	EventIdx, InOrder bool
}

// SplitOffsets returns where the parts of a split ring stand if they follow each other, and
// the bytes that all take: the layout of Linux's vring_init with an alignment of 64. It has
// room for event indices.
func SplitOffsets(size int) (avail, used, total int) {
	avail = descBytes * size
	used = (avail + 6 + 2*size + 63) &^ 63
	return avail, used, used + 6 + 8*size
}

// SplitRingsIn returns the parts of a split ring at the start of mem, as [SplitOffsets]
// says.
func SplitRingsIn(mem []byte, size int) SplitRings {
	avail, used, total := SplitOffsets(size)
	return SplitRings{Desc: mem[:avail:avail], Avail: mem[avail:used:used], Used: mem[used:total:total]}
}

// SplitDriver is the driver's side of a split virtqueue, for tests and for front ends that
// trust their back end: it checks only what it needs to stay within its own memory. It
// belongs to one goroutine.
type SplitDriver struct {
	cfg   DriverConfig
	mask  uint32
	desc  [][2]uint64
	avail []uint32 // flags and idx, then two entries in each word; used_event
	used  []uint32
	event halves // of used, for avail_event

	free  []uint16 // descriptors
	chain [][]uint16
	order []uint16 // heads in the order of Add; with InOrder
	idx   uint16   // avail.idx with what was added
	shown uint16   // avail.idx
	seen  uint16   // index of the next used entry
	skip  uint16   // entries at seen that a later one stands for
	last  uint16   // head of that one
	len   uint32   // and its length
}

// NewSplitDriver begins a ring: it clears r, which is aligned to 16.
func NewSplitDriver(c DriverConfig, r SplitRings) (*SplitDriver, error) {
	n := c.Size
	if n < 1 || n > MaxSize || n&(n-1) != 0 {
		return nil, &Error{Reason: ReasonSize, Len: uint32(n)}
	}
	d := &SplitDriver{cfg: c, mask: uint32(n - 1), chain: make([][]uint16, n)}
	var ok [4]bool
	d.desc, ok[0] = table(r.Desc, n)
	d.avail, ok[1] = words(r.Avail, 4)
	d.used, ok[2] = words(r.Used, 4)
	d.event, ok[3] = newHalves(r.Used, len(r.Used))
	if ok != [4]bool{true, true, true, true} || len(r.Avail) < 8+2*n || len(r.Used) < 6+8*n {
		return nil, &Error{Reason: ReasonRing}
	}
	clear(r.Desc)
	clear(r.Avail)
	clear(r.Used)
	for i := n - 1; i >= 0; i-- {
		d.free = append(d.free, uint16(i))
	}
	return d, nil
}

// Add adds a chain to the ring and returns its head. It fails if there are too few
// descriptors. The device sees it after Publish.
func (d *SplitDriver) Add(bufs ...Buffer) (head uint16, ok bool) {
	if len(bufs) == 0 || len(d.free) < len(bufs) {
		return 0, false
	}
	ids := d.chain[d.free[len(d.free)-1]][:0]
	for range bufs {
		ids = append(ids, d.free[len(d.free)-1])
		d.free = d.free[:len(d.free)-1]
	}
	for i, b := range bufs {
		var next uint16
		if i+1 < len(bufs) {
			next = ids[i+1]
		}
		addr, rest := b.words(i+1 < len(bufs), next)
		d.set(ids[i], addr, rest)
	}
	d.offer(ids)
	return ids[0], true
}

// AddIndirect does the same with one descriptor of the ring: it writes the others to table,
// which has the guest address addr.
func (d *SplitDriver) AddIndirect(table []byte, addr uint64, bufs ...Buffer) (head uint16, ok bool) {
	if len(bufs) == 0 || len(d.free) < 1 || len(table) < descBytes*len(bufs) {
		return 0, false
	}
	for i, b := range bufs {
		a, rest := b.words(i+1 < len(bufs), uint16(i+1))
		PutDesc(table, i, a, rest)
	}
	id := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	d.set(id, addr, uint64(descBytes*len(bufs))|descIndirect<<32)
	d.offer(append(d.chain[id][:0], id))
	return id, true
}

// words encodes a descriptor of a split ring.
func (b Buffer) words(more bool, next uint16) (addr, rest uint64) {
	flags := uint64(0)
	if more {
		flags |= descNext
	}
	if b.Write {
		flags |= descWrite
	}
	return b.Addr, uint64(b.Len) | flags<<32 | uint64(next)<<48
}

// PutDesc writes the two words of descriptor i to table, which may be a ring or an indirect
// table. Tests use it to write what no driver would.
func PutDesc(table []byte, i int, addr, rest uint64) {
	binary.LittleEndian.PutUint64(table[i*descBytes:], addr)
	binary.LittleEndian.PutUint64(table[i*descBytes+8:], rest)
}

func (d *SplitDriver) set(i uint16, addr, rest uint64) {
	atomic.StoreUint64(&d.desc[i][0], addr)
	atomic.StoreUint64(&d.desc[i][1], rest)
}

// offer puts the chain into the available ring.
func (d *SplitDriver) offer(ids []uint16) {
	d.chain[ids[0]] = ids
	if d.cfg.InOrder {
		d.order = append(d.order, ids[0])
	}
	d.putHalf(2+uint32(d.idx)&d.mask, ids[0])
	d.idx++
}

// putHalf writes 16-bit word i of the available ring.
func (d *SplitDriver) putHalf(i uint32, v uint16) {
	w, shift := &d.avail[i/2], i%2*16
	atomic.StoreUint32(w, atomic.LoadUint32(w)&^(0xffff<<shift)|uint32(v)<<shift)
}

// Publish shows the device all chains that were added, and reports whether it wants a kick.
func (d *SplitDriver) Publish() (kick bool) {
	old := d.shown
	d.shown = d.idx
	d.putHalf(1, d.shown)
	if d.cfg.EventIdx {
		return d.shown != old && needEvent(d.event.load(2+4*uint32(d.cfg.Size)), d.shown, old)
	}
	return d.shown != old && atomic.LoadUint32(&d.used[0])&usedNoNotify == 0
}

// Poll takes the next chain that the device is done with: its head, and how many bytes the
// device wrote. ok is false if there is none. A head that was not added is returned, too.
func (d *SplitDriver) Poll() (head uint16, written uint32, ok bool) {
	if d.seen == uint16(atomic.LoadUint32(&d.used[0])>>16) {
		return 0, 0, false
	}
	if !d.cfg.InOrder || len(d.order) == 0 {
		head, written = d.entry()
		d.release(head)
		return head, written, true
	}
	if d.skip == 0 {
		d.last, d.len = d.entry()
		for d.skip = 1; int(d.skip) < len(d.order) && d.order[d.skip-1] != d.last; d.skip++ {
		}
	}
	head = d.order[0]
	d.order = d.order[1:]
	if d.skip--; d.skip == 0 {
		written = d.len
	}
	d.release(head)
	return head, written, true
}

func (d *SplitDriver) entry() (id uint16, written uint32) {
	e := d.used[1+2*(uint32(d.seen)&d.mask):][:2]
	return uint16(atomic.LoadUint32(&e[0])), atomic.LoadUint32(&e[1])
}

// release gives the descriptors of a chain back.
func (d *SplitDriver) release(head uint16) {
	d.seen++
	if int(head) < len(d.chain) {
		d.free = append(d.free, d.chain[head]...)
		d.chain[head] = d.chain[head][:0]
	}
}

// Arm asks for a notification at the next chain and reports whether there is one already.
func (d *SplitDriver) Arm() (more bool) {
	d.putHalf(0, 0)
	if d.cfg.EventIdx {
		d.putHalf(2+uint32(d.cfg.Size), d.seen)
	}
	return d.seen != uint16(atomic.LoadUint32(&d.used[0])>>16)
}

// Disarm asks for no notifications. With EventIdx it does nothing.
func (d *SplitDriver) Disarm() {
	if !d.cfg.EventIdx {
		d.putHalf(0, availNoInterrupt)
	}
}

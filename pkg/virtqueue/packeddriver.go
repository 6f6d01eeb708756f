// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "sync/atomic"

// PackedOffsets returns where the parts of a packed ring stand if they follow each other,
// and the bytes that all take.
func PackedOffsets(size int) (driver, device, total int) {
	driver = descBytes * size
	return driver, driver + 4, driver + 8
}

// PackedRingsIn returns the parts of a packed ring at the start of mem, as [PackedOffsets]
// says.
func PackedRingsIn(mem []byte, size int) PackedRings {
	driver, device, total := PackedOffsets(size)
	return PackedRings{Desc: mem[:driver:driver], Driver: mem[driver:device:device], Device: mem[device:total:total]}
}

// PackedDriver is the driver's side of a packed virtqueue, as [SplitDriver] is that of a
// split one.
type PackedDriver struct {
	cfg    DriverConfig
	size   uint32
	desc   [][2]uint64
	driver []uint32
	device []uint32

	next  position // of the next chain
	first position // of the first chain that was not published
	held  uint64   // its first descriptor's second word
	added int      // slots from first on
	used  position // of the next used descriptor
	room  int      // slots
	ids   []uint16 // that are free
	slots []uint16 // of each id
	order []uint16 // ids in the order of Add; with InOrder
	skip  int      // chains for which one used descriptor stands
	len   uint32   // the length in it
}

// NewPackedDriver begins a ring: it clears r.
func NewPackedDriver(c DriverConfig, r PackedRings) (*PackedDriver, error) {
	if c.Size < 1 || c.Size > MaxSize {
		return nil, &Error{Reason: ReasonSize, Len: uint32(c.Size)}
	}
	start := position{wrap: true}
	d := &PackedDriver{cfg: c, size: uint32(c.Size), room: c.Size, slots: make([]uint16, c.Size),
		next: start, first: start, used: start}
	var ok [3]bool
	d.desc, ok[0] = table(r.Desc, c.Size)
	d.driver, ok[1] = words(r.Driver, 4)
	d.device, ok[2] = words(r.Device, 4)
	if ok != [3]bool{true, true, true} {
		return nil, &Error{Reason: ReasonRing}
	}
	clear(r.Desc)
	clear(r.Driver)
	clear(r.Device)
	for i := c.Size - 1; i >= 0; i-- {
		d.ids = append(d.ids, uint16(i))
	}
	return d, nil
}

// Add adds a chain to the ring and returns its id. It fails if there are too few
// descriptors. The device sees it after Publish.
func (d *PackedDriver) Add(bufs ...Buffer) (id uint16, ok bool) {
	if len(bufs) == 0 || d.room < len(bufs) {
		return 0, false
	}
	id = d.begin(len(bufs))
	head := d.next
	var first uint64
	for i, b := range bufs {
		rest := b.packed(id)
		if i+1 < len(bufs) {
			rest |= descNext << 48
		}
		if w := d.write(b.Addr, rest, i > 0); i == 0 {
			first = w
		}
	}
	d.show(head, first, len(bufs))
	return id, true
}

// AddIndirect does the same with one descriptor of the ring: it writes the others to table,
// which has the guest address addr.
func (d *PackedDriver) AddIndirect(table []byte, addr uint64, bufs ...Buffer) (id uint16, ok bool) {
	if len(bufs) == 0 || d.room < 1 || len(table) < descBytes*len(bufs) {
		return 0, false
	}
	for i, b := range bufs {
		PutDesc(table, i, b.Addr, b.packed(0))
	}
	id = d.begin(1)
	head := d.next
	rest := uint64(descBytes*len(bufs)) | uint64(id)<<32 | descIndirect<<48
	d.show(head, d.write(addr, rest, false), 1)
	return id, true
}

// packed encodes the second word of a descriptor of a packed ring.
func (b Buffer) packed(id uint16) uint64 {
	rest := uint64(b.Len) | uint64(id)<<32
	if b.Write {
		rest |= descWrite << 48
	}
	return rest
}

// begin takes an id for a chain of n slots.
func (d *PackedDriver) begin(n int) (id uint16) {
	id = d.ids[len(d.ids)-1]
	d.ids = d.ids[:len(d.ids)-1]
	d.slots[id] = uint16(n)
	d.room -= n
	if d.cfg.InOrder {
		d.order = append(d.order, id)
	}
	return id
}

// write writes a descriptor at d.next and moves on. The second word, which it returns,
// makes it available, and is written only if show is set.
func (d *PackedDriver) write(addr, rest uint64, show bool) uint64 {
	if d.next.wrap {
		rest |= descAvail << 48
	} else {
		rest |= descUsed << 48
	}
	w := &d.desc[d.next.slot]
	atomic.StoreUint64(&w[0], addr)
	if show {
		atomic.StoreUint64(&w[1], rest)
	}
	d.next = d.next.move(1, d.size)
	return rest
}

// show makes a chain of n slots available. The first one since Publish is held back, and
// with it all that follow.
func (d *PackedDriver) show(head position, rest uint64, n int) {
	if d.added == 0 {
		d.first, d.held = head, rest
	} else {
		atomic.StoreUint64(&d.desc[head.slot][1], rest)
	}
	d.added += n
}

// Publish shows the device all chains that were added, and reports whether it wants a kick.
func (d *PackedDriver) Publish() (kick bool) {
	if d.added == 0 {
		return false
	}
	d.added = 0
	atomic.SwapUint64(&d.desc[d.first.slot][1], d.held)
	w := atomic.LoadUint32(&d.device[0])
	if flags := w >> 16 & 3; flags != eventDesc {
		return flags == eventEnable
	}
	return crossed(positionOf(uint16(w)), d.next, d.first.slot, uint16(d.size))
}

// Poll takes the next chain that the device is done with: its id, and how many bytes the
// device wrote. ok is false if there is none. An id that was not added is returned, too.
func (d *PackedDriver) Poll() (id uint16, written uint32, ok bool) {
	if d.skip == 0 {
		rest := atomic.LoadUint64(&d.desc[d.used.slot][1])
		if rest&((descAvail|descUsed)<<48) != d.used.usedFlags() {
			return 0, 0, false
		}
		id, d.len = uint16(rest>>32), uint32(rest)
		d.skip = 1
		if len(d.order) > 0 {
			for d.skip < len(d.order) && d.order[d.skip-1] != id {
				d.skip++
			}
		}
	}
	if len(d.order) > 0 {
		id = d.order[0]
		d.order = d.order[1:]
	}
	if d.skip--; d.skip == 0 {
		written = d.len
	}
	n := 1
	if int(id) < len(d.slots) && d.slots[id] > 0 {
		n = int(d.slots[id])
		d.slots[id] = 0
		d.room += n
		d.ids = append(d.ids, id)
	}
	d.used = d.used.move(n, d.size)
	return id, written, true
}

// Arm asks for a notification at the next chain and reports whether there is one already.
func (d *PackedDriver) Arm() (more bool) {
	w := uint32(eventEnable << 16)
	if d.cfg.EventIdx {
		w = uint32(d.used.encode()) | eventDesc<<16
	}
	atomic.SwapUint32(&d.driver[0], w)
	rest := atomic.LoadUint64(&d.desc[d.used.slot][1])
	return d.skip > 0 || rest&((descAvail|descUsed)<<48) == d.used.usedFlags()
}

// Disarm asks for no notifications.
func (d *PackedDriver) Disarm() { atomic.SwapUint32(&d.driver[0], eventDisable<<16) }

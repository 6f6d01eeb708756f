// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// driver is the driver's side of a ring of either format.
type driver interface {
	Add(bufs ...virtqueue.Buffer) (id uint16, ok bool)
	AddIndirect(table []byte, addr uint64, bufs ...virtqueue.Buffer) (id uint16, ok bool)
	Publish() (kick bool)
	Poll() (id uint16, written uint32, ok bool)
	Arm() (more bool)
	Disarm()
}

// ring is a ring with the chains that the back end has. It belongs to the pump of its pair.
type ring struct {
	index  uint32
	mem    *memory
	rules  *rules
	size   int
	at     int // offset of the ring
	drv    driver
	kick   int // eventfds
	call   int
	chains []chain // by id
	order  []uint16
	free   int // descriptors
	// used is the position behind the last chain that was polled: the slot of a packed ring,
	// and its wrap counter in bit 15.
	used  uint16
	dirty []byte // pages that the log must have, nil: nothing is recorded
	// unlogged is the number of chains that may have been used before the log began, and
	// early says that the last one is of these.
	unlogged int
	early    bool
	// stale is the number of chains that a back end may have written to before it died, and
	// spoilt says that the last one is of these.
	stale  int
	spoilt bool
	dead   error // a breach after which the ring cannot be used
	stats  *Stats
	fault  func(format string, args ...any)
}

// chain is a chain that the back end has.
type chain struct {
	slot  int // of buffers, -1: none
	descs int
}

func newRing(m *memory, index, size int) (*ring, error) {
	r := &ring{index: uint32(index), mem: m, size: size, kick: -1, call: -1}
	var err error
	if r.at, err = m.alloc(r.length()); err != nil {
		return nil, err
	}
	for _, fd := range []*int{&r.kick, &r.call} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return nil, errors.Join(fmt.Errorf("vhostfront: eventfd: %w", err), r.close())
		}
	}
	return r, nil
}

func (r *ring) close() error {
	var errs []error
	for _, fd := range []int{r.kick, r.call} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// begin makes the ring empty, in the format that was agreed on.
func (r *ring) begin(rules *rules) (err error) {
	r.rules = rules
	cfg := virtqueue.DriverConfig{Size: r.size, EventIdx: rules.has(featEventIdx), InOrder: rules.has(featInOrder)}
	if rules.has(featPacked) {
		_, _, total := virtqueue.PackedOffsets(r.size)
		r.drv, err = virtqueue.NewPackedDriver(cfg, virtqueue.PackedRingsIn(r.mem.bytes(r.at, total), r.size))
	} else {
		_, _, total := virtqueue.SplitOffsets(r.size)
		r.drv, err = virtqueue.NewSplitDriver(cfg, virtqueue.SplitRingsIn(r.mem.bytes(r.at, total), r.size))
	}
	r.chains = make([]chain, r.size)
	for i := range r.chains {
		r.chains[i].slot = -1
	}
	r.order, r.free, r.dead, r.used, r.stale = nil, r.size, nil, 1<<15, 0
	return err
}

// addr returns the ring's addresses for the back end.
func (r *ring) addr(log bool) vhostuser.VringAddr {
	avail, used, _ := virtqueue.SplitOffsets(r.size)
	if r.rules.has(featPacked) {
		avail, used, _ = virtqueue.PackedOffsets(r.size)
	}
	a := vhostuser.VringAddr{Index: r.index, Descriptor: r.mem.user(r.at), Available: r.mem.user(r.at + avail), Used: r.mem.user(r.at + used)}
	if log {
		a.Flags, a.Log = 1, r.mem.guest(r.at+used)
		if r.rules.has(featPacked) {
			a.Log = r.mem.guest(r.at)
		}
	}
	return a
}

// length returns the bytes of the ring.
func (r *ring) length() int {
	_, _, split := virtqueue.SplitOffsets(r.size)
	_, _, packed := virtqueue.PackedOffsets(r.size)
	return max(split, packed)
}

// base returns the position from which a successor of a back end continues: the used
// index of a split ring, and the position behind all used descriptors of a packed one.
func (r *ring) base() uint32 {
	if r.rules.has(featPacked) {
		used := r.published()
		return uint32(used) | uint32(used)<<16
	}
	_, used, _ := virtqueue.SplitOffsets(r.size)
	return uint32(binary.LittleEndian.Uint16(r.mem.bytes(r.at+used+2, 2)))
}

// add adds a chain for a slot of buffers. With indirect descriptors, and a table, a chain of
// several takes one descriptor.
func (r *ring) add(slot int, bufs []virtqueue.Buffer, table int) bool {
	var id uint16
	var ok bool
	descs := len(bufs)
	if len(bufs) > 1 && r.rules.has(featIndirect) {
		descs = 1
		id, ok = r.drv.AddIndirect(r.mem.bytes(table, 16*len(bufs)), r.mem.guest(table), bufs...)
	} else {
		id, ok = r.drv.Add(bufs...)
	}
	if !ok {
		return false
	}
	r.free -= descs
	r.chains[id] = chain{slot, descs}
	r.order = append(r.order, id)
	return true
}

// publish shows the added chains and kicks if the back end wants that.
func (r *ring) publish() {
	if !r.drv.Publish() {
		return
	}
	r.stats.Kicks++
	notify(r.kick)
}

// notify adds to an eventfd. It is full only if its reader is far behind.
func notify(fd int) { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// poll takes the next chain that the back end is done with, and returns its slot.
func (r *ring) poll() (slot int, written uint32, ok bool) {
	if r.dead != nil {
		return 0, 0, false
	}
	id, written, ok := r.drv.Poll()
	if !ok {
		return 0, 0, false
	}
	if int(id) >= len(r.chains) || r.chains[id].slot < 0 {
		r.fault("ring %d: chain %d was used, which the back end did not have", r.index, id)
		r.dead = fmt.Errorf("vhostfront: ring %d: chain %d was used twice or never added", r.index, id)
		return 0, 0, false
	}
	if r.order[0] != id {
		r.fault("ring %d: chain %d was used before chain %d", r.index, id, r.order[0])
		r.forget(id)
	} else {
		r.order = r.order[1:]
	}
	c := &r.chains[id]
	slot = c.slot
	r.free += c.descs
	if r.early = r.unlogged > 0; r.early {
		r.unlogged--
	}
	if r.spoilt = r.stale > 0; r.spoilt {
		r.stale--
	}
	r.markUsed()
	r.used = r.move(r.used, c.descs)
	c.slot = -1
	return slot, written, true
}

// mark records that the back end wrote n bytes for the chain that was polled last.
func (r *ring) mark(addr uint64, n int) {
	if r.dirty != nil && !r.early {
		mark(r.dirty, addr, n)
	}
}

// markUsed records the part of the ring that the back end must have written for a chain: the used
// index of a split ring, the chain's descriptor of a packed one. With chains in order one
// descriptor may stand for several.
func (r *ring) markUsed() {
	switch _, used, _ := virtqueue.SplitOffsets(r.size); {
	case !r.rules.has(featPacked):
		r.mark(r.mem.guest(r.at+used), 4)
	case !r.rules.has(featInOrder):
		r.mark(r.mem.guest(r.at+16*int(r.used&0x7fff)), 16)
	}
}

// forget removes a chain from the order.
func (r *ring) forget(id uint16) {
	for i, o := range r.order {
		if o == id {
			r.order = append(r.order[:i:i], r.order[i+1:]...)
			return
		}
	}
}

// move returns the position n descriptors behind another one in a packed ring.
func (r *ring) move(used uint16, n int) uint16 {
	slot := int(used&0x7fff) + n
	wrap := used & (1 << 15)
	if slot >= r.size {
		slot -= r.size
		wrap ^= 1 << 15
	}
	return uint16(slot) | wrap
}

// published returns the position behind the chains of a packed ring that are used, polled or
// not. A used descriptor stands for the chains before it if chains are in order.
func (r *ring) published() uint16 {
	used, behind := r.used, r.used
	for _, id := range r.order {
		desc := r.mem.bytes(r.at+16*int(used&0x7fff), 16)
		flags := binary.LittleEndian.Uint16(desc[14:])
		const both = 1<<7 | 1<<15 // available and used
		want := uint16(0)
		if used&(1<<15) != 0 {
			want = both
		}
		if flags&both != want {
			return used
		}
		behind = r.move(behind, r.chains[id].descs)
		if id == binary.LittleEndian.Uint16(desc[12:]) {
			used = behind
		}
	}
	return used
}

// takeCall clears the ring's notification and reports whether there was one.
func (r *ring) takeCall() bool {
	var b [8]byte
	n, err := unix.Read(r.call, b[:])
	return err == nil && n == 8
}

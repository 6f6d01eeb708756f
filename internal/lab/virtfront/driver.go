// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

const (
	rxRing, txRing = 0, 1

	vnetLen = 12 // header of a frame
	// Buffers do not begin with pages, so that some of them cross their ends.
	rxSlots, rxStride = 96, 2200
	txSlots, txStride = 32, 9600
	dataBytes         = rxSlots*rxStride + txSlots*txStride

	tableBytes = 4 * 16 // of an indirect table, at the start of a slot
	unwritten  = 0xa5   // content of buffers that the back end has not written

	revoked = -1 // the slot of a buffer in pages that are not granted any more
)

// ring has the methods that the two formats have in common.
type ring interface {
	Add(bufs ...virtqueue.Buffer) (id uint16, ok bool)
	AddIndirect(table []byte, addr uint64, bufs ...virtqueue.Buffer) (id uint16, ok bool)
	Publish() (kick bool)
	Poll() (id uint16, written uint32, ok bool)
	Arm() (more bool)
}

// driver drives a pair of rings. It belongs to one goroutine.
type driver struct {
	data    area
	rings   [2]ring
	rxUsed  map[uint16]int // slot of each chain
	txUsed  map[uint16]int
	txFree  []int
	frame   []byte // what of a frame has arrived, with its header
	rest    int    // buffers of it that are missing
	empty   uint64 // chains that came back unwritten: what was for them is lost
	broken  error  // the first thing that the back end did wrong
	nBroken uint64 // number of such things
}

func newDriver(m *Memory, features uint64, size int) (*driver, error) {
	d := &driver{data: m.areas[1], rxUsed: map[uint16]int{}, txUsed: map[uint16]int{}}
	cfg := virtqueue.DriverConfig{Size: size, EventIdx: features&FeatureEventIdx != 0}
	for i := range d.rings {
		mem := m.areas[0].mem[ringAt(features, size, i):]
		var err error
		if features&FeaturePacked != 0 {
			d.rings[i], err = virtqueue.NewPackedDriver(cfg, virtqueue.PackedRingsIn(mem, size))
		} else {
			d.rings[i], err = virtqueue.NewSplitDriver(cfg, virtqueue.SplitRingsIn(mem, size))
		}
		if err != nil {
			return nil, err
		}
	}
	for i := range txSlots {
		d.txFree = append(d.txFree, i)
	}
	for i := range min(rxSlots, size) {
		d.post(i)
	}
	d.rings[rxRing].Publish()
	return d, nil
}

// wrong counts something that the back end did wrong.
func (d *driver) wrong(err error) {
	if d.nBroken++; d.broken == nil {
		d.broken = err
	}
}

func (d *driver) rxSlot(i int) []byte { return d.data.mem[i*rxStride:][:rxStride] }

func (d *driver) txSlot(i int) (mem []byte, addr uint64) {
	at := rxSlots*rxStride + i*txStride
	return d.data.mem[at:][:txStride], d.data.addr + uint64(at)
}

// post gives the back end a buffer to write to.
func (d *driver) post(slot int) {
	mem := d.rxSlot(slot)
	for i := range mem {
		mem[i] = unwritten
	}
	id, ok := d.rings[rxRing].Add(virtqueue.Buffer{Addr: d.data.addr + uint64(slot*rxStride), Len: rxStride, Write: true})
	if !ok {
		d.wrong(errors.New("the ring for reception is full"))
		return
	}
	d.rxUsed[id] = slot
}

// receive calls got for each frame that has arrived, and gives the buffers back.
func (d *driver) receive(got func(frame []byte)) (n int) {
	for {
		id, written, ok := d.rings[rxRing].Poll()
		if !ok {
			return n
		}
		n++
		slot, known := d.rxUsed[id]
		if !known || written > rxStride {
			d.wrong(fmt.Errorf("rx chain %d with %d bytes", id, written))
			continue
		}
		delete(d.rxUsed, id)
		if written == 0 && d.rest == 0 {
			d.empty++
			if slot != revoked {
				d.post(slot)
			}
			continue
		}
		if slot == revoked {
			d.wrong(fmt.Errorf("%d bytes are in a buffer that was revoked", written))
			continue
		}
		mem := d.rxSlot(slot)
		for i, b := range mem[written:min(int(written)+64, rxStride)] {
			if b != unwritten {
				d.wrong(fmt.Errorf("rx chain %d is written %d bytes behind its end", id, i))
				break
			}
		}
		d.collect(mem[:written], got)
		d.post(slot)
	}
}

// collect puts the buffers of a frame together.
func (d *driver) collect(mem []byte, got func([]byte)) {
	if d.rest == 0 {
		if len(mem) < vnetLen {
			d.wrong(fmt.Errorf("an rx chain of %d bytes has no header", len(mem)))
			return
		}
		d.frame, d.rest = d.frame[:0], int(binary.LittleEndian.Uint16(mem[10:]))
		if d.rest == 0 {
			d.wrong(errors.New("num_buffers is 0"))
			d.rest = 1
		}
	}
	d.frame = append(d.frame, mem...)
	if d.rest--; d.rest == 0 {
		got(d.frame[vnetLen:])
	}
}

// room reports whether another frame can be sent.
func (d *driver) room() bool { return len(d.txFree) > 0 }

// send sends frame seq, which has n bytes and which fill writes, in chains whose shape
// depends on seq.
func (d *driver) send(seq uint64, n int, fill func([]byte)) {
	slot := d.txFree[len(d.txFree)-1]
	mem, base := d.txSlot(slot)
	at := tableBytes + int(seq*37%256)
	addr := base + uint64(at)
	clear(mem[at:][:vnetLen])
	fill(mem[at+vnetLen:][:n])
	all := uint32(vnetLen + n)
	var id uint16
	var ok bool
	tx := d.rings[txRing]
	switch seq % 4 {
	case 0:
		id, ok = tx.Add(virtqueue.Buffer{Addr: addr, Len: all})
	case 1:
		id, ok = tx.Add(virtqueue.Buffer{Addr: addr, Len: vnetLen}, virtqueue.Buffer{Addr: addr + vnetLen, Len: all - vnetLen})
	case 2:
		id, ok = tx.AddIndirect(mem[:tableBytes], base, cut(addr, all, vnetLen, 14)...)
	case 3:
		id, ok = tx.Add(cut(addr, all, 5, 17)...)
	}
	if !ok {
		d.wrong(errors.New("the ring for sending is full"))
		return
	}
	d.txFree = d.txFree[:len(d.txFree)-1]
	d.txUsed[id] = slot
}

// cut cuts n bytes at addr into parts of a, of b and of the other bytes.
func cut(addr uint64, n, a, b uint32) []virtqueue.Buffer {
	return []virtqueue.Buffer{{Addr: addr, Len: a}, {Addr: addr + uint64(a), Len: b}, {Addr: addr + uint64(a+b), Len: n - a - b}}
}

// reap takes back the chains that were sent.
func (d *driver) reap() (n int) {
	for {
		id, _, ok := d.rings[txRing].Poll()
		if !ok {
			return n
		}
		n++
		slot, known := d.txUsed[id]
		if !known {
			d.wrong(fmt.Errorf("tx chain %d", id))
			continue
		}
		delete(d.txUsed, id)
		if slot != revoked {
			d.txFree = append(d.txFree, slot)
		}
	}
}

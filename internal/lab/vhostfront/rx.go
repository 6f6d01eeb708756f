// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// rxSide is the ring of the packets for the guest.
type rxSide struct {
	*ring
	slots  []rxSlot
	unused []int
	posted int // chains so far
	most   int // chains to keep posted
	large  bool

	// The packet that was taken last.
	parts []rxPart
	hdr   [tap.VnetHdrLen]byte
	iov   []unix.Iovec
	vnet  tap.VnetHdr
}

// rxSlot is the buffer of a chain.
type rxSlot struct {
	off, table int
	size       int
}

// rxPart is a chain with data.
type rxPart struct{ slot, n int }

// frameOverhead is the Ethernet header with a VLAN tag.
const frameOverhead = 18

func newRxSide(m *memory, index int, c Config) (*rxSide, error) {
	r, err := newRing(m, index, c.Size)
	if err != nil {
		return nil, err
	}
	x := &rxSide{ring: r, slots: make([]rxSlot, c.Size)}
	size := c.RxBuffer
	if c.NoMergeable {
		size = tap.VnetHdrLen + frameOverhead + max(c.MTU, 1500)
		if x.large = !c.NoGuestTSO && !c.NoGuestCsum; x.large {
			size = slotSize
			x.slots = x.slots[:min(c.Size, maxLarge)]
		}
	}
	for i := range x.slots {
		s := &x.slots[i]
		s.size = size
		if s.off, err = m.alloc(size); err == nil {
			s.table, err = m.alloc(tableSize)
		}
		if err != nil {
			return x, err
		}
		if i == len(x.slots)/2 {
			m.cut(s.off, size)
		}
	}
	x.most = len(x.slots)
	return x, nil
}

// begin makes the ring empty, and all buffers unused.
func (x *rxSide) begin(rules *rules) error {
	x.unused = x.unused[:0]
	for i := len(x.slots) - 1; i >= 0; i-- {
		x.unused = append(x.unused, i)
		if s := &x.slots[i]; rules.strict {
			copy(x.mem.bytes(s.off, s.size), canary)
		}
	}
	return x.ring.begin(rules)
}

// post gives the back end unused buffers.
func (x *rxSide) post() (n int) {
	var bufs [maxPieces]virtqueue.Buffer
	for ; len(x.unused) > len(x.slots)-x.most; n++ {
		i := x.unused[len(x.unused)-1]
		s := &x.slots[i]
		list := x.lay(s, bufs[:0])
		if len(list) > x.free && !(x.rules.has(featIndirect) && x.free > 0) || !x.add(i, list, s.table) {
			break
		}
		x.unused = x.unused[:len(x.unused)-1]
		x.posted++
	}
	return n
}

// lay describes a buffer by descriptors: as Linux does, and, if strict, each fifth one of
// several that are not as long as others.
func (x *rxSide) lay(s *rxSlot, bufs []virtqueue.Buffer) []virtqueue.Buffer {
	at := x.mem.guest(s.off)
	add := func(from, to int) {
		bufs = append(bufs, virtqueue.Buffer{Addr: at + uint64(from), Len: uint32(to - from), Write: true})
	}
	switch {
	case x.rules.strict && x.posted%5 == 1 && x.rules.has(featVersion1):
		add(0, 5)
		add(5, 700)
		add(700, s.size)
	case x.large && (x.size >= 2*maxPieces || x.rules.has(featIndirect)):
		add(0, x.rules.hdr)
		for off := x.rules.hdr; off < s.size; off += pageSize {
			add(off, min(off+pageSize, s.size))
		}
	case !x.rules.has(featVersion1):
		add(0, x.rules.hdr)
		add(x.rules.hdr, s.size)
	default:
		add(0, s.size)
	}
	return bufs
}

// next takes the next packet. Its buffers stay in use until release.
func (x *rxSide) next() bool {
	x.parts = x.parts[:0]
	if !x.take() {
		return false
	}
	first := x.parts[0]
	if first.n < x.rules.hdr {
		x.fault("ring %d: a packet of %d bytes has no room for its header", x.index, first.n)
		x.vnet = tap.VnetHdr{}
		return true
	}
	clear(x.hdr[:])
	copy(x.hdr[:], x.mem.bytes(x.slots[first.slot].off, x.rules.hdr))
	x.vnet.Decode(x.hdr[:])
	count := 1
	if x.rules.hdr == tap.VnetHdrLen {
		count = int(binary.LittleEndian.Uint16(x.hdr[virtqueue.NumBuffersOffset:]))
	}
	if count < 1 || count > len(x.slots) || count > 1 && !x.rules.has(featMergeable) {
		x.fault("ring %d: a packet has %d buffers", x.index, count)
		count = 1
	}
	for range count - 1 {
		if !x.take() {
			x.fault("ring %d: a packet of %d buffers was published in part", x.index, count)
			break
		}
	}
	for _, p := range x.parts[:len(x.parts)-1] {
		if p.n != x.slots[p.slot].size {
			x.fault("ring %d: a buffer of %d bytes in the middle of a packet has %d", x.index, x.slots[p.slot].size, p.n)
		}
	}
	x.check()
	return true
}

// take takes a chain with data and checks its length and the bytes behind it.
func (x *rxSide) take() bool {
	i, written, ok := x.poll()
	if !ok {
		return false
	}
	s := &x.slots[i]
	n := int(written)
	if n > s.size {
		x.fault("ring %d: %d bytes in a buffer of %d", x.index, n, s.size)
		n = s.size
	}
	if n == 0 {
		x.fault("ring %d: a buffer came back with no bytes", x.index)
	}
	if x.rules.strict && !bytes.Equal(x.mem.bytes(s.off+n, s.size-n), canary[n:s.size]) {
		if !x.spoilt {
			x.fault("ring %d: a buffer with %d bytes was written behind them", x.index, n)
		}
		copy(x.mem.bytes(s.off+n, s.size-n), canary[n:])
	}
	x.mark(x.mem.guest(s.off), n)
	x.parts = append(x.parts, rxPart{i, n})
	return true
}

// size returns the bytes of the packet without its vnet header.
func (x *rxSide) bytes() (n int) {
	for _, p := range x.parts {
		n += p.n
	}
	return n - x.rules.hdr
}

// write writes the packet to the TAP.
func (x *rxSide) write(q *tap.Queue) error {
	x.iov = append(x.iov[:0], unix.Iovec{Base: &x.hdr[0]})
	x.iov[0].SetLen(len(x.hdr))
	for i, p := range x.parts {
		from := 0
		if i == 0 {
			from = x.rules.hdr
		}
		if p.n <= from {
			continue
		}
		b := x.mem.bytes(x.slots[p.slot].off+from, p.n-from)
		x.iov = append(x.iov, unix.Iovec{Base: &b[0]})
		x.iov[len(x.iov)-1].SetLen(len(b))
	}
	_, err := q.Writev(x.iov)
	return err
}

// release makes the packet's buffers unused.
func (x *rxSide) release() {
	for _, p := range slices.Backward(x.parts) {
		if s := &x.slots[p.slot]; x.rules.strict {
			copy(x.mem.bytes(s.off, p.n), canary)
		}
		x.unused = append(x.unused, p.slot)
	}
	x.parts = x.parts[:0]
}

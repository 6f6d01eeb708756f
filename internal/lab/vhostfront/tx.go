// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"bytes"
	"hash/crc64"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

const (
	// slotSize is the length of the buffer of the largest packet, vnet header included.
	slotSize = (tap.VnetHdrLen + tap.MaxFrame + 2*pageSize - 1) &^ (pageSize - 1)
	// maxPieces bounds the descriptors of a packet.
	maxPieces = slotSize/pageSize + 2
	// tableSize is the length of an indirect table.
	tableSize = 16 * maxPieces
	// maxLarge bounds the buffers of slotSize of a ring, which a test may fill with canaries.
	maxLarge = 64
)

// txSide is the ring of the packets from the guest.
type txSide struct {
	*ring
	slots  []txSlot
	unused []int
	layout int
	hdr    [tap.VnetHdrLen]byte
	iov    [2]unix.Iovec
	bufs   [maxPieces]virtqueue.Buffer
}

// txSlot is the buffer of a packet.
type txSlot struct {
	off, table int
	size       int // of the packet
	sum        uint64
}

func newTxSide(m *memory, index, size int) (*txSide, error) {
	r, err := newRing(m, index, size)
	if err != nil {
		return nil, err
	}
	t := &txSide{ring: r, slots: make([]txSlot, min(size, maxLarge))}
	for i := range t.slots {
		s := &t.slots[i]
		if s.off, err = m.alloc(slotSize); err == nil {
			s.table, err = m.alloc(tableSize)
		}
		if err != nil {
			return t, err
		}
	}
	m.cut(t.slots[0].off, slotSize)
	return t, nil
}

// begin makes the ring empty, and all buffers unused.
func (t *txSide) begin(rules *rules) error {
	t.unused = t.unused[:0]
	for i := len(t.slots) - 1; i >= 0; i-- {
		t.unused = append(t.unused, i)
	}
	return t.ring.begin(rules)
}

// room reports whether a packet of any size fits.
func (t *txSide) room() bool {
	if t.dead != nil || len(t.unused) == 0 {
		return false
	}
	if t.rules.has(featIndirect) {
		return t.free > 0
	}
	return t.free >= min(maxPieces, t.size)
}

// read reads a packet from the TAP into an unused buffer and adds it to the ring. It returns
// the error of the read.
func (t *txSide) read(q *tap.Queue) error {
	i := t.unused[len(t.unused)-1]
	s := &t.slots[i]
	mem := t.mem.bytes(s.off, slotSize)
	t.iov[0].Base, t.iov[1].Base = &t.hdr[0], &mem[t.rules.hdr]
	t.iov[0].SetLen(len(t.hdr))
	t.iov[1].SetLen(slotSize - t.rules.hdr)
	n, err := q.Readv(t.iov[:])
	if err != nil {
		return err
	}
	var h tap.VnetHdr
	h.Decode(t.hdr[:])
	if h.Flags&tap.VnetNeedsCsum != 0 && !t.rules.has(featCsum) ||
		h.GSOType&^tap.VnetGSOECN == tap.VnetGSOTCPv4 && !t.rules.has(featHostTSO4) ||
		h.GSOType&^tap.VnetGSOECN == tap.VnetGSOTCPv6 && !t.rules.has(featHostTSO6) {
		t.stats.TapDrops++ // read before the offload was disabled
		return nil
	}
	h.Flags &^= tap.VnetDataValid // which a driver does not set
	h.Encode(t.hdr[:])
	copy(mem, t.hdr[:t.rules.hdr])
	s.size = n - len(t.hdr) + t.rules.hdr
	if t.rules.strict {
		s.sum = crc64.Checksum(mem[:s.size], sumTable)
		copy(mem[s.size:], canary[:min(guardSize, slotSize-s.size)])
	}
	if !t.add(i, t.lay(s), s.table) {
		t.stats.TapDrops++
		return nil
	}
	t.unused = t.unused[:len(t.unused)-1]
	t.count(&h, n-len(t.hdr))
	return nil
}

func (t *txSide) count(h *tap.VnetHdr, n int) {
	t.stats.TxPackets++
	t.stats.TxBytes += uint64(n)
	if h.GSOType != tap.VnetGSONone {
		t.stats.TxGSO++
	}
	if h.Flags&tap.VnetNeedsCsum != 0 {
		t.stats.TxCsum++
	}
}

// lay describes a packet by descriptors. If strict, the layouts take turns: with virtio 1 a
// device must not rely on any.
func (t *txSide) lay(s *txSlot) []virtqueue.Buffer {
	first := t.rules.hdr
	switch t.layout++; {
	case t.size < maxPieces && !t.rules.has(featIndirect):
		first = s.size
	case !t.rules.strict || !t.rules.has(featVersion1):
	case t.layout%5 == 0:
		first = s.size // all in one
	case t.layout%5 == 1:
		first = 5 // within the header
	case t.layout%5 == 2:
		first = t.rules.hdr + 14 + 20
	}
	first = min(first, s.size)
	at := t.mem.guest(s.off)
	bufs := append(t.bufs[:0], virtqueue.Buffer{Addr: at, Len: uint32(first)})
	step := pageSize
	if t.rules.strict && t.layout%5 == 3 {
		step = slotSize // the rest in one
	}
	for off := first; off < s.size; {
		n := min(step, s.size-off)
		bufs = append(bufs, virtqueue.Buffer{Addr: at + uint64(off), Len: uint32(n)})
		off += n
	}
	return bufs
}

// reap takes the packets that the back end is done with, and returns how many.
func (t *txSide) reap() (n int) {
	for {
		i, written, ok := t.poll()
		if !ok {
			return n
		}
		n++
		t.stats.TxDone++
		s := &t.slots[i]
		if written != 0 {
			t.fault("ring %d: %d bytes were written to a packet of the guest", t.index, written)
		}
		if t.rules.strict {
			mem := t.mem.bytes(s.off, slotSize)
			if crc64.Checksum(mem[:s.size], sumTable) != s.sum || !bytes.Equal(mem[s.size:][:min(guardSize, slotSize-s.size)], canary[:min(guardSize, slotSize-s.size)]) {
				t.fault("ring %d: a packet of the guest was changed", t.index)
			}
		}
		t.unused = append(t.unused, i)
	}
}

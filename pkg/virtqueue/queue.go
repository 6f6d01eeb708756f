// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "encoding/binary"

// Fetcher reads guest memory that is not mapped. It is asked for indirect tables only,
// at most once per chain and region.
type Fetcher interface {
	// Fetch reads len(dst) bytes at addr, which is in the region r, into dst.
	Fetch(dst []byte, r Region, addr uint64) error
}

// Config configures a queue of either format.
type Config struct {
	// Size is the number of descriptors.
	Size int
	// Memory is the memory that descriptors may refer to.
	Memory *Memory
	// Base is the position to begin at in a packed ring: see [Packed.Base]. A split ring
	// has it in itself.
	Base uint32
	// EventIdx, Indirect and InOrder say that the driver accepted
	// VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC and VIRTIO_F_IN_ORDER.
	EventIdx, Indirect, InOrder bool
	// Fetcher reads indirect tables from regions that are not mapped. Without one they
	// are an error.
	Fetcher Fetcher
	// Inflight is the queue's part of the inflight region, nil if there is none. It
	// has as many bytes as the format's InflightSize says, is aligned to 8, and is all
	// zero when it is new.
	Inflight []byte
}

// Logging says what a queue records for live migration. The zero Logging records nothing.
type Logging struct {
	// Log gets the pages of all data written.
	Log *Log
	// Ring says that writes to the ring are recorded too, and RingAddr where it stands
	// in the log: the address of the used ring, or of a packed ring's descriptors.
	Ring     bool
	RingAddr uint64
	// EventAddr is the address of the device's event suppression of a packed ring.
	EventAddr uint64
}

// queue is the part of a queue that does not depend on its format.
type queue struct {
	size     uint32
	memory   *Memory
	hint     int // region of the last descriptor
	eventIdx bool
	indirect bool
	inOrder  bool
	fetcher  Fetcher
	logging  Logging
	table    []byte // private copy of an indirect table
	broken   *Error // nil: the driver has kept the rules

	// signalled: there was a publish, so the event index of the driver was looked at.
	signalled bool
}

func newQueue(c *Config) (queue, error) {
	if c.Size < 1 || c.Size > MaxSize {
		return queue{}, &Error{Reason: ReasonSize, Len: uint32(c.Size)}
	}
	q := queue{
		size: uint32(c.Size), memory: c.Memory, fetcher: c.Fetcher,
		eventIdx: c.EventIdx, indirect: c.Indirect, inOrder: c.InOrder,
	}
	if c.Indirect {
		q.table = make([]byte, MaxPieces*descBytes)
	}
	return q, nil
}

// SetMemory changes the table of memory for the chains that are taken from now on. Those
// in a batch keep the old one.
func (q *queue) SetMemory(m *Memory) { q.memory = m }

// SetLogging changes what is recorded from now on.
func (q *queue) SetLogging(l Logging) { q.logging = l }

// Err returns the rule that the driver broke, nil if there is none.
func (q *queue) Err() error {
	if q.broken == nil {
		return nil
	}
	return q.broken
}

// fail ends the use of the queue.
func (q *queue) fail(e *Error) error {
	q.broken = e
	return e
}

// desc is a descriptor in private memory that was not checked yet.
type desc struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16 // split ring: the next descriptor; packed ring: the buffer id
}

func splitDesc(addr, rest uint64) desc {
	return desc{addr: addr, len: uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48)}
}

func packedDesc(addr, rest uint64) desc {
	return desc{addr: addr, len: uint32(rest), flags: uint16(rest >> 48), next: uint16(rest >> 32)}
}

// add checks a descriptor and appends its pieces to the chain c, the last one of b.
func (q *queue) add(b *Batch, c *Chain, d desc) Reason {
	if d.len == 0 {
		return ReasonZeroLength
	}
	if d.addr+uint64(d.len)-1 < d.addr {
		return ReasonAddress
	}
	total := &c.ReadLen
	if d.flags&descWrite != 0 {
		total = &c.WriteLen
	} else if c.WriteLen > 0 {
		return ReasonOrder
	}
	if c.ReadLen+c.WriteLen+d.len < d.len {
		return ReasonTooLong
	}
	*total += d.len
	for addr, left := d.addr, uint64(d.len); left > 0; {
		q.hint = q.memory.find(addr, q.hint)
		if q.hint < 0 {
			return ReasonAddress
		}
		if c.end-c.first == MaxPieces {
			return ReasonTooLong
		}
		r := &q.memory.regions[q.hint]
		off := addr - r.Addr
		n := min(left, r.Size-off)
		p := Piece{Addr: addr, Len: uint32(n), Tag: r.Tag}
		if r.Mem != nil {
			p.Mem = r.Mem[off : off+n : off+n]
		}
		b.pieces = append(b.pieces, p)
		c.end++
		addr += n
		left -= n
	}
	if d.flags&descWrite == 0 {
		c.write = c.end
	}
	return ReasonNone
}

// indirectTable copies the table that d refers to and returns it.
func (q *queue) indirectTable(d desc) ([]byte, Reason, error) {
	switch {
	case !q.indirect:
		return nil, ReasonIndirect, nil
	case d.flags&descNext != 0:
		return nil, ReasonIndirectNext, nil
	case d.len == 0 || d.len%descBytes != 0:
		return nil, ReasonIndirectLength, nil
	case int(d.len) > len(q.table):
		return nil, ReasonTooLong, nil
	case d.addr+uint64(d.len)-1 < d.addr:
		return nil, ReasonAddress, nil
	}
	out := q.table[:d.len]
	for addr, rest := d.addr, out; len(rest) > 0; {
		i := q.memory.find(addr, q.hint)
		if i < 0 {
			return nil, ReasonAddress, nil
		}
		r := &q.memory.regions[i]
		off := addr - r.Addr
		n := min(uint64(len(rest)), r.Size-off)
		switch {
		case r.Mem != nil:
			copy(rest, r.Mem[off:off+n])
		case q.fetcher == nil:
			return nil, ReasonIndirectRead, nil
		default:
			if err := q.fetcher.Fetch(rest[:n], *r, addr); err != nil {
				return nil, ReasonIndirectRead, err
			}
		}
		addr += n
		rest = rest[n:]
	}
	return out, ReasonNone, nil
}

// rawDesc reads the two words of descriptor i of an indirect table's copy.
func rawDesc(table []byte, i int) (addr, rest uint64) {
	d := table[i*descBytes:][:descBytes]
	return binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
}

// logData records the bytes that were written to the chains of b.
func (q *queue) logData(b *Batch) {
	for i := range b.chains {
		c := &b.chains[i]
		left := c.written()
		for _, p := range b.pieces[c.write:c.end] {
			if left == 0 {
				break
			}
			n := min(left, p.Len)
			q.logging.Log.Mark(p.Addr, uint64(n))
			left -= n
		}
	}
}

// logRing records n bytes at off of the ring.
func (q *queue) logRing(off, n uint64) {
	if q.logging.Log != nil && q.logging.Ring {
		q.logging.Log.Mark(q.logging.RingAddr+off, n)
	}
}

// broke makes the error of a chain.
func broke(r Reason, id uint16, d desc, err error) *Error {
	return &Error{Reason: r, ID: id, Addr: d.addr, Len: d.len, Err: err}
}

// SPDX-License-Identifier: Apache-2.0

package virtqueue

// Piece is a part of a chain that is in one region.
type Piece struct {
	// Mem is the memory, nil if the region is not mapped. The guest may change it at any
	// time.
	Mem []byte
	// Addr is the guest address of the first byte.
	Addr uint64
	// Len is the number of bytes, at least 1.
	Len uint32
	// Tag is that of the region.
	Tag uint32
}

// Chain is a buffer of the driver, which the device uses once and gives back.
type Chain struct {
	// ReadLen and WriteLen are the bytes that the device may read, and may write.
	ReadLen, WriteLen uint32
	// Written is set by the device before it publishes the chain: how many bytes it
	// wrote, from the start of the writable pieces. What is above WriteLen is ignored.
	Written uint32
	// ID is the head of the chain in a split ring, the buffer id in a packed one.
	ID uint16

	slots    uint16 // descriptors of a packed ring
	entry    uint16 // entry of a packed ring's inflight region
	replayed bool   // it comes from the inflight region, not from the ring

	first, write, end uint32 // its pieces: readable ones from first, writable ones from write
}

func (c *Chain) written() uint32 { return min(c.Written, c.WriteLen) }

// Batch is a list of chains that were taken from one queue, in order. It is reused, so
// that the data path allocates nothing.
type Batch struct {
	chains []Chain
	pieces []Piece
	max    int // chains
}

// NewBatch makes a batch for at most max chains. A batch can also be full because its
// pieces are: it has memory for 4 pieces of each chain, and for one chain of [MaxPieces].
func NewBatch(max int) *Batch {
	return &Batch{
		chains: make([]Chain, 0, max),
		pieces: make([]Piece, 0, 4*max+MaxPieces),
		max:    max,
	}
}

// Len is the number of chains.
func (b *Batch) Len() int { return len(b.chains) }

// Full reports whether no more chain can be taken.
func (b *Batch) Full() bool {
	return len(b.chains) == b.max || cap(b.pieces)-len(b.pieces) < MaxPieces
}

// Chain returns chain i. It is valid until the batch is published or returned.
func (b *Batch) Chain(i int) *Chain { return &b.chains[i] }

// Readable returns the pieces of chain i that the device may read.
func (b *Batch) Readable(i int) []Piece {
	c := &b.chains[i]
	return b.pieces[c.first:c.write:c.write]
}

// Writable returns the pieces of chain i that the device may write.
func (b *Batch) Writable(i int) []Piece {
	c := &b.chains[i]
	return b.pieces[c.write:c.end:c.end]
}

// Spread distributes n bytes that were written over chains first to first+count-1: each
// but the last is full. It returns the bytes that did not fit.
func (b *Batch) Spread(first, count int, n uint32) uint32 {
	for i := range count {
		c := &b.chains[first+i]
		c.Written = min(n, c.WriteLen)
		n -= c.Written
	}
	return n
}

// reset forgets all chains.
func (b *Batch) reset() {
	b.chains = b.chains[:0]
	b.pieces = b.pieces[:0]
}

// open begins a chain with no pieces.
func (b *Batch) open(id uint16) *Chain {
	n := uint32(len(b.pieces))
	b.chains = append(b.chains, Chain{ID: id, first: n, write: n, end: n})
	return &b.chains[len(b.chains)-1]
}

// cut removes the chains from keep on.
func (b *Batch) cut(keep int) {
	if keep < len(b.chains) {
		b.pieces = b.pieces[:b.chains[keep].first]
		b.chains = b.chains[:keep]
	}
}

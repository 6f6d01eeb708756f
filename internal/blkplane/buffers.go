// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
)

// buffers is a buddy allocator over memory off the Go heap. A block has a power of two of
// pages and is aligned to its size within the arena, so it is contiguous and fit for
// O_DIRECT. Pages take up memory from their first use until release.
type buffers struct {
	arena *gntdev.Arena
	mem   []byte
	base  uintptr

	top   int     // order of the largest block
	heads []int32 // first free block of each order, by its first page; none if there is none
	next  []int32 // of a free block, by its first page
	prev  []int32
	state []uint8 // of a block, by its first page: its order, and isFree; elsewhere inside
	used  int     // bytes of the blocks that are allocated
	dirty int     // most bytes that were allocated since release
}

const (
	none   = -1
	isFree = 0x80
	inside = 0x7f
)

// newBuffers makes an allocator of bytes, which are a multiple of the largest block, of
// chunk bytes.
func newBuffers(bytes, chunk int) (*buffers, error) {
	arena, err := gntdev.NewArena(bytes)
	if err != nil {
		return nil, err
	}
	pages := bytes / gntdev.PageSize
	b := &buffers{
		arena: arena, mem: arena.Bytes(), base: arena.Addr(0),
		top:  orderOf(chunk),
		next: make([]int32, pages), prev: make([]int32, pages), state: make([]uint8, pages),
	}
	b.heads = make([]int32, b.top+1)
	for i := range b.heads {
		b.heads[i] = none
	}
	for i := range b.state {
		b.state[i] = inside
	}
	for p := pages - 1<<b.top; p >= 0; p -= 1 << b.top {
		b.push(int32(p), b.top)
	}
	return b, nil
}

func (b *buffers) close() error { return b.arena.Close() }

// orderOf returns the order of the smallest block that holds n bytes, n > 0.
func orderOf(n int) int {
	pages := (n + gntdev.PageSize - 1) / gntdev.PageSize
	return bits.Len(uint(pages - 1))
}

// sizeOf returns the bytes of a block of an order.
func sizeOf(order int) int { return gntdev.PageSize << order }

func (b *buffers) push(p int32, order int) {
	head := b.heads[order]
	b.next[p], b.prev[p] = head, none
	if head != none {
		b.prev[head] = p
	}
	b.heads[order] = p
	b.state[p] = uint8(order) | isFree
}

func (b *buffers) unlink(p int32, order int) {
	if b.prev[p] == none {
		b.heads[order] = b.next[p]
	} else {
		b.next[b.prev[p]] = b.next[p]
	}
	if b.next[p] != none {
		b.prev[b.next[p]] = b.prev[p]
	}
	b.state[p] = inside
}

// alloc allocates a block of an order and returns its first page, or none.
func (b *buffers) alloc(order int) int32 {
	o := order
	for o <= b.top && b.heads[o] == none {
		o++
	}
	if o > b.top {
		return none
	}
	p := b.heads[o]
	b.unlink(p, o)
	for o > order {
		o--
		b.push(p+1<<o, o)
	}
	b.state[p] = uint8(order)
	b.used += sizeOf(order)
	b.dirty = max(b.dirty, b.used)
	return p
}

// free frees the block at page p.
func (b *buffers) free(p int32) {
	order := int(b.state[p])
	b.used -= sizeOf(order)
	b.state[p] = inside
	for order < b.top {
		buddy := p ^ 1<<order
		if b.state[buddy] != uint8(order)|isFree {
			break
		}
		b.unlink(buddy, order)
		p = min(p, buddy)
		order++
	}
	b.push(p, order)
}

// bytes returns the first n bytes of the block at page p.
func (b *buffers) bytes(p int32, n int) []byte {
	off := int(p) * gntdev.PageSize
	return b.mem[off : off+n : off+n]
}

// addr returns the address of the block at page p.
func (b *buffers) addr(p int32) uintptr { return b.base + uintptr(p)*gntdev.PageSize }

// idle reports whether no block is allocated but the arena may have memory.
func (b *buffers) idle() bool { return b.used == 0 && b.dirty > 0 }

// release returns the memory of an idle arena to the host.
func (b *buffers) release() error {
	b.dirty = 0
	return unix.Madvise(b.mem, unix.MADV_DONTNEED)
}

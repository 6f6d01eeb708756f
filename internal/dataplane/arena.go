// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// headroom is the number of free bytes before each frame in an arena: room for the
// vnet header, in a cache line of its own.
const headroom = 64

// smallPacket is the size in bytes up to which a packet is copied into one piece. Up
// to about this size the copy costs less than a scattered write would.
const smallPacket = 2048

// arenaMem is an arena with its memory and address at hand.
type arenaMem struct {
	arena *gntdev.Arena
	mem   []byte
	base  uintptr
	own   ownPages
}

func newArenaMem(bytes int) (arenaMem, error) {
	a, err := gntdev.NewArena(bytes)
	if err != nil {
		return arenaMem{}, err
	}
	return arenaMem{arena: a, mem: a.Bytes(), base: a.Addr(0)}, nil
}

func (a *arenaMem) close() {
	if a.arena != nil {
		_ = a.arena.Close()
		*a = arenaMem{}
	}
}

// addr returns the address of the byte at off.
func (a *arenaMem) addr(off int) uintptr { return a.base + uintptr(off) }

// fromGuest makes s a copy of n bytes at off of a guest's page to at: by gref if they are
// within an own page, else by address.
func (a *arenaMem) fromGuest(s *gntdev.Segment, domid xen.Domid, ref xen.Gref, off uint16, at, n int) {
	if own := a.own.ref(at, n); own != 0 {
		s.FromGuestToOwn(domid, ref, off, own, uint16(at%netif.PageSize), uint16(n))
		return
	}
	s.FromGuest(domid, ref, off, a.mem[at:at+n])
}

// toGuest makes s a copy of the n bytes at at to off of a guest's page.
func (a *arenaMem) toGuest(s *gntdev.Segment, domid xen.Domid, ref xen.Gref, off uint16, at, n int) {
	if own := a.own.ref(at, n); own != 0 {
		s.ToGuestFromOwn(domid, ref, off, own, uint16(at%netif.PageSize), uint16(n))
		return
	}
	s.ToGuest(domid, ref, off, a.mem[at:at+n])
}

// The tx arena holds the data of a batch and, behind it, the headers that were pulled
// up. Each data slot takes at most a page, and each packet loses at most one more to
// its headroom.
const (
	txArenaBytes = (netif.TxRingSize + batchPackets + 1) * netif.PageSize
	pullStride   = headroom + offload.MaxHeader
	txMemBytes   = txArenaBytes + batchPackets*pullStride
)

// frameAlloc allocates places for a tx batch's data in the arena, front to back. The
// kernel splits a grant copy at the page ends of local memory, so no place crosses
// one.
type frameAlloc struct{ next int }

// packed allocates n bytes, n <= smallPacket, within one page and behind a headroom.
// Small packets share pages, and with them entries of the TLB.
func (f *frameAlloc) packed(n int) int {
	off := alignUp(f.next, headroom) + headroom
	if off%netif.PageSize+n > netif.PageSize {
		off = alignUp(off, netif.PageSize)
	}
	f.next = off + n
	return off
}

// first allocates a page for a packet's first slot, with size bytes at off of the
// guest's page and at least a headroom before them. The data keeps its offset, so that
// source and destination reach their page ends together.
func (f *frameAlloc) first(off, size int) int {
	if off < headroom {
		f.next += headroom
	}
	return f.later(off, size)
}

// later allocates a page for another slot of a packet.
func (f *frameAlloc) later(off, size int) int {
	at := alignUp(f.next, netif.PageSize) + off
	f.next = at + size
	return at
}

// alignUp rounds n up to a multiple of a, a power of two.
func alignUp(n, a int) int { return (n + a - 1) &^ (a - 1) }

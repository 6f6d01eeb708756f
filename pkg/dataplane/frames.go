// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
)

// headroom is what stands free before each frame in an arena: room for the
// vnet header, in a cache line of its own.
const headroom = 64

// smallPacket is the size up to which a packet is copied into one piece. Up to
// about here, copying costs less than what a scattered write costs more.
const smallPacket = 2048

// arenaMem is an arena with the numbers the data path needs at hand.
type arenaMem struct {
	arena *gntdev.Arena
	mem   []byte
	base  uintptr
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

// addr is the address of the octet at off.
func (a *arenaMem) addr(off int) uintptr { return a.base + uintptr(off) }

// frameAlloc hands out places for a tx batch's data in an arena, front to back.
// The kernel splits a grant copy at the page ends of local memory, so no place
// crosses one.
type frameAlloc struct{ next int }

// txArenaBytes is enough for a ring full of data slots: each takes at most two
// pages, one for itself and one lost to its headroom.
const txArenaBytes = (netif.TxRingSize + 1) * 2 * netif.PageSize

// packed finds n octets, n <= smallPacket, after a headroom, wherever they fit
// into one page. Small packets share pages, and with them cache and TLB.
func (f *frameAlloc) packed(n int) int {
	off := alignUp(f.next, headroom) + headroom
	if off%netif.PageSize+n > netif.PageSize {
		off = alignUp(off, netif.PageSize) + headroom
	}
	f.next = off + n
	return off
}

// page finds a page of its own, after a headroom, and takes it up to and
// including in-page offset end. Data stays at the guest's offset within it, so
// that source and destination meet their page ends together.
func (f *frameAlloc) page(end int) int {
	off := alignUp(f.next+headroom, netif.PageSize)
	f.next = off + end
	return off
}

func alignUp(n, a int) int { return (n + a - 1) &^ (a - 1) }

// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/pkg/netif"

// The rx arena holds the packets of one pass. A read may bring a frame of any size,
// so every place has room for the largest, which may cover places behind it.
const (
	// maxFrame is the largest frame in bytes that a TAP hands out: an IP packet of
	// 64 KiB with an Ethernet header and two VLAN tags.
	maxFrame = 65535 + 14 + 8

	// maxFramePages is the number of pages that it takes.
	maxFramePages = (maxFrame + netif.PageSize - 1) / netif.PageSize

	// rxStride separates the places of one read. The next read of a pass uses
	// places one page further on, behind packets that were small.
	rxStride = (maxFramePages + rxParts) * netif.PageSize

	// rxDense: frames up to this size fit a half page, where small ones are read
	// with system calls. A larger one overruns the next, still unused half pages;
	// reading stops there and the frame is moved to rxAlone.
	rxDense = netif.PageSize/2 - rxSteps*headroom

	// rxSteps is the number of different offsets of frames in their half pages.
	rxSteps = 8

	// The places of rxFrameAt come first, then that of a frame that was moved, then
	// those of rxDenseAt, with room for the largest frame behind the last.
	rxAlone      = rxReads*rxStride + netif.PageSize
	rxDenseFrom  = rxAlone + maxFramePages*netif.PageSize
	rxArenaBytes = rxDenseFrom + rxParts*rxReads/2*netif.PageSize + maxFramePages*netif.PageSize
)

// rxFrame is a frame at offset at of the rx arena. The vnet header is before it; n counts
// the bytes of both.
type rxFrame struct{ at, n int }

// rxFrameAt returns the offset of packet i of a pass. The vnet header goes before it. large
// is set if large packets are expected.
//
// A large packet starts at a page, so that its pages are copied one by one into the
// guest's and no copy crosses a page end. Small ones have different offsets in their
// pages, or all of them would compete for one set of the cache. A large packet that
// was not expected is moved.
func rxFrameAt(i int, large bool) int {
	at := i%rxReads*rxStride + (1+i/rxReads)*netif.PageSize
	if !large {
		at += (1 + i%16) * headroom
	}
	return at
}

// rxDenseAt returns the place of packet i of a pass if small packets are expected and
// reading stops behind a larger one. These places are in few pages, for the sake of
// the TLB, and have different offsets as well. None crosses a page end.
func rxDenseAt(i int) int {
	return rxDenseFrom + i*(netif.PageSize/2) + (1+i/2%rxSteps)*headroom
}

// overruns reports whether a frame is larger than its dense place. Then it was the
// last one of its read, even if the TAP has more.
func (f rxFrame) overruns(vnetLen int) bool {
	return f.at >= rxDenseFrom && f.n > rxDense+vnetLen
}

// toPageStart moves a frame of the arena mem, with its vnet header, to the start of a
// page.
func toPageStart(mem []byte, f *rxFrame, vnetLen int) {
	at := f.at &^ (netif.PageSize - 1)
	if f.at >= rxDenseFrom {
		at = rxAlone // its own page has other packets
	}
	if at != f.at {
		copy(mem[at-vnetLen:], mem[f.at-vnetLen:f.at-vnetLen+f.n])
		f.at = at
	}
}

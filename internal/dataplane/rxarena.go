// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/pkg/netif"

// The rx arena holds the packets of one pass. A read may bring a frame of any size, so
// behind every place there is room for the largest. The arena has two parts:
//
//	line   packets that are read with system calls, and segments: one behind the other
//	ring   packets that are read with io_uring, where the places are chosen before the
//	       sizes are known: far apart
//
// In the line, large packets start at a page, so that their pages are copied one by one
// into the guest's and no copy crosses a page end. Small ones are in half pages, for the
// sake of the TLB, and have different offsets in them, or all of them would compete for
// one set of the cache. The line begins at its start in every pass, so its first pages are
// used most.
const (
	// maxFrame is the largest frame in bytes that a TAP hands out: an IP packet of
	// 64 KiB with an Ethernet header and two VLAN tags.
	maxFrame = 65535 + 14 + 8

	// maxFramePages is the number of pages that it takes.
	maxFramePages = (maxFrame + netif.PageSize - 1) / netif.PageSize

	// rxDense: frames up to this size fit a half page, where small ones are read
	// with system calls. A larger one overruns the next, still unused half pages;
	// reading stops there.
	rxDense = netif.PageSize/2 - rxSteps*headroom

	// rxSteps is the number of different offsets of frames in their half pages.
	rxSteps = 8

	// The line: a page for the first vnet header, a page for each slot of a ring, and the
	// large packets that may be read beyond the slots at hand.
	rxLineFrom  = netif.PageSize
	rxLinePages = 1 + netif.RxRingSize + (backlogFrames+2)*maxFramePages
	rxLineBytes = rxLinePages * netif.PageSize

	// rxStride separates the places of one read with io_uring. The next read of a pass
	// uses places one page further on, behind packets that were small.
	rxStride     = (maxFramePages + rxParts) * netif.PageSize
	rxArenaBytes = rxLineBytes + rxReads*rxStride + netif.PageSize
)

// rxFrame is a frame at offset at of the rx arena. The vnet header is before it; n counts
// the bytes of both.
type rxFrame struct{ at, n int }

// rxPlaces hands out places of the rx arena for the packets of a pass. The vnet header
// goes before a place.
type rxPlaces struct {
	end  int // of the used part of the line
	ring int // places of the ring part that are used
}

// reset makes all places free.
func (p *rxPlaces) reset() { p.end, p.ring = rxLineFrom-headroom, 0 }

// page returns the next place of the line that starts at a page. ok is set if there is
// room for the largest frame.
func (p *rxPlaces) page() (at int, ok bool) {
	at = alignUp(p.end+headroom, netif.PageSize)
	return at, at+maxFrame <= rxLineBytes
}

// half returns the number of the line's next free half page, for rxDenseAt, and how many
// small packets there is room for behind it.
func (p *rxPlaces) half() (first, room int) {
	first = alignUp(p.end, netif.PageSize/2) / (netif.PageSize / 2)
	return first, (rxLineBytes-maxFrame)/(netif.PageSize/2) - first - 2
}

// took records that a place of the line is used up to end.
func (p *rxPlaces) took(end int) { p.end = end }

// rxDenseAt returns the place in half page number i of the line.
func rxDenseAt(i int) int {
	return i*(netif.PageSize/2) + (1+i/2%rxSteps)*headroom
}

// rxRingAt returns place number i of the ring part. As in the line, small packets have
// different offsets in their pages.
func rxRingAt(i int) int {
	return rxLineBytes + i%rxReads*rxStride + (1+i/rxReads)*netif.PageSize + (1+i%16)*headroom
}

// overruns reports whether a frame is larger than its dense place. Then it was the
// last one of its read, even if the TAP has more.
func (f rxFrame) overruns(vnetLen int) bool {
	return f.n > rxDense+vnetLen && f.at < rxLineBytes && f.at%netif.PageSize != 0
}

// toPageStart moves a frame of the arena mem, with its vnet header, to the start of a
// page: in the line to the next one, since its own page may have another frame.
func toPageStart(mem []byte, f *rxFrame, vnetLen int) {
	at := f.at &^ (netif.PageSize - 1)
	if at == f.at {
		return
	}
	if f.at < rxLineBytes {
		at += netif.PageSize
	}
	copy(mem[at-vnetLen:], mem[f.at-vnetLen:f.at-vnetLen+f.n])
	f.at = at
}

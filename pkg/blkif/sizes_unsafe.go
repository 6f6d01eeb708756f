// SPDX-License-Identifier: Apache-2.0

package blkif

import "unsafe"

// The compiler checks the sizes of blkif.h: for another size one of the two differences is
// a negative constant, which does not fit a uint.
const (
	_ = uint(unsafe.Sizeof(RawSegment{})-segmentSize) + uint(segmentSize-unsafe.Sizeof(RawSegment{}))
	_ = uint(unsafe.Sizeof(Segment{})-segmentSize) + uint(segmentSize-unsafe.Sizeof(Segment{}))
	_ = uint(unsafe.Sizeof(Slot{})-112) + uint(112-unsafe.Sizeof(Slot{}))
	_ = uint(4*slotWords64-112) + uint(112-4*slotWords64)
	_ = uint(4*slotWords32-108) + uint(108-4*slotWords32)
	_ = uint(4*rspWords64-16) + uint(16-4*rspWords64)
	_ = uint(4*rspWords32-12) + uint(12-4*rspWords32)

	// The last field of each kind of request ends within the slot of x86_64.
	_ = uint(SlotSize - (offSegs + MaxDirect*segmentSize))
	_ = uint(SlotSize - (offGrefs + 4*MaxIndirectPages))

	// The slots fit the ring: of one page, and of the largest.
	_ = uint(PageSize - (4*wRing + 32*4*slotWords64))
	_ = uint(PageSize<<MaxOrder - (4*wRing + 512*4*slotWords64))
)

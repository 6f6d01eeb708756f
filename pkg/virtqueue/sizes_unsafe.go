// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "unsafe"

// The structures of the inflight region, as vhost-user.rst has them. They are used only
// here, to check the numbers that the code uses for them.
type (
	splitHeaderABI struct {
		_             uint64 // features
		version       uint16
		descNum       uint16
		lastBatchHead uint16
		usedIdx       uint16
	}
	splitEntryABI struct {
		_       uint8 // inflight
		_       [5]uint8
		next    uint16
		counter uint64
	}
	packedHeaderABI struct {
		_                  uint64 // features
		version            uint16
		descNum            uint16
		freeHead           uint16
		oldFreeHead        uint16
		usedIdx            uint16
		oldUsedIdx         uint16
		usedWrapCounter    uint8
		oldUsedWrapCounter uint8
		_                  [7]uint8
	}
	packedEntryABI struct {
		_       uint8 // inflight
		_       uint8
		next    uint16
		last    uint16
		num     uint16
		counter uint64
		id      uint16
		flags   uint16
		len     uint32
		addr    uint64
	}
)

// An index other than 0 is out of range. Offsets are those of the comments in
// splitinflight.go and packedinflight.go: a word of 8 bytes, and bits in it.
var (
	_ = [1]struct{}{}[unsafe.Sizeof([2]uint64{})-descBytes]

	_ = [1]struct{}{}[unsafe.Sizeof(splitHeaderABI{})-inflightHeader]
	_ = [1]struct{}{}[unsafe.Offsetof(splitHeaderABI{}.version)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(splitHeaderABI{}.descNum)-8-16/8]
	_ = [1]struct{}{}[unsafe.Offsetof(splitHeaderABI{}.lastBatchHead)-8-32/8]
	_ = [1]struct{}{}[unsafe.Offsetof(splitHeaderABI{}.usedIdx)-8-48/8]

	_ = [1]struct{}{}[unsafe.Sizeof(splitEntryABI{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(splitEntryABI{}.next)-48/8]
	_ = [1]struct{}{}[unsafe.Offsetof(splitEntryABI{}.counter)-8]

	_ = [1]struct{}{}[unsafe.Sizeof(packedHeaderABI{})-packedHeader]
	_ = [1]struct{}{}[unsafe.Sizeof(packedHeaderABI{})-8*hdrWords]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.version)-8*hdrHeads]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.descNum)-8*hdrHeads-16/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.freeHead)-8*hdrHeads-32/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.oldFreeHead)-8*hdrHeads-48/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.usedIdx)-8*hdrUsed]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.oldUsedIdx)-8*hdrUsed-16/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.usedWrapCounter)-8*hdrUsed-32/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedHeaderABI{}.oldUsedWrapCounter)-8*hdrUsed-40/8]

	_ = [1]struct{}{}[unsafe.Sizeof(packedEntryABI{})-8*entWords]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.next)-16/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.last)-32/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.num)-48/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.counter)-8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.id)-16]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.flags)-16-16/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.len)-16-32/8]
	_ = [1]struct{}{}[unsafe.Offsetof(packedEntryABI{}.addr)-24]
)

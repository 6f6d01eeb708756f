// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"unsafe"

	"github.com/netbackd/netbackd/pkg/blkif"
)

const segmentBytes = 8

var _ = [1]struct{}{}[unsafe.Sizeof(blkif.Segment{})-segmentBytes]

// segmentsIn returns a view of mem, which is aligned memory of an arena.
func segmentsIn(mem []byte) []blkif.Segment {
	return unsafe.Slice((*blkif.Segment)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/segmentBytes)
}

// addressOf returns the address of memory that is not of the Go heap.
func addressOf(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }

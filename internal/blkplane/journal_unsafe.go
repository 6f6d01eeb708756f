// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"sync/atomic"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// A journal's memory is not shared with a guest. Atomic stores keep their order with the
// plain ones between them. A successor sees the stores in this order, up to the instruction
// at which the daemon was killed.

func load[I int | uint32](w []uint32, i I) uint32     { return atomic.LoadUint32(&w[i]) }
func store[I int | uint32](w []uint32, i I, v uint32) { atomic.StoreUint32(&w[i], v) }

// journalWords returns a view of mem, which is from mmap.
func journalWords(mem []byte) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/4)
}

// slotAt returns the slot at word i.
func slotAt(w []uint32, i uint32) *blkif.Slot {
	return (*blkif.Slot)(unsafe.Pointer(&w[i : i+uint32(len(blkif.Slot{})/4)][0]))
}

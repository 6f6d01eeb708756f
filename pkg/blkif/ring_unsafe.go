// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"errors"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// Word numbers of the ring header.
const (
	wReqProd  = 0
	wReqEvent = 1
	wRspProd  = 2
	wRspEvent = 3
	wRing     = 16 // first word of ring[]
)

var (
	errMemory   = errors.New("blkif: a ring needs 1, 2, 4, 8 or 16 whole pages, aligned to 4 bytes")
	errProtocol = errors.New("blkif: unknown protocol")
)

// ring accesses the shared pages of a ring word by word. The compiler may neither repeat
// nor split an atomic load, so every word is read once.
type ring struct {
	w     []uint32
	mask  uint32 // number of slots - 1
	slot  uint32 // words of a slot
	proto Protocol
}

func newRing(mem []byte, p Protocol) (ring, error) {
	w, err := words(mem)
	if err != nil {
		return ring{}, err
	}
	if !p.valid() {
		return ring{}, errProtocol
	}
	return ring{w: w, mask: p.ringSize(len(mem)) - 1, slot: p.slotWords(), proto: p}, nil
}

func words(mem []byte) ([]uint32, error) {
	pages := uint(len(mem) / PageSize)
	if len(mem)%PageSize != 0 || bits.OnesCount(pages) != 1 || pages > 1<<MaxOrder ||
		uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%4 != 0 {
		return nil, errMemory
	}
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/4), nil
}

// load reads word i once.
func (r *ring) load(i uint32) uint32 { return atomic.LoadUint32(&r.w[i]) }

// publish stores word i, after everything stored before it and before everything loaded
// after it: Go's atomics are sequentially consistent, so it replaces xen_wmb, the store
// and xen_mb. It is a swap because the race detector's runtime turns a store into a
// release store, which later loads may overtake. On amd64 both are the same instruction.
func (r *ring) publish(i, v uint32) { atomic.SwapUint32(&r.w[i], v) }

// at returns the words of the slot at i.
func (r *ring) at(i Index) []uint32 {
	n := wRing + (uint32(i)&r.mask)*r.slot
	return r.w[n : n+r.slot]
}

// copy reads the words of the slot at i, each once, into s.
func (r *ring) copy(i Index, s *Slot) {
	src := r.at(i)
	dst := (*[SlotSize / 4][4]byte)(unsafe.Pointer(s))
	for k := range src {
		le.PutUint32(dst[k][:], atomic.LoadUint32(&src[k]))
	}
	for k := len(src); k < len(dst); k++ {
		dst[k] = [4]byte{}
	}
}

// put stores s to the slot at i. A later publish makes it visible.
func (r *ring) put(i Index, s *Slot) {
	for k, dst := 0, r.at(i); k < len(dst); k++ {
		dst[k] = le.Uint32(s[4*k:])
	}
}

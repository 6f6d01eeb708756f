// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"errors"
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

const pageWords = PageSize / 4

var errPage = errors.New("netif: a ring needs one whole page, aligned to 4 bytes")

// page accesses a shared page word by word. The compiler may neither repeat nor
// split an atomic load, so every word is read once.
type page struct{ w *[pageWords]uint32 }

func newPage(b []byte) (page, error) {
	if len(b) != PageSize || uintptr(unsafe.Pointer(&b[0]))%4 != 0 {
		return page{}, errPage
	}
	return page{(*[pageWords]uint32)(unsafe.Pointer(&b[0]))}, nil
}

// load reads word i once.
func (p page) load(i uint32) uint32 { return atomic.LoadUint32(&p.w[i%pageWords]) }

// publish stores word i, after everything stored before it and before
// everything loaded after it: Go's atomics are sequentially consistent, so it replaces
// xen_wmb, the store and xen_mb. It is a swap because the race detector's runtime
// turns a store into a release store, which later loads may overtake. On amd64 both
// are the same instruction.
func (p page) publish(i, v uint32) { atomic.SwapUint32(&p.w[i%pageWords], v) }

// put stores word i of a slot. A later publish makes it visible.
func (p page) put(i, v uint32) { p.w[i%pageWords] = v }

// txPage is the page of a tx ring. A slot in it needs no more bounds checks.
type txPage struct {
	_    [wRing]uint32
	ring [TxRingSize][txWords]uint32
}

var _ [PageSize - unsafe.Sizeof(txPage{})]byte // it fits

// txSlot returns slot i. Its words are read once each with load.
func (p page) txSlot(i Index) *[txWords]uint32 {
	return &(*txPage)(unsafe.Pointer(p.w)).ring[i%TxRingSize]
}

// rxPage is the page of an rx ring.
type rxPage struct {
	_    [wRing]uint32
	ring [RxRingSize][rxWords]uint32
}

var _ [PageSize - unsafe.Sizeof(rxPage{})]byte // it fits

// rxSlot returns slot i, like txSlot.
func (p page) rxSlot(i Index) *[rxWords]uint32 {
	return &(*rxPage)(unsafe.Pointer(p.w)).ring[i%RxRingSize]
}

func load(w *uint32) uint32 { return atomic.LoadUint32(w) }

// addr returns the page's address as a number.
func (p page) addr() uintptr { return uintptr(unsafe.Pointer(p.w)) }

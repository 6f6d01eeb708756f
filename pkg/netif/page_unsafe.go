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

// page gives access to a shared page, word by word. The compiler may neither
// repeat nor split an atomic load, which is what makes "read once" true.
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
// everything loaded after it: Go's atomics are sequentially consistent, so one
// such store stands for xen_wmb, the store and xen_mb. It is a swap because the race
// detector's runtime makes a mere release of a store, which loads overtake; on amd64
// both are the same instruction.
func (p page) publish(i, v uint32) { atomic.SwapUint32(&p.w[i%pageWords], v) }

// put stores word i of a slot, to be made visible by a later publish.
func (p page) put(i, v uint32) { p.w[i%pageWords] = v }

// txPage is a page as that of a tx ring. A slot found in it needs no further bounds.
type txPage struct {
	_    [wRing]uint32
	ring [TxRingSize][txWords]uint32
}

var _ [PageSize - unsafe.Sizeof(txPage{})]byte // it fits

// txSlot is slot i. Its words are for load, once each, and store.
func (p page) txSlot(i Index) *[txWords]uint32 {
	return &(*txPage)(unsafe.Pointer(p.w)).ring[i%TxRingSize]
}

// rxPage is a page as that of an rx ring.
type rxPage struct {
	_    [wRing]uint32
	ring [RxRingSize][rxWords]uint32
}

var _ [PageSize - unsafe.Sizeof(rxPage{})]byte // it fits

// rxSlot is slot i, as txSlot.
func (p page) rxSlot(i Index) *[rxWords]uint32 {
	return &(*rxPage)(unsafe.Pointer(p.w)).ring[i%RxRingSize]
}

func load(w *uint32) uint32 { return atomic.LoadUint32(w) }

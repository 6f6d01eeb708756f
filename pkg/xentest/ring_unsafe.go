// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"sync/atomic"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Layout of a ring page (ring.h, netif.h), in words.
const (
	ringHeader = 16
	txWords    = 3
	rxWords    = 2
)

// PokeTx overwrites the slot at i of the tx ring in page, word by word, used or not. So
// a test plays a guest that changes a request while the backend reads it. Any
// goroutine may call it. No index changes.
func PokeTx(page []byte, i netif.Index, q netif.TxRequest) {
	storeWords(page, ringHeader+int(i%netif.TxRingSize)*txWords,
		uint32(q.Gref), uint32(q.Offset)|uint32(q.Flags)<<16, uint32(q.ID)|uint32(q.Size)<<16)
}

// PokeRx does what [PokeTx] does, with a slot of the rx ring in page.
func PokeRx(page []byte, i netif.Index, q netif.RxRequest) {
	storeWords(page, ringHeader+int(i%netif.RxRingSize)*rxWords, uint32(q.ID), uint32(q.Gref))
}

// storeWords writes words of a page in order, each at once.
func storeWords(page []byte, first int, words ...uint32) {
	at := (*[pageSize / 4]uint32)(unsafe.Pointer(unsafe.SliceData(page[:pageSize])))
	for k, w := range words {
		atomic.SwapUint32(&at[first+k], w)
	}
}

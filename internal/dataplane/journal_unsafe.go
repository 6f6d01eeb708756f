// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/netif"
)

// journalPage is a journal's memory as words. Unlike a ring it is not shared with a
// guest. Atomic stores keep their order. A successor sees the stores in this order, up to
// the instruction at which the daemon was killed.
type journalPage struct{ w *[JournalSize / 4]uint32 }

// newJournalPage returns a view of mem, which has JournalSize bytes and is aligned: it
// is from mmap or a page-sized allocation.
func newJournalPage(mem []byte) journalPage {
	return journalPage{(*[JournalSize / 4]uint32)(unsafe.Pointer(&mem[:JournalSize][0]))}
}

func (p journalPage) load(i uint32) uint32     { return atomic.LoadUint32(&p.w[i]) }
func (p journalPage) store(i uint32, v uint32) { atomic.StoreUint32(&p.w[i], v) }
func (p journalPage) put(i uint32, v uint32)   { p.w[i] = v }

// rxSlots returns the slots of the rx record.
func (p journalPage) rxSlots() *[netif.RxRingSize]netif.RxSlot {
	return (*[netif.RxRingSize]netif.RxSlot)(unsafe.Pointer(&p.w[jRxSlots]))
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"unsafe"

	"github.com/netbackd/netbackd/pkg/netif"
)

// journalPage is a journal's memory as words. Unlike a ring it is ours alone:
// atomic stores are there to keep the order of stores, which is the order a
// successor sees, whatever instruction the daemon was killed at.
type journalPage struct{ w *[JournalSize / 4]uint32 }

// newJournalPage views mem, which is JournalSize octets and, coming from mmap
// or from a page-sized allocation, aligned.
func newJournalPage(mem []byte) journalPage {
	return journalPage{(*[JournalSize / 4]uint32)(unsafe.Pointer(&mem[:JournalSize][0]))}
}

func (p journalPage) load(i uint32) uint32     { return atomic.LoadUint32(&p.w[i]) }
func (p journalPage) store(i uint32, v uint32) { atomic.StoreUint32(&p.w[i], v) }
func (p journalPage) put(i uint32, v uint32)   { p.w[i] = v }

// rxSlots is where the slots of the rx record are.
func (p journalPage) rxSlots() *[netif.RxRingSize]netif.RxSlot {
	return (*[netif.RxRingSize]netif.RxSlot)(unsafe.Pointer(&p.w[jRxSlots]))
}

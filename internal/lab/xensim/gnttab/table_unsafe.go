// SPDX-License-Identifier: Apache-2.0

package gnttab

import (
	"unsafe"

	"github.com/netbackd/netbackd/pkg/xen"
)

// The words of an entry, for sync/atomic: the other side uses them, too.

func (t Table) head(ref xen.Gref) *uint32 {
	b := t[int(ref)*EntrySize:][:EntrySize]
	return (*uint32)(unsafe.Pointer(&b[0]))
}

func (t Table) frame(ref xen.Gref) *uint32 {
	b := t[int(ref)*EntrySize:][:EntrySize]
	return (*uint32)(unsafe.Pointer(&b[4]))
}

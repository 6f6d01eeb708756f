// SPDX-License-Identifier: Apache-2.0

// Package gnttab is the layout of a version 1 grant table and the ways in which
// its two sides, a domain and its hypervisor, may change it at the same time.
//
// A grant table is an array of 8-byte entries in the granting domain's own
// memory, struct grant_entry_v1 of xen/include/public/grant_table.h:
//
//	offset 0  u16 flags   GTF_*
//	offset 2  u16 domid   domain that may use the page
//	offset 4  u32 frame   number of the page
//
// The domain writes frame and domid, then flags. The hypervisor changes only
// GTF_reading and GTF_writing, which mark the page as in use: the domain must not revoke
// the grant then. Flags and domid are one 32-bit word, which both sides change with
// compare-and-swap.
//
// The package reads and changes the words. It does not check whether a change is allowed:
// that is up to the hypervisor and to guests, well-behaved and hostile.
package gnttab

import (
	"sync/atomic"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Sizes.
const (
	EntrySize     = 8
	FrameSize     = 4096
	RefsPerFrame  = FrameSize / EntrySize
	ReservedRefs  = 8 // GNTTAB_NR_RESERVED_ENTRIES: the first are the toolstack's
	wordFlagsMask = 0xffff
)

// References that the toolstack fills in when it builds a domain, so that dom0 can
// have those pages before the domain runs.
const (
	ConsoleRef  = 0 // GNTTAB_RESERVED_CONSOLE
	XenstoreRef = 1 // GNTTAB_RESERVED_XENSTORE
)

// Flags of an entry.
const (
	PermitAccess uint16 = 1      // GTF_permit_access
	TypeMask     uint16 = 3      // GTF_type_mask
	ReadOnly     uint16 = 1 << 2 // GTF_readonly
	Reading      uint16 = 1 << 3 // GTF_reading
	Writing      uint16 = 1 << 4 // GTF_writing
	SubPage      uint16 = 1 << 8 // GTF_sub_page
)

// Entry is an entry as a value.
type Entry struct {
	Flags uint16
	Domid xen.Domid // domain that may use the page
	Frame uint32    // number of the page
}

// Head is the word of an entry that holds its flags and its domid.
type Head uint32

// Flags returns the flags in h.
func (h Head) Flags() uint16 { return uint16(h) }

// Domid returns the domid in h.
func (h Head) Domid() xen.Domid { return xen.Domid(h >> 16) }

// With returns h with flags set.
func (h Head) With(flags uint16) Head { return h | Head(flags) }

// Table is a grant table: its frames, side by side. A reference beyond it
// panics.
type Table []byte

// Len returns the number of references in the table.
func (t Table) Len() int { return len(t) / EntrySize }

// Head reads flags and domid of an entry, once.
func (t Table) Head(ref xen.Gref) Head { return Head(atomic.LoadUint32(t.head(ref))) }

// Frame reads the frame of an entry, once.
func (t Table) Frame(ref xen.Gref) uint32 { return atomic.LoadUint32(t.frame(ref)) }

// Entry reads an entry, its two words one after the other.
func (t Table) Entry(ref xen.Gref) Entry {
	h := t.Head(ref)
	return Entry{Flags: h.Flags(), Domid: h.Domid(), Frame: t.Frame(ref)}
}

// Swap changes flags and domid if they are still old.
func (t Table) Swap(ref xen.Gref, old, to Head) bool {
	return atomic.CompareAndSwapUint32(t.head(ref), uint32(old), uint32(to))
}

// Clear clears flags.
func (t Table) Clear(ref xen.Gref, flags uint16) {
	atomic.AndUint32(t.head(ref), ^uint32(flags))
}

// Set writes an entry as a domain does: the frame first, the flags last.
func (t Table) Set(ref xen.Gref, e Entry) {
	atomic.StoreUint32(t.frame(ref), e.Frame)
	atomic.StoreUint32(t.head(ref), uint32(e.Domid)<<16|uint32(e.Flags))
}

// Revoke ends a grant as a domain does (gnttab_end_foreign_access_ref), unless the page is
// in use. It reports whether the grant has ended.
func (t Table) Revoke(ref xen.Gref) bool {
	for {
		h := t.Head(ref)
		if h.Flags()&(Reading|Writing) != 0 {
			return false
		}
		if t.Swap(ref, h, h&^wordFlagsMask) {
			return true
		}
	}
}

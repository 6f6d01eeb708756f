// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// DefaultLimit is the default limit of a table: the buffers of a whole tx and a whole
// rx ring.
const DefaultLimit = netif.TxRingSize + netif.RxRingSize

// maxLimit is the number of items that 16 bits can number.
const maxLimit = 1 << 16

// Page is a granted page. The guest may write it at any time, so data is copied out of
// it once and then checked. No call may keep the page after it has returned: unmapping
// does not wait for users.
type Page = [netif.PageSize]byte

// Grant is the result of a look-up.
type Grant struct {
	Page *Page // nil: not a static grant
	item uint16
	// ReadOnly: writing the page is a fault. Such a grant is for guest tx. An rx
	// request that names it is answered with an error.
	ReadOnly bool
}

// A multiplication maps a gref to its home slot. The gref is stored there, or in the
// next slot of its probe sequence that was empty. At most a quarter of the slots are
// taken. The multiplier is random, so a frontend cannot choose grefs that collide. It
// is replaced if grefs collide by chance: none is farther than maxProbe steps from
// home, unless maxSeeds multipliers in a row were bad.
//
// Most frontends grant pages with consecutive grefs and use them in that order. Eight
// such grefs share a block of slots, and so its cache lines: after a large packet has
// displaced them from the cache, they are fetched once for several look-ups. The next
// slot of a probe sequence is in the next block, so that two neighbouring blocks do
// not fill each other.
const (
	minSlots = 64
	maxLoad  = 4 // slots per grant
	maxProbe = 7
	maxSeeds = 32

	inBlock = 7                  // the bits of a gref, and of a slot, within a block
	stride  = inBlock + 2        // from a slot to the next; odd, so the sequence reaches all slots
	inverse = 0x8e38e38e38e38e39 // of stride: a distance times this is the number of steps
)

type slot struct {
	page *Page // nil: empty
	ref  xen.Gref
	item uint16
	ro   bool
}

// item holds the data of a grant that look-ups do not need. It keeps its index while it
// is mapped.
type item struct {
	mapping mapping // zero: the item is free
	ref     xen.Gref
	ro      bool
}

// Table holds the static grants of one queue. Its zero value is empty and has room
// for [DefaultLimit]. It belongs to the queue's worker.
type Table struct {
	limit int    // 0: DefaultLimit
	slots []slot // a power of two of them, or none
	mult  uint64
	shift uint8
	n     int
	items []item
	free  []uint16
}

// New makes a table for limit grants, from 1 to 65536.
func New(limit int) *Table {
	return &Table{limit: min(max(limit, 1), maxLimit)}
}

// Limit returns the largest number of grants of the table
// (XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE). It does not change. Any goroutine
// may call Limit.
func (t *Table) Limit() int {
	if t.limit == 0 {
		return DefaultLimit
	}
	return t.limit
}

// Len returns the number of grants in the table.
func (t *Table) Len() int { return t.n }

// Lookup finds a gref. Its Page is nil if there is none.
func (t *Table) Lookup(ref xen.Gref) (g Grant) {
	slots := t.slots
	if len(slots) == 0 {
		return g
	}
	for i := t.home(ref); ; i += stride {
		s := &slots[i&uint64(len(slots)-1)]
		if s.page == nil {
			return g
		}
		if s.ref == ref {
			return Grant{Page: s.page, item: s.item, ReadOnly: s.ro}
		}
	}
}

// home returns the home slot of a gref. The highest bits of the product, which depend
// on all bits of both factors, choose the block. The bits below and the lowest bits of
// the gref choose the slot in it, so that consecutive grefs have different slots.
func (t *Table) home(ref xen.Gref) uint64 {
	return uint64(ref/(inBlock+1))*t.mult>>(t.shift&63) ^ uint64(ref&inBlock)
}

// steps returns the number of steps from slot from to slot i in the probe sequence.
func (t *Table) steps(from, i uint64) uint64 {
	return (i - from) * inverse & uint64(len(t.slots)-1)
}

// Commit puts all of p into the table, or none of it and returns an error. Grants that
// were refused, or never committed, are unmapped by the control side with
// [Prepared.Unmap].
func (t *Table) Commit(p *Prepared) error {
	if n := t.n + len(p.grants); n > t.Limit() {
		return fmt.Errorf("staticgrant: %w: %d and %d of %d", ErrFull, t.n, len(p.grants), t.Limit())
	}
	for i := range p.grants {
		if e := &p.grants[i]; t.Lookup(e.ref).Page != nil {
			return &Error{Index: e.index, Ref: e.ref, Err: ErrDuplicate}
		}
	}
	grants := p.grants
	p.grants = nil // they belong to the table
	t.n += len(grants)
	fits := t.n*maxLoad <= len(t.slots)
	for i := range grants {
		id := t.newItem(&grants[i])
		fits = fits && t.place(id) <= maxProbe
	}
	if !fits {
		t.spread()
	}
	return nil
}

func (t *Table) newItem(e *prepared) uint16 {
	it := item{mapping: e.mapping, ref: e.ref, ro: e.ro}
	if n := len(t.free); n > 0 {
		id := t.free[n-1]
		t.free = t.free[:n-1]
		t.items[id] = it
		return id
	}
	t.items = append(t.items, it)
	return uint16(len(t.items) - 1)
}

// place puts an item into the first empty slot from its home on and returns the number
// of steps.
func (t *Table) place(id uint16) (distance int) {
	it := &t.items[id]
	mask := uint64(len(t.slots) - 1)
	i := t.home(it.ref)
	for t.slots[i&mask].page != nil {
		i += stride
		distance++
	}
	t.slots[i&mask] = slot{page: it.mapping.page, ref: it.ref, item: id, ro: it.ro}
	return distance
}

// spread puts all items into slots again, in a larger array if necessary, with a
// multiplier that spreads them well.
func (t *Table) spread() {
	size := minSlots
	for size < t.n*maxLoad {
		size *= 2
	}
	if size > len(t.slots) {
		t.slots = make([]slot, size)
		t.shift = uint8(64 - bits.TrailingZeros(uint(size)))
	}
	for range maxSeeds {
		clear(t.slots)
		t.mult = rand.Uint64() | 1
		worst := 0
		for id := range t.items {
			if t.items[id].mapping.page != nil {
				worst = max(worst, t.place(uint16(id)))
			}
		}
		if worst <= maxProbe {
			return
		}
	}
}

// Detach takes the grants that list names out of the table, and writes the status
// of each entry into list. The worker must have finished with their pages. The list
// belongs to the result from then on; the statuses count when [Removed.Unmap] has
// returned.
func (t *Table) Detach(list []netif.GrefEntry) *Removed {
	r := &Removed{list: list, out: make([]removed, 0, min(len(list), t.n))}
	for i := range list {
		g := t.Lookup(list[i].Ref)
		if g.Page == nil {
			list[i].Status = uint16(netif.CtrlInvalidParameter)
			continue
		}
		list[i].Status = uint16(netif.CtrlSuccess)
		r.out = append(r.out, removed{index: i, mapping: t.items[g.item].mapping})
		t.unplace(list[i].Ref)
		t.items[g.item] = item{}
		t.free = append(t.free, g.item)
		t.n--
	}
	return r
}

// unplace empties the slot of a gref that is in the table, and closes the gap: grefs
// whose probe sequence passed the slot move nearer to their home.
func (t *Table) unplace(ref xen.Gref) {
	mask := uint64(len(t.slots) - 1)
	gap := t.home(ref) & mask
	for t.slots[gap].ref != ref || t.slots[gap].page == nil {
		gap = (gap + stride) & mask
	}
	for i := (gap + stride) & mask; t.slots[i].page != nil; i = (i + stride) & mask {
		if t.steps(t.home(t.slots[i].ref), i) >= t.steps(gap, i) {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = slot{}
}

// Snapshot lists the grants in the table, in the form of the messages that added them,
// for [Source.Restore].
func (t *Table) Snapshot() []netif.GrefEntry {
	list := make([]netif.GrefEntry, 0, t.n)
	for i := range t.items {
		it := &t.items[i]
		if it.mapping.page == nil {
			continue
		}
		e := netif.GrefEntry{Ref: it.ref}
		if it.ro {
			e.Flags = netif.GrefReadOnly
		}
		list = append(list, e)
	}
	return list
}

// Close unmaps everything. The worker must have let go of the table; any goroutine
// may then close it. The table is empty afterwards.
func (t *Table) Close() error {
	var errs []error
	for i := range t.items {
		if t.items[i].mapping.page != nil {
			errs = append(errs, t.items[i].mapping.unmap())
		}
	}
	*t = Table{limit: t.limit}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Table is the memory that a front end shares. It never changes; each message about memory
// makes another one, which shares the mappings of regions that stay.
type Table struct {
	regions []*mapped
	memory  *virtqueue.Memory
	user    []bool // the user range of a region means something
	xen     bool   // some region is Xen's
}

// mapped is a region and what it is mapped with.
type mapped struct {
	Region
	kind   Kind
	bytes  []byte  // Size bytes, nil for KindGrantCopy
	shared Mapping // nil for KindGrantCopy
	grants Grants  // of granted memory
	again  int     // how often the front end added it once more
}

// openRegion maps a region with the descriptor that came with it, which stays the
// caller's.
func openRegion(m Mapper, r Region, fd int) (*mapped, error) {
	kind, err := r.check()
	if err != nil {
		return nil, err
	}
	out := &mapped{Region: r, kind: kind}
	in := r.Guest & pageMask
	pages := int((in + r.Size + pageMask) / pageSize)
	switch kind {
	case KindShared:
		out.shared, err = m.Shared(fd, r.Offset, r.Size)
		in = 0
	case KindForeign:
		if pages > maxForeignPages {
			return nil, fmt.Errorf("%w: %d pages", ErrRegionRange, pages)
		}
		out.shared, err = m.Foreign(fd, xen.Domid(r.Domid), r.Guest/pageSize, pages)
	default:
		if out.grants, err = m.Grants(fd); err == nil && kind == KindGrant {
			out.shared, err = mapGrants(out.grants, &r, r.Guest, r.Size)
		}
	}
	if err != nil {
		return nil, errors.Join(err, out.close())
	}
	if out.shared != nil {
		out.bytes = out.shared.Bytes()[in:][:r.Size:r.Size]
	}
	return out, nil
}

// mapGrants maps the pages of n bytes at a guest address.
func mapGrants(g Grants, r *Region, addr, n uint64) (Mapping, error) {
	first, pages, err := grefs(addr, n)
	if err != nil {
		return nil, err
	}
	if pages > gntdev.MaxRefs {
		return nil, fmt.Errorf("%w: %d grants", ErrRegionRange, pages)
	}
	m, err := g.Map(xen.Domid(r.Domid), run(first, pages), gntdev.ReadWrite)
	if err != nil {
		return nil, err // not m: a nil *gntdev.Mapping is no nil Mapping
	}
	return m, nil
}

// close undoes openRegion.
func (m *mapped) close() error {
	var errs []error
	if m.shared != nil {
		errs = append(errs, m.shared.Unmap())
	}
	if m.grants != nil {
		errs = append(errs, m.grants.Close())
	}
	return errors.Join(errs...)
}

// newTable makes a table of mapped regions.
func newTable(regions []*mapped) (*Table, error) {
	t := &Table{regions: regions}
	if len(regions) > maxRegions {
		return nil, ErrRegionCount
	}
	out := make([]virtqueue.Region, len(regions))
	t.user = make([]bool, len(regions))
	for i, r := range regions {
		out[i] = virtqueue.Region{Addr: r.Guest, Size: r.Size, Mem: r.bytes, Tag: uint32(i)}
		t.xen = t.xen || r.kind != KindShared
		t.user[i] = r.kind != KindGrantCopy
	}
	err := t.checkUser()
	if err != nil {
		return nil, err
	}
	if t.memory, err = virtqueue.NewMemory(out...); errors.Is(err, virtqueue.ErrRegionOverlap) {
		err = ErrRegionOverlap
	}
	return t, err
}

// checkUser compares the user ranges of regions. Those of regions that are not mapped in
// advance are all 0. A front end for foreign memory need not give any: what overlaps there
// means nothing. Others must not overlap.
func (t *Table) checkUser() error {
	for i, r := range t.regions {
		for k, o := range t.regions[:i] {
			if r.kind == KindGrantCopy || o.kind == KindGrantCopy || r.User-o.User >= o.Size && o.User-r.User >= r.Size {
				continue
			}
			if r.kind != KindForeign || o.kind != KindForeign {
				return ErrRegionOverlap
			}
			t.user[i], t.user[k] = false, false
		}
	}
	return nil
}

// Memory returns the table for queues. The Tag of a piece is for [Table.Region].
func (t *Table) Memory() *virtqueue.Memory { return t.memory }

// Len is the number of regions.
func (t *Table) Len() int { return len(t.regions) }

// Region returns region number tag, how it is reached, and the device for its grants, nil
// if it has none.
func (t *Table) Region(tag uint32) (Region, Kind, Grants) {
	r := t.regions[tag]
	return r.Region, r.kind, r.grants
}

// Part is a part of a ring in memory.
type Part struct {
	Mem []byte
	// Guest is the guest address, for the log of dirty pages.
	Guest uint64

	mapping Mapping // of this part alone, else nil
}

// release unmaps what was mapped for the part alone.
func (p *Part) release() error {
	if p.mapping == nil {
		return nil
	}
	m := p.mapping
	*p = Part{}
	return m.Unmap()
}

// Find returns n bytes at an address of SET_VRING_ADDR. That is a user address; some
// regions of Xen have none. If no region has it and some are Xen's, it is a
// guest address: front ends for grants and for foreign memory send these. The bytes must be
// in one region. Pages of a region that is not mapped are mapped for them.
func (t *Table) Find(addr, n uint64) (Part, error) {
	for i, r := range t.regions {
		if t.user[i] && addr-r.User < r.Size {
			return r.part(r.Guest+(addr-r.User), n)
		}
	}
	if t.xen {
		for _, r := range t.regions {
			if addr-r.Guest < r.Size {
				return r.part(addr, n)
			}
		}
	}
	return Part{}, fmt.Errorf("%w: %#x", ErrAddress, addr)
}

// part returns n bytes at a guest address in the region.
func (m *mapped) part(guest, n uint64) (Part, error) {
	off := guest - m.Guest
	if n > m.Size-off {
		return Part{}, fmt.Errorf("%w: %d bytes at %#x pass the end of the region", ErrAddress, n, guest)
	}
	if m.kind != KindGrantCopy {
		return Part{Mem: m.bytes[off:][:n:n], Guest: guest}, nil
	}
	pages, err := mapGrants(m.grants, &m.Region, guest, n)
	if err != nil {
		return Part{}, err
	}
	return Part{Mem: pages.Bytes()[guest&pageMask:][:n:n], Guest: guest, mapping: pages}, nil
}

// build maps regions of a message and makes a table of them and those to keep. If it fails
// nothing stays mapped that was not before.
func build(m Mapper, keep []*mapped, regions []Region, files []int) (*Table, error) {
	all := slices.Clone(keep)
	fail := func(err error) (*Table, error) {
		for _, r := range all[len(keep):] {
			err = errors.Join(err, r.close())
		}
		return nil, err
	}
	if len(files) != len(regions) {
		return nil, ErrFiles
	}
	if len(keep)+len(regions) > maxRegions {
		return nil, ErrRegionCount
	}
	for i, r := range regions {
		one, err := openRegion(m, r, files[i])
		if err != nil {
			return fail(fmt.Errorf("region %d: %w", i, err))
		}
		all = append(all, one)
	}
	t, err := newTable(all)
	if err != nil {
		return fail(err)
	}
	return t, nil
}

// find returns the region that r names, by its addresses and size, nil if there is none.
func (t *Table) find(r Region) *mapped {
	for _, o := range t.regions {
		if o.Guest == r.Guest && o.User == r.User && o.Size == r.Size {
			return o
		}
	}
	return nil
}

// without returns the regions but one.
func (t *Table) without(r *mapped) (keep []*mapped) {
	for _, o := range t.regions {
		if o != r {
			keep = append(keep, o)
		}
	}
	return keep
}

// closeUnless unmaps the regions of t that next, which may be nil, does not have.
func (t *Table) closeUnless(next *Table) error {
	var errs []error
	for _, r := range t.regions {
		if next == nil || !slices.Contains(next.regions, r) {
			errs = append(errs, r.close())
		}
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// MaxList is the largest number of entries of a list: a page of them.
const MaxList = netif.PageSize / 8

// Mapper maps pages of a guest. *gntdev.Device is one.
type Mapper interface {
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Source maps the grants of a guest. Several goroutines may use it if they may use its
// Mapper.
type Source struct {
	Mapper Mapper
	Domid  xen.Domid
	Budget *Budget // nil: without bounds
}

// mapping is one page and the budget it is charged to.
type mapping struct {
	page   *Page
	of     *gntdev.Mapping
	budget *Budget
}

// unmap unmaps the page. A page that cannot be unmapped stays charged, because it still
// takes the resources that the budget bounds.
func (m *mapping) unmap() error {
	if err := m.of.Unmap(); err != nil {
		return err
	}
	m.budget.give(1)
	return nil
}

// prepared is a grant that is mapped and not in a table yet.
type prepared struct {
	mapping mapping
	ref     xen.Gref
	index   int // in the list
	ro      bool
}

// Prepared holds grants that are mapped and not in a table yet.
type Prepared struct{ grants []prepared }

// Prepare checks the list of an ADD_GREF_MAPPING and maps each of its grefs. If
// one cannot be mapped, none stays mapped. Prepare does not read the statuses in the
// list.
//
// Mapping a page that the guest has paged out may block for half a minute. Prepare
// checks ctx between any two pages.
//
// Linux places each mapping right below the one before. Prepare maps the pages from
// the last to the first, so that they are in the order of the list in memory. Then a
// packet in several of them can be written to a TAP in one piece.
func (s *Source) Prepare(ctx context.Context, list []netif.GrefEntry) (*Prepared, error) {
	if len(list) > MaxList {
		return nil, fmt.Errorf("staticgrant: %w: %d entries", ErrTooLong, len(list))
	}
	if err := check(list); err != nil {
		return nil, err
	}
	if !s.Budget.take(len(list)) {
		return nil, fmt.Errorf("staticgrant: %w: no room for %d", ErrBudget, len(list))
	}
	p := &Prepared{grants: make([]prepared, 0, len(list))}
	for i := len(list) - 1; i >= 0; i-- {
		g, err := s.prepare(ctx, i, list[i])
		if err != nil {
			s.Budget.give(i + 1)
			return nil, errors.Join(err, p.Unmap())
		}
		p.grants = append(p.grants, g)
	}
	slices.Reverse(p.grants)
	return p, nil
}

// check returns the first fault that the list itself has.
func check(list []netif.GrefEntry) error {
	seen := make(map[xen.Gref]struct{}, len(list))
	for i, e := range list {
		if e.Flags&^netif.GrefReadOnly != 0 {
			return &Error{Index: i, Ref: e.Ref, Err: fmt.Errorf("%w %#x", ErrFlags, e.Flags)}
		}
		if _, twice := seen[e.Ref]; twice {
			return &Error{Index: i, Ref: e.Ref, Err: ErrDuplicate}
		}
		seen[e.Ref] = struct{}{}
	}
	return nil
}

// prepare maps one gref on its own, so that it can be unmapped on its own.
func (s *Source) prepare(ctx context.Context, index int, e netif.GrefEntry) (g prepared, err error) {
	fail := func(err error) (prepared, error) {
		return g, &Error{Index: index, Ref: e.Ref, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	ro := e.Flags&netif.GrefReadOnly != 0
	prot := gntdev.ReadWrite
	if ro {
		prot = gntdev.ReadOnly
	}
	m, err := s.Mapper.Map(s.Domid, []xen.Gref{e.Ref}, prot)
	if err != nil {
		return fail(err)
	}
	b := m.Bytes()
	if len(b) != netif.PageSize {
		return fail(errors.Join(fmt.Errorf("mapping has %d bytes", len(b)), m.Unmap()))
	}
	return prepared{
		mapping: mapping{page: (*Page)(b), of: m, budget: s.Budget},
		ref:     e.Ref, index: index, ro: ro,
	}, nil
}

// Restore maps the grants that [Table.Snapshot] has listed in a process that has
// ended. It leaves out a gref that cannot be mapped any more, and returns an error as
// well. Requests of the guest that name such a gref are copied like any other.
func (s *Source) Restore(ctx context.Context, list []netif.GrefEntry) (*Prepared, error) {
	p := &Prepared{}
	var first error
	lost := 0
	lose := func(err error) {
		if lost++; first == nil {
			first = err
		}
	}
	seen := make(map[xen.Gref]struct{}, len(list))
	for i, e := range slices.Backward(list) {
		if _, twice := seen[e.Ref]; twice {
			lose(&Error{Index: i, Ref: e.Ref, Err: ErrDuplicate})
			continue
		}
		seen[e.Ref] = struct{}{}
		if !s.Budget.take(1) {
			lose(&Error{Index: i, Ref: e.Ref, Err: ErrBudget})
			continue
		}
		g, err := s.prepare(ctx, i, e)
		if err != nil {
			s.Budget.give(1)
			lose(err)
			continue
		}
		p.grants = append(p.grants, g)
	}
	slices.Reverse(p.grants)
	if lost > 0 {
		return p, fmt.Errorf("%d of %d static grants not restored: %w", lost, len(list), first)
	}
	return p, nil
}

// Len returns the number of grants that are prepared and not in a table.
func (p *Prepared) Len() int { return len(p.grants) }

// Unmap unmaps the grants that are not in a table. After a [Table.Commit] that
// succeeded it does nothing. The goroutine that calls it must have seen Commit
// return.
func (p *Prepared) Unmap() error {
	var errs []error
	for i := range p.grants {
		errs = append(errs, p.grants[i].mapping.unmap())
	}
	p.grants = nil
	return errors.Join(errs...)
}

type removed struct {
	index   int
	mapping mapping
}

// Removed holds grants that were taken out of a table and are still mapped.
type Removed struct {
	list []netif.GrefEntry
	out  []removed
}

// Unmap unmaps them and returns their number. An entry whose page could not be
// unmapped gets another status: the guest must not use that page for other things.
func (r *Removed) Unmap() (n int, err error) {
	var errs []error
	for i := range r.out {
		if err := r.out[i].mapping.unmap(); err != nil {
			r.list[r.out[i].index].Status = uint16(netif.CtrlInvalidParameter)
			errs = append(errs, err)
			continue
		}
		n++
	}
	r.out = nil
	return n, errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrInUse is the error of ending a grant whose page another domain has mapped.
var ErrInUse = errors.New("the page is in use")

// reserved is the number of grefs that belong to the toolstack, the lowest ones
// (GNTTAB_NR_RESERVED_ENTRIES).
const reserved xen.Gref = 8

// grant is an entry of the grant table. It stays when the grant is revoked, as an empty
// entry.
type grant struct {
	live  bool
	to    xen.Domid
	page  int
	prot  gntdev.Prot
	uses  int  // mapped now
	freed bool // to be revoked after its last use
}

// Grant grants domain 0 a zeroed page at the lowest free gref, but at none of those
// from 0 to 7, which belong to the toolstack.
func (g *Guest) Grant(prot gntdev.Prot) (ref xen.Gref, page []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ref = g.freeRef()
	return ref, g.grant(xen.Dom0, ref, 1, prot)
}

// GrantAt is Grant at a gref of the caller's choice. From 0 to 7 it plays the
// toolstack. It panics if the gref is granted already.
func (g *Guest) GrantAt(ref xen.Gref, prot gntdev.Prot) (page []byte) {
	return g.GrantRun(ref, 1, prot)
}

// GrantRun grants domain 0 n zeroed pages side by side, at the grefs from first on.
func (g *Guest) GrantRun(first xen.Gref, n int, prot gntdev.Prot) (pages []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grant(xen.Dom0, first, n, prot)
}

// grant allocates and grants pages. The caller holds mu.
func (g *Guest) grant(to xen.Domid, first xen.Gref, n int, prot gntdev.Prot) []byte {
	p := g.mem.alloc(n)
	for i := range n {
		ref := first + xen.Gref(i)
		if old := g.grants[ref]; old != nil && old.live {
			panic(fmt.Sprintf("xentest: gref %d is granted already", ref))
		}
		g.grants[ref] = &grant{live: true, to: to, page: p + i, prot: prot}
	}
	return g.mem.page(p, n)
}

// freeRef returns the lowest gref that Grant may use. The caller holds mu.
func (g *Guest) freeRef() xen.Gref {
	for g.lookup(g.nextRef) != nil {
		g.nextRef++
	}
	return g.nextRef
}

// lookup returns the grant at ref, nil if there is none. The caller holds mu.
func (g *Guest) lookup(ref xen.Gref) *grant {
	if e := g.grants[ref]; e != nil && e.live {
		return e
	}
	return nil
}

// Revoke ends a grant and frees its page. As gnttab_end_foreign_access_ref of Linux it
// fails with [ErrInUse] while the page is mapped. Without a grant it does nothing.
func (g *Guest) Revoke(ref xen.Gref) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.lookup(ref)
	switch {
	case e == nil:
	case e.uses > 0:
		return fmt.Errorf("xentest: revoke gref %d: %w", ref, ErrInUse)
	default:
		g.end(ref, e)
	}
	return nil
}

// end empties the entry of a grant that is not in use. The caller holds mu.
func (g *Guest) end(ref xen.Gref, e *grant) {
	g.mem.release(e.page)
	e.live = false
	g.nextRef = max(reserved, min(g.nextRef, ref))
}

// SetProt grants the page of a gref anew, with other rights. It fails with [ErrInUse]
// while the page is mapped.
func (g *Guest) SetProt(ref xen.Gref, prot gntdev.Prot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch e := g.lookup(ref); {
	case e == nil:
		return fmt.Errorf("xentest: gref %d: %w", ref, gntdev.StatusBadGntref)
	case e.uses > 0:
		return fmt.Errorf("xentest: gref %d: %w", ref, ErrInUse)
	default:
		e.prot = prot
	}
	return nil
}

// Page returns the page behind a gref as the guest sees it, nil if it is not granted.
func (g *Guest) Page(ref xen.Gref) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.lookup(ref); e != nil {
		return g.mem.page(e.page, 1)
	}
	return nil
}

// Memory returns all memory of the guest. Pages stand in it in the order in which they
// were granted, as long as none is granted after a revocation.
func (g *Guest) Memory() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mem.bytes[:g.mem.next*pageSize]
}

// InUse reports whether another domain has the page of a gref mapped.
func (g *Guest) InUse(ref xen.Gref) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.lookup(ref)
	return e != nil && e.uses > 0
}

// find returns the grant that domain 0 may use in the given way, with Xen's status if
// there is none. The caller holds mu.
func (g *Guest) find(domid xen.Domid, ref xen.Gref, prot gntdev.Prot) (*grant, gntdev.Status) {
	if domid != g.domid {
		return nil, gntdev.StatusBadDomain
	}
	switch e := g.grants[ref]; {
	case e == nil:
		return nil, gntdev.StatusBadGntref
	case !e.live, e.to != xen.Dom0, prot == gntdev.ReadWrite && e.prot == gntdev.ReadOnly:
		return e, gntdev.StatusGeneralError
	default:
		return e, gntdev.StatusOkay
	}
}

// unuse ends one mapping of a page. The caller holds mu.
func (g *Guest) unuse(ref xen.Gref, e *grant) {
	g.usage.Pages--
	if e.uses--; e.uses == 0 && e.freed {
		g.end(ref, e)
	}
}

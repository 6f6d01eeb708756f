// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Own is a double of [gntalloc.Device], open in domain 0, where the program runs. It puts
// granted pages in the place of the program's memory. A [Gntdev] of any guest copies
// between its guest's pages and these, if they were granted to domain 0.
//
// Its grefs are in use only once, and no guest has the same.
type Own struct {
	limit int

	mu     sync.Mutex
	size   int // pages granted; guarded by mu
	closed bool
	fail   error // of the next AllocAt; guarded by mu
}

// ownGrant is a page that domain 0 has granted.
type ownGrant struct {
	to   xen.Domid
	prot gntdev.Prot
	page []byte // as Xen sees it
}

// ownTable is the grant table of domain 0, which all guests of the process share.
type ownTable struct {
	mu   sync.RWMutex
	next xen.Gref               // never granted, as all above; guarded by mu
	live map[xen.Gref]*ownGrant // guarded by mu
}

// firstOwn is the first gref of domain 0. Guests have lower ones unless a test chooses them.
const firstOwn xen.Gref = 1 << 24

var own = ownTable{next: firstOwn, live: map[xen.Gref]*ownGrant{}}

// StartOwn opens the grant allocation device of domain 0 for the time of a test, with a
// limit of pages as that of xen_gntalloc. Pages that are still granted at the end are an
// error.
func StartOwn(tb TB, limit int) *Own {
	tb.Helper()
	o := NewOwn(limit)
	tb.Cleanup(func() {
		if err := o.Close(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return o
}

// NewOwn opens the device. Tests call [StartOwn].
func NewOwn(limit int) *Own { return &Own{limit: limit} }

// Close closes the device. The error says how many pages are still granted, which stay
// so until their Free.
func (o *Own) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	if o.size > 0 {
		return fmt.Errorf("xentest: left of domain 0: %d pages granted", o.size)
	}
	return nil
}

// Granted returns the number of pages that are granted now.
func (o *Own) Granted() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.size
}

// SetLimit changes the limit, as root may while the module is loaded.
func (o *Own) SetLimit(limit int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limit = limit
}

// FailNext makes the next AllocAt fail. nil takes that back.
func (o *Own) FailNext(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail = err
}

// AllocAt does what [gntalloc.Device.AllocAt] does.
func (o *Own) AllocAt(mem []byte, domid xen.Domid, writable bool) (*gntalloc.Pages, error) {
	n := len(mem) / pageSize
	fail := func(err error) (*gntalloc.Pages, error) {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: err}
	}
	if n < 1 || n > gntalloc.MaxPages || len(mem)%pageSize != 0 || address(mem)%pageSize != 0 {
		return fail(unix.EINVAL)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.fail; err != nil {
		o.fail = nil
		return fail(err)
	}
	switch {
	case o.closed:
		return fail(gntalloc.ErrClosed)
	case o.size+n > o.limit:
		return fail(unix.ENOSPC)
	}
	view, err := replace(mem)
	if err != nil {
		return fail(err)
	}
	prot := gntdev.ReadOnly
	if writable {
		prot = gntdev.ReadWrite
	}
	o.size += n
	refs := own.grant(view, domid, prot)
	return gntalloc.NewPages(mem, refs, func() error { return o.free(mem, view, refs) }), nil
}

// free ends grants and puts anonymous memory back.
func (o *Own) free(mem, view []byte, refs []xen.Gref) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.size -= len(refs)
	for _, ref := range refs {
		own.revoke(ref)
	}
	if err := errors.Join(clearPlace(mem), unmapPages(view)); err != nil {
		return &gntalloc.Error{Op: "free", Pages: len(refs), Err: err}
	}
	return nil
}

// RevokeOwn ends the grant of a page of domain 0 that stays mapped: copies to and from it
// fail from now on.
func RevokeOwn(ref xen.Gref) { own.revoke(ref) }

// grant grants the pages of view.
func (t *ownTable) grant(view []byte, to xen.Domid, prot gntdev.Prot) []xen.Gref {
	t.mu.Lock()
	defer t.mu.Unlock()
	refs := make([]xen.Gref, len(view)/pageSize)
	for i := range refs {
		refs[i] = t.next
		t.live[t.next] = &ownGrant{to: to, prot: prot, page: view[i*pageSize:][:pageSize:pageSize]}
		t.next++
	}
	return refs
}

func (t *ownTable) revoke(ref xen.Gref) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, ref)
}

// find returns the page behind a gref for a copy that domain 0 makes, with Xen's status if
// there is none. The caller holds mu.
func (t *ownTable) find(ref xen.Gref, prot gntdev.Prot) ([]byte, gntdev.Status) {
	switch e := t.live[ref]; {
	case e != nil && e.to == xen.Dom0 && (prot == gntdev.ReadOnly || e.prot == gntdev.ReadWrite):
		return e.page, gntdev.StatusOkay
	case e == nil && (ref < firstOwn || ref >= t.next):
		return nil, gntdev.StatusBadGntref
	default:
		return nil, gntdev.StatusGeneralError
	}
}

// copyOwn carries out a copy between a page of the guest, or of domain 0, and one of domain
// 0. Xen looks for both domains first, then claims the source and then the target. The
// caller holds mu of the guest, and own.mu.
func (g *Guest) copyOwn(s *gntdev.Segment, ref xen.Gref, at uint16) gntdev.Status {
	domid, guestRef, off := s.Foreign()
	toGuest := s.Direction() == gntdev.GuestIsDest
	theirs, ours := gntdev.ReadOnly, gntdev.ReadWrite
	if toGuest {
		theirs, ours = gntdev.ReadWrite, gntdev.ReadOnly
	}
	guest, st := g.claim(domid, guestRef, theirs)
	mine, ownSt := own.find(ref, ours)
	switch {
	case st == gntdev.StatusBadDomain:
		return st
	case toGuest && ownSt != gntdev.StatusOkay:
		return ownSt
	case st != gntdev.StatusOkay:
		return st
	case ownSt != gntdev.StatusOkay:
		return ownSt
	}
	guest, mine = guest[off:int(off)+s.Len()], mine[at:int(at)+s.Len()]
	if toGuest {
		copy(guest, mine)
	} else {
		copy(mine, guest)
	}
	g.counts.OwnCopies++
	return gntdev.StatusOkay
}

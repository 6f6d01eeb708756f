// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Gntalloc is a double of [gntalloc.Device], open in the guest.
type Gntalloc struct {
	g      *Guest
	kept   bool // see Guest.Gntalloc
	closed bool // guarded by g.mu
}

// OpenGntalloc opens the guest's grant allocation device.
func (g *Guest) OpenGntalloc() (*Gntalloc, error) {
	if err := g.check(Call{Op: OpOpenGntalloc, By: g.domid}); err != nil {
		return nil, &gntalloc.Error{Op: "open", Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.usage.Devices++
	return &Gntalloc{g: g}, nil
}

// Gntalloc returns a grant allocation device that is open as long as the guest, for
// tests in which opening and closing it plays no part.
func (g *Guest) Gntalloc() *Gntalloc { return &Gntalloc{g: g, kept: true} }

// Close closes the device. Pages stay granted until their Free. It may be called again,
// which does nothing, as with the device of [Guest.Gntalloc].
func (d *Gntalloc) Close() error {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	if !d.closed && !d.kept {
		d.closed = true
		d.g.usage.Devices--
	}
	return nil
}

// Alloc does what [gntalloc.Device.Alloc] does. As with the device, pages that the
// other domain has mapped when they are freed stay granted until it unmaps them.
func (d *Gntalloc) Alloc(domid xen.Domid, n int, writable bool) (*gntalloc.Pages, error) {
	if n < 1 || n > gntalloc.MaxPages {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: unix.EINVAL,
			Hint: fmt.Sprintf("from 1 to %d pages can be allocated at once", gntalloc.MaxPages)}
	}
	prot := gntdev.ReadOnly
	if writable {
		prot = gntdev.ReadWrite
	}
	g := d.g
	if err := g.check(Call{Op: OpAlloc, By: g.domid, Prot: prot}); err != nil {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if d.closed {
		return nil, &gntalloc.Error{Op: "alloc", Domid: domid, Pages: n, Err: os.ErrClosed}
	}
	refs := make([]xen.Gref, n)
	first := g.mem.alloc(n)
	for i := range refs {
		refs[i] = g.freeRef()
		g.grants[refs[i]] = &grant{live: true, to: domid, page: first + i, prot: prot}
	}
	return gntalloc.NewPages(g.mem.page(first, n), refs, func() error { g.free(refs); return nil }), nil
}

// free revokes grants, those in use after their last use.
func (g *Guest) free(refs []xen.Gref) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ref := range refs {
		e := g.lookup(ref)
		switch {
		case e == nil: // the test revoked it
		case e.uses > 0:
			e.freed = true
		default:
			g.end(ref, e)
		}
	}
}

// InUse reports whether the other domain has the page of a gref mapped, as
// gnttab_query_foreign_access does. The device has no such call.
func (d *Gntalloc) InUse(ref xen.Gref) (bool, error) { return d.g.InUse(ref), nil }

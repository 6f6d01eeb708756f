// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Gntdev is a double of [gntdev.Device], open in domain 0, for the pages of one guest.
// Any other domain is GNTST_bad_domain to it. Its errors are those of the device.
type Gntdev struct {
	g      *Guest
	kept   bool // see Guest.Gntdev
	closed bool // guarded by g.mu
}

// OpenGntdev opens the grant device.
func (g *Guest) OpenGntdev() (*Gntdev, error) {
	if err := g.check(Call{Op: OpOpenGntdev}); err != nil {
		return nil, &gntdev.Error{Op: "open", Index: -1, Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.usage.Devices++
	return &Gntdev{g: g}, nil
}

// Gntdev returns a grant device that is open as long as the guest, for tests in which
// opening and closing it plays no part.
func (g *Guest) Gntdev() *Gntdev { return &Gntdev{g: g, kept: true} }

// Close closes the device. Pages that are mapped stay so until their Unmap. It may be
// called again, which does nothing, as with the device of [Guest.Gntdev].
func (d *Gntdev) Close() error {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	if !d.closed && !d.kept {
		d.closed = true
		d.g.usage.Devices--
	}
	return nil
}

// Copy does what [gntdev.Device.Copy] does: each segment has a status of its own. It
// allocates nothing.
func (d *Gntdev) Copy(segs []gntdev.Segment) error {
	if len(segs) == 0 {
		return nil
	}
	if err := gntdev.Check(segs); err != nil {
		return err
	}
	g := d.g
	g.mu.Lock()
	closed := d.closed
	if !closed {
		g.counts.CopyCalls++
		g.counts.Copies += len(segs)
	}
	g.mu.Unlock()
	if closed {
		return &gntdev.Error{Op: "copy", Index: -1, Err: gntdev.ErrClosed}
	}
	for i := range segs {
		st, err := g.copy(&segs[i])
		if err != nil {
			for k := range segs {
				segs[k].SetStatus(gntdev.StatusGeneralError)
			}
			return &gntdev.Error{Op: "copy", Index: -1, Err: err}
		}
		segs[i].SetStatus(st)
	}
	return nil
}

// copy carries out one segment. An error is one of the whole call.
func (g *Guest) copy(s *gntdev.Segment) (gntdev.Status, error) {
	if s.Len() == 0 {
		return gntdev.StatusOkay, nil // Linux has nothing to pass to Xen
	}
	domid, ref, off := s.Foreign()
	prot := gntdev.ReadOnly
	if s.Direction() == gntdev.GuestIsDest {
		prot = gntdev.ReadWrite
	}
	if err := g.check(Call{Op: OpCopy, Ref: ref, Prot: prot}); err != nil {
		return statusOf(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	own.mu.RLock()
	defer own.mu.RUnlock()
	if own, at, ok := s.Own(); ok {
		return g.copyOwn(s, own, at), nil
	}
	page, st := g.claim(domid, ref, prot)
	if st != gntdev.StatusOkay {
		return st, nil
	}
	return st, move(s, page[off:int(off)+s.Len()])
}

// claim returns the page behind a gref of a domain for a copy, with Xen's status if there
// is none. The caller holds mu, and own.mu.
func (g *Guest) claim(domid xen.Domid, ref xen.Gref, prot gntdev.Prot) ([]byte, gntdev.Status) {
	if domid == xen.DomidSelf {
		return own.find(ref, prot)
	}
	e, st := g.find(domid, ref, prot)
	if st != gntdev.StatusOkay {
		return nil, st
	}
	return g.mem.page(e.page, 1), st
}

// statusOf splits an ordered error into the status of one grant and the error of a
// whole call.
func statusOf(err error) (gntdev.Status, error) {
	var st gntdev.Status
	if errors.As(err, &st) {
		return st, nil
	}
	return gntdev.StatusGeneralError, err
}

// Map does what [gntdev.Device.Map] does. One bad ref fails the whole call.
func (d *Gntdev) Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error) {
	if len(refs) == 0 || len(refs) > gntdev.MaxRefs {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: unix.EINVAL,
			Hint: fmt.Sprintf("%d refs: from 1 to %d can be mapped at once", len(refs), gntdev.MaxRefs)}
	}
	g := d.g
	g.mu.Lock()
	closed := d.closed
	if !closed {
		g.counts.MapCalls++
	}
	g.mu.Unlock()
	if closed {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: gntdev.ErrClosed}
	}
	for i, ref := range refs {
		if err := g.check(Call{Op: OpMap, Ref: ref, Prot: prot}); err != nil {
			st, err := statusOf(err)
			if err != nil {
				return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
			}
			return nil, mapError(i, domid, ref, st)
		}
	}
	return g.mapRefs(domid, slices.Clone(refs), prot)
}

func (g *Guest) mapRefs(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pages, entries := make([]int, len(refs)), make([]*grant, len(refs))
	for i, ref := range refs {
		e, st := g.find(domid, ref, prot)
		if st != gntdev.StatusOkay {
			if _, ro := g.find(domid, ref, gntdev.ReadOnly); ro == gntdev.StatusOkay {
				st = gntdev.StatusPermissionDenied // as the device finds out
			}
			return nil, mapError(i, domid, ref, st)
		}
		pages[i], entries[i] = e.page, e
	}
	mem, err := mapPages(g.mem.fd, pages, prot)
	if err != nil {
		return nil, &gntdev.Error{Op: "map", Index: -1, Domid: domid, Err: err}
	}
	g.usage.Pages += len(refs)
	for _, e := range entries {
		e.uses++
	}
	return gntdev.NewMapping(mem, func() error { return g.unmap(refs, entries, mem) }), nil
}

// unmap is Unmap of a mapping. A fault that was ordered does not keep the pages mapped.
func (g *Guest) unmap(refs []xen.Gref, entries []*grant, mem []byte) error {
	var errs []error
	for _, ref := range refs {
		errs = append(errs, g.check(Call{Op: OpUnmap, Ref: ref}))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	errs = append(errs, unmapPages(mem))
	for i, ref := range refs {
		g.unuse(ref, entries[i])
	}
	if err := errors.Join(errs...); err != nil {
		return &gntdev.Error{Op: "unmap", Index: -1, Err: err}
	}
	return nil
}

func mapError(i int, domid xen.Domid, ref xen.Gref, st gntdev.Status) error {
	e := &gntdev.Error{Op: "map", Index: i, Domid: domid, Ref: ref, Status: st, Err: unix.EINVAL}
	if st == gntdev.StatusPermissionDenied {
		e.Hint = "the guest granted this page read-only"
	}
	return e
}

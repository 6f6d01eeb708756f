// SPDX-License-Identifier: Apache-2.0

package blkcases

import (
	"errors"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
)

// pages are the pages of a world, which it owns.
type pages struct {
	sets []*gntalloc.Pages
}

// alloc returns n pages that are granted to a domain.
func (p *pages) alloc(host xenfront.Pages, peer xen.Domid, n int, writable bool) ([]Page, error) {
	set, err := host.Alloc(peer, n, writable)
	if err != nil {
		return nil, err
	}
	p.sets = append(p.sets, set)
	l := make([]Page, n)
	for i, g := range set.Refs() {
		l[i] = Page{g, set.Bytes()[i*blkif.PageSize : (i+1)*blkif.PageSize]}
	}
	return l, nil
}

func (p *pages) free() error {
	var errs []error
	for _, s := range p.sets {
		errs = append(errs, s.Free())
	}
	p.sets = nil
	return errors.Join(errs...)
}

// makeWorld makes the pages of a world for a backend in domain peer. Pages of the domain
// other are no use to it.
func makeWorld(host xenfront.Pages, peer, other xen.Domid, limits blkif.Limits) (w *World, p *pages, err error) {
	w, p = &World{Limits: limits}, &pages{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.free())
		}
	}()
	if w.Pages, err = p.alloc(host, peer, DataPages, true); err != nil {
		return nil, nil, err
	}
	if w.Indirect, err = p.alloc(host, peer, blkif.MaxIndirectPages, true); err != nil {
		return nil, nil, err
	}
	single := func(to xen.Domid, writable bool) (Page, error) {
		l, err := p.alloc(host, to, 1, writable)
		if err != nil {
			return Page{}, err
		}
		return l[0], nil
	}
	if w.Const, err = single(peer, false); err != nil {
		return nil, nil, err
	}
	if w.Foreign, err = single(other, true); err != nil {
		return nil, nil, err
	}
	gone, err := host.Alloc(peer, 1, true)
	if err != nil {
		return nil, nil, err
	}
	w.Freed = gone.Refs()[0]
	if err = gone.Free(); err != nil {
		return nil, nil, err
	}
	return w, p, nil
}

// LimitsOf returns the limits that a backend has published.
func LimitsOf(o blkfront.Offers) blkif.Limits {
	return blkif.Limits{
		Sectors:     o.Sectors,
		BlockSize:   uint16(o.SectorSize),
		MaxSegments: uint16(o.MaxIndirect),
		ReadOnly:    o.Info&blkif.InfoReadOnly != 0,
		Discard:     o.Discard,
		Secure:      o.Secure,
	}
}

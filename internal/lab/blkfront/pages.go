// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Page is a granted page.
type Page struct {
	Gref xen.Gref
	Mem  []byte
	pool *pool
}

// pool is a set of granted pages.
type pool struct {
	pages *gntalloc.Pages
	free  []Page
}

func newPool(h xenfront.Pages, peer xen.Domid, n int, writable bool) (*pool, error) {
	p, err := h.Alloc(peer, n, writable)
	if err != nil {
		return nil, err
	}
	l := &pool{pages: p}
	mem := p.Bytes()
	for i, ref := range p.Refs() {
		l.free = append(l.free, Page{ref, mem[i*blkif.PageSize : (i+1)*blkif.PageSize : (i+1)*blkif.PageSize], l})
	}
	return l, nil
}

// take moves n pages to dst, or none if there are fewer.
func (p *pool) take(dst []Page, n int) ([]Page, bool) {
	if len(p.free) < n {
		return dst, false
	}
	from := len(p.free) - n
	dst = append(dst, p.free[from:]...)
	p.free = p.free[:from]
	return dst, true
}

func (p *pool) close() error {
	if p == nil {
		return nil
	}
	return p.pages.Free()
}

// TakePages appends n free pages to dst: writable by the backend, for a read, or readable.
// It reports false if there are fewer.
func (q *Queue) TakePages(dst []Page, n int, writable bool) ([]Page, bool) {
	if writable || q.readable == nil {
		return q.writable.take(dst, n)
	}
	return q.readable.take(dst, n)
}

// ReturnPages frees pages, which no request uses any more.
func (q *Queue) ReturnPages(pages []Page) {
	for _, p := range pages {
		p.pool.free = append(p.pool.free, p)
	}
}

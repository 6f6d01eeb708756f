// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"testing"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// firstRef is the gref of a guest's first page; the others follow. Smaller and
// larger ones are bad, except for those of the rings.
const firstRef = 1000

// grants is the grant device of a worker. It insists on what the worker should copy.
// It allocates nothing.
type grants struct {
	*xentest.Gntdev
	tb     testing.TB
	worker func() *worker // whose arenas are there to copy to and from
	during func()         // is called by each call, if there
	noOwn  bool           // calls with own pages fail
}

var _ Copier = (*grants)(nil)

func (g *grants) Copy(segs []gntdev.Segment) error {
	if g.during != nil {
		g.during()
	}
	if len(segs) == 0 {
		g.tb.Error("a grant copy of nothing")
	}
	if err := gntdev.Check(segs); err != nil {
		g.tb.Errorf("no guest may bring this about: %v", err)
	}
	for i := range segs {
		if s := &segs[i]; !g.local(s) {
			g.tb.Errorf("%v %d bytes at %#x: in no arena, or across a page end", s.Direction(), s.Len(), s.Local())
		}
	}
	if g.noOwn && slices.ContainsFunc(segs, func(s gntdev.Segment) bool { return isOwn(&s) || selfCopy(&s) }) {
		for i := range segs {
			segs[i].SetStatus(gntdev.StatusGeneralError)
		}
		return errNoOwn
	}
	return g.Gntdev.Copy(segs)
}

// selfCopy reports whether a segment names a page of this domain by its gref in the place
// of a guest's.
func selfCopy(s *gntdev.Segment) bool {
	domid, _, _ := s.Foreign()
	return domid == xen.DomidSelf
}

// local finds a segment's side of ours among the worker's arenas. A copy across a
// page end would work, but the kernel would make two of it, so it is not found, unless
// it is one of a packet with XDP headroom.
func (g *grants) local(s *gntdev.Segment) bool {
	w := g.worker()
	if ref, _, ok := s.Own(); ok {
		return w.txMem.own.find(ref) >= 0 || w.rxMem.own.find(ref) >= 0
	}
	if in(&w.txMem, s, false) || in(&w.rxMem, s, false) {
		return true
	}
	across := slices.ContainsFunc(w.queues, func(q *Queue) bool { return q != nil && q.xdpRoom != 0 })
	return in(&w.rxMem, s, across) || slices.ContainsFunc(w.queues, func(q *Queue) bool {
		return q != nil && in(&q.backlog.mem, s, across)
	})
}

func in(m *arenaMem, s *gntdev.Segment, across bool) bool {
	if m.arena == nil || s.Local() < m.base || s.Local()-m.base >= uintptr(len(m.mem)) {
		return false
	}
	at := int(s.Local() - m.base)
	return at+s.Len() <= len(m.mem) && (at%netif.PageSize+s.Len() <= netif.PageSize || across)
}

// beforeCopy has do called before the next segment with the gref is copied, 0 for any.
// Its error is that of the copy.
func (f *front) beforeCopy(ref xen.Gref, do func() error) {
	f.guest.Intercept(func(c xentest.Call) error {
		if c.Op != xentest.OpCopy || ref != 0 && c.Ref != ref {
			return nil
		}
		f.guest.Intercept(nil)
		return do()
	})
}

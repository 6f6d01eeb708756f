// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"testing"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// firstRef is the gref of a guest's first page; the others follow. Smaller and
// larger ones are bad.
const firstRef = 1000

// grants copies between a guest's pages and the arenas of a worker, as strictly
// as the hypervisor and gntdev do. It allocates nothing.
type grants struct {
	tb     testing.TB
	worker func() *worker // whose arenas are there to copy to and from
	domid  xen.Domid
	pages  []byte // granted, from firstRef on

	readOnly map[xen.Gref]bool
	status   map[xen.Gref]gntdev.Status // injected
	fail     error                      // of the next call as a whole
	panics   xen.Gref                   // panic when this one is copied

	hole []byte // mapped in place of any page, if there

	during func() // is called by each call, if there

	calls, ops int
	last       []gntdev.Segment // of the last call, if record is set
	record     bool
}

var _ Copier = (*grants)(nil)

func (g *grants) Copy(segs []gntdev.Segment) error {
	g.calls++
	g.ops += len(segs)
	if g.during != nil {
		g.during()
	}
	if g.record {
		g.last = append(g.last[:0], segs...)
	}
	if len(segs) == 0 {
		g.tb.Error("a grant copy of nothing")
	}
	if err := gntdev.Check(segs); err != nil {
		g.tb.Errorf("no guest may bring this about: %v", err)
		return err
	}
	if err := g.fail; err != nil {
		g.fail = nil
		for i := range segs {
			segs[i].SetStatus(gntdev.StatusGeneralError)
		}
		return err
	}
	for i := range segs {
		segs[i].SetStatus(g.copy(&segs[i]))
	}
	return nil
}

func (g *grants) copy(s *gntdev.Segment) gntdev.Status {
	domid, ref, off := s.Foreign()
	if domid != g.domid {
		return gntdev.StatusBadDomain
	}
	if ref == g.panics && ref != 0 {
		panic("injected")
	}
	if st, ok := g.status[ref]; ok {
		return st
	}
	if ref < firstRef || int(ref-firstRef) >= len(g.pages)/netif.PageSize {
		return gntdev.StatusBadGntref
	}
	if s.Direction() == gntdev.ToGuest && g.readOnly[ref] {
		return gntdev.StatusGeneralError
	}
	at := int(ref-firstRef)*netif.PageSize + int(off)
	page := g.pages[at : at+s.Len()]
	local := g.local(s)
	if local == nil {
		g.tb.Errorf("%v %d bytes at %#x: in no arena, or across a page end", s.Direction(), s.Len(), s.Local())
		return gntdev.StatusBadVirtAddr
	}
	if s.Direction() == gntdev.FromGuest {
		copy(local, page)
	} else {
		copy(page, local)
	}
	return gntdev.StatusOkay
}

// local finds a segment's local side among the worker's arenas. A copy across a
// page end would work, but the kernel would make two of it, so it is not found, unless
// it is one of a packet with XDP headroom.
func (g *grants) local(s *gntdev.Segment) []byte {
	w := g.worker()
	if b := in(&w.txMem, s, false); b != nil {
		return b
	}
	if b := in(&w.rxMem, s, false); b != nil {
		return b
	}
	across := slices.ContainsFunc(w.queues, func(q *Queue) bool { return q != nil && q.xdpRoom != 0 })
	if b := in(&w.rxMem, s, across); b != nil {
		return b
	}
	for _, q := range w.queues {
		if q == nil {
			continue
		}
		if b := in(&q.backlog.mem, s, across); b != nil {
			return b
		}
	}
	return nil
}

func in(m *arenaMem, s *gntdev.Segment, across bool) []byte {
	if m.arena == nil || s.Local() < m.base || s.Local()-m.base >= uintptr(len(m.mem)) {
		return nil
	}
	at := int(s.Local() - m.base)
	if at%netif.PageSize+s.Len() > netif.PageSize && !across {
		return nil
	}
	return m.mem[at : at+s.Len()]
}

// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Gntdev is an open /dev/xen/gntdev. Several threads may use it at once: none waits for
// another one's grant operation.
type Gntdev struct {
	hv      *hyp.Hypervisor
	dom     *hyp.Domain
	process Process

	mu   sync.Mutex
	maps []*grantMap          // records of MAP_GRANT_REF, by index; guarded by mu
	vmas map[uint64]*grantMap // mappings, by their number; guarded by mu
	next uint64               // number of the next mapping; guarded by mu
}

// grantMap is struct gntdev_grant_map: references recorded for a mapping.
type grantMap struct {
	index  uint64 // in pages
	domid  xen.Domid
	refs   []xen.Gref
	inUse  bool        // an mmap was tried; there is no second one; guarded by Gntdev.mu
	grants []hyp.Grant // owned by Mmap, and after it by the caller that takes m out of vmas
}

// OpenGntdev opens the device for a process of dom.
func OpenGntdev(hv *hyp.Hypervisor, dom *hyp.Domain, p Process) *Gntdev {
	return &Gntdev{hv: hv, dom: dom, process: p, vmas: map[uint64]*grantMap{}}
}

// Map implements IOCTL_GNTDEV_MAP_GRANT_REF: it records the references and checks
// nothing. The index is an offset for Mmap.
func (g *Gntdev) Map(domid xen.Domid, refs []xen.Gref) (index uint64, errno unix.Errno) {
	if len(refs) == 0 || len(refs) > wire.MaxRefs {
		return 0, unix.EINVAL
	}
	m := &grantMap{domid: domid, refs: slices.Clone(refs)}
	g.mu.Lock()
	defer g.mu.Unlock()
	at := len(g.maps)
	for i, other := range g.maps {
		// As the kernel does: the first gap that is larger than needed.
		if m.index+uint64(len(refs)) < other.index {
			at = i
			break
		}
		m.index = other.index + uint64(len(other.refs))
	}
	g.maps = slices.Insert(g.maps, at, m)
	return m.index * hyp.PageSize, 0
}

// View describes the pages of a file that a process maps in place of the device.
type View struct {
	VMA    uint64   // for Munmap
	File   int      // belongs to the domain; valid as long as the view is
	Frames []uint32 // page numbers in File
}

// BadRef has the reference that made an Mmap fail, for messages. The kernel does not
// report it.
type BadRef struct {
	Number int // in the order of Map
	Status gntdev.Status
}

// Mmap implements mmap(2) of the device: it maps all references recorded at index, or
// fails as a whole. A record that was tried once cannot be tried again.
func (g *Gntdev) Mmap(index uint64, count int, writable bool) (View, BadRef, unix.Errno) {
	m := g.claim(index, count)
	if m == nil {
		return View{}, BadRef{Number: -1}, unix.EINVAL
	}
	owner := g.hv.Domain(m.domid, g.dom.ID())
	for i, ref := range m.refs {
		grant, st := g.acquireMap(owner, ref, writable)
		if st != gntdev.StatusOkay {
			g.release(m)
			return View{}, BadRef{i, st}, unix.EINVAL
		}
		m.grants = append(m.grants, grant)
	}
	v := View{Frames: make([]uint32, len(m.grants))}
	for i, grant := range m.grants {
		v.Frames[i] = grant.Frame()
	}
	rw, ro := owner.Files()
	if v.File = ro; writable {
		v.File = rw
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	v.VMA = g.next
	g.vmas[v.VMA] = m
	g.next++
	return v, BadRef{}, 0
}

// claim takes a record for the one mmap it can have.
func (g *Gntdev) claim(index uint64, count int) *grantMap {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.find(index, count)
	if m == nil || m.inUse {
		return nil
	}
	m.inUse = true
	return m
}

func (g *Gntdev) acquireMap(owner *hyp.Domain, ref xen.Gref, writable bool) (hyp.Grant, gntdev.Status) {
	if owner == nil {
		return hyp.Grant{}, gntdev.StatusBadDomain
	}
	if !g.dom.TakeMaptrack(1) {
		return hyp.Grant{}, gntdev.StatusNoSpace
	}
	grant, st := g.acquire(owner, ref, writable, hyp.ForMap)
	if st != gntdev.StatusOkay {
		g.dom.ReturnMaptrack(1)
	}
	return grant, st
}

// maxRetry is MAX_DELAY of drivers/xen/grant-table.c: a page that is not there
// at the moment is tried again with waits of 1, 2, 3 ... milliseconds, about
// half a minute in all, and then taken for bad.
const maxRetry = 256

// acquire returns one grant operation as Linux makes it.
func (g *Gntdev) acquire(owner *hyp.Domain, ref xen.Gref, write bool, use hyp.Use) (hyp.Grant, gntdev.Status) {
	grant, st := g.dom.Acquire(owner, ref, write, use)
	for ms := 1; st == gntdev.StatusEagain; ms++ {
		if ms == maxRetry {
			return grant, gntdev.StatusBadPage
		}
		g.hv.Sleep(time.Duration(ms) * time.Millisecond)
		grant, st = g.dom.Acquire(owner, ref, write, use)
	}
	return grant, st
}

func (g *Gntdev) release(m *grantMap) {
	for _, grant := range m.grants {
		grant.Release()
	}
	g.dom.ReturnMaptrack(len(m.grants))
	m.grants = nil
}

// Munmap implements munmap(2) of a view.
func (g *Gntdev) Munmap(vma uint64) unix.Errno {
	g.mu.Lock()
	m := g.vmas[vma]
	delete(g.vmas, vma)
	g.mu.Unlock()
	if m == nil {
		return unix.EINVAL
	}
	g.release(m)
	return 0
}

// Unmap implements IOCTL_GNTDEV_UNMAP_GRANT_REF: it forgets a record. Its mapping stays
// until Munmap.
func (g *Gntdev) Unmap(index uint64, count int) unix.Errno {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.find(index, count)
	if m == nil {
		return unix.ENOENT
	}
	g.maps = slices.DeleteFunc(g.maps, func(other *grantMap) bool { return other == m })
	return 0
}

// find implements gntdev_find_map_index: index and count must be those of Map. The
// caller holds mu.
func (g *Gntdev) find(index uint64, count int) *grantMap {
	for _, m := range g.maps {
		if m.index == index/hyp.PageSize && len(m.refs) == count {
			return m
		}
	}
	return nil
}

// Unused reports whether nothing was recorded or mapped.
func (g *Gntdev) Unused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.maps) == 0 && len(g.vmas) == 0
}

// Close implements the last close(2) together with the end of all mappings, as when the
// process ends. No other call is under way.
func (g *Gntdev) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for vma, m := range g.vmas {
		delete(g.vmas, vma)
		g.release(m)
	}
	g.maps = nil
}

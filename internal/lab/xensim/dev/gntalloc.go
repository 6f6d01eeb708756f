// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// defaultGntallocLimit is the default of xen_gntalloc.limit.
const defaultGntallocLimit = 1024

// Kernel holds the state that the open files of one domain share: its free pages and grant
// references. It writes the domain's grant table as a guest does, and the hypervisor does
// not trust it.
type Kernel struct {
	dom *hyp.Domain

	mu       sync.Mutex
	pages    usedSet // guarded by mu
	refs     usedSet // guarded by mu
	limit    int     // xen_gntalloc.limit
	size     int     // pages granted, those in deferred included; guarded by mu
	deferred []gref  // unused here, still used by another domain; guarded by mu
}

// gref is struct gntalloc_gref: a granted page.
type gref struct {
	ref   xen.Gref
	frame uint32
}

// Boot starts the kernel of a new domain.
func Boot(dom *hyp.Domain) *Kernel {
	k := &Kernel{dom: dom, limit: dom.Config().GntallocLimit}
	if k.limit <= 0 {
		k.limit = defaultGntallocLimit
	}
	table, end := dom.Frames()
	k.pages.extend(end)
	k.pages.take(0, table)
	k.refs.extend(gnttab.RefsPerFrame)
	k.refs.take(0, gnttab.ReservedRefs)
	if dom.ID() != 0 && end-table > special {
		k.build(end)
	}
	return k
}

// special is the number of pages that a guest's kernel cannot use freely: those of its
// console and of its connection to xenstore.
const special = 2

// build does what the toolstack does before a guest runs (xc_dom_gnttab_seed): the
// special pages are the last ones, and granted to dom0.
func (k *Kernel) build(end int) {
	k.pages.take(end-special, end)
	table := k.dom.Table()
	for i, ref := range []xen.Gref{gnttab.ConsoleRef, gnttab.XenstoreRef} {
		table.Set(ref, gnttab.Entry{Flags: gnttab.PermitAccess, Domid: 0, Frame: uint32(end - special + i)})
	}
}

// Gntalloc is an open /dev/xen/gntalloc.
type Gntalloc struct {
	k     *Kernel
	grefs map[uint64]gref // by offset in pages
	next  uint64          // offset of the next allocation, in pages; never used twice
}

// OpenGntalloc opens the device for a process of the domain.
func (k *Kernel) OpenGntalloc() *Gntalloc {
	return &Gntalloc{k: k, grefs: map[uint64]gref{}}
}

// Allocation is a run of pages and the references they are granted as.
type Allocation struct {
	Index  uint64 // for Dealloc
	Refs   []xen.Gref
	Frames []uint32
}

// Alloc implements IOCTL_GNTALLOC_ALLOC_GREF and the mmap(2) after it: n zeroed pages
// that domid may use, for reading only unless writable.
func (g *Gntalloc) Alloc(domid xen.Domid, n int, writable bool) (Allocation, unix.Errno) {
	k := g.k
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cleanup()
	if n < 0 || k.size+n > k.limit || n > wire.MaxRefs {
		return Allocation{}, unix.ENOSPC
	}
	frames := k.pages.find(n)
	if frames == nil {
		return Allocation{}, unix.ENOMEM
	}
	refs := k.findRefs(n)
	if refs == nil {
		return Allocation{}, unix.ENOSPC
	}
	flags := gnttab.PermitAccess
	if !writable {
		flags |= gnttab.ReadOnly
	}
	a := Allocation{Index: g.next * hyp.PageSize, Refs: refs, Frames: frames}
	for i, ref := range refs {
		k.pages.take(int(frames[i]), int(frames[i])+1)
		k.refs.take(int(ref), int(ref)+1)
		clear(k.dom.Frame(frames[i]))
		k.dom.Table().Set(ref, gnttab.Entry{Flags: flags, Domid: domid, Frame: frames[i]})
		g.grefs[g.next+uint64(i)] = gref{ref, frames[i]}
	}
	g.next += uint64(n)
	k.size += n
	return a, 0
}

// findRefs finds n free references. If there are too few, it has Xen make the table
// longer.
func (k *Kernel) findRefs(n int) []xen.Gref {
	for {
		if found := k.refs.find(n); found != nil {
			refs := make([]xen.Gref, n)
			for i, ref := range found {
				refs[i] = xen.Gref(ref)
			}
			return refs
		}
		frames, errno := k.dom.SetupTable(k.refs.len()/gnttab.RefsPerFrame + 1)
		if errno != 0 {
			return nil
		}
		k.refs.extend(frames * gnttab.RefsPerFrame)
	}
}

// Dealloc implements munmap(2) and IOCTL_GNTALLOC_DEALLOC_GREF after it: it ends the
// grants of the pages as soon as they are no longer used.
func (g *Gntalloc) Dealloc(index uint64, n int) unix.Errno {
	first := index / hyp.PageSize
	for i := range uint64(n) {
		if _, ok := g.grefs[first+i]; !ok {
			return unix.EINVAL
		}
	}
	k := g.k
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range uint64(n) {
		k.deferred = append(k.deferred, g.grefs[first+i])
		delete(g.grefs, first+i)
	}
	k.cleanup()
	return 0
}

// Close closes the file and ends its mappings.
func (g *Gntalloc) Close() {
	k := g.k
	if k.dom.Dying() {
		return // the domain is gone, and so is its kernel, which would end the grants
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for index, r := range g.grefs {
		k.deferred = append(k.deferred, r)
		delete(g.grefs, index)
	}
	k.cleanup()
}

// cleanup implements do_cleanup: it ends the grants that can be ended. The others are
// tried again next time, and count against the limit until then. The caller
// holds mu.
func (k *Kernel) cleanup() {
	k.deferred = slices.DeleteFunc(k.deferred, func(r gref) bool {
		if !k.dom.Table().Revoke(r.ref) {
			return false
		}
		k.pages.free(r.frame)
		k.refs.free(uint32(r.ref))
		k.size--
		return true
	})
}

// usedSet is a set of used numbers.
type usedSet struct {
	used []bool
	n    int // the number of free ones
}

func (s *usedSet) len() int { return len(s.used) }

func (s *usedSet) extend(length int) {
	s.n += length - len(s.used)
	s.used = append(s.used, make([]bool, length-len(s.used))...)
}

func (s *usedSet) take(from, to int) {
	for i := from; i < to; i++ {
		s.used[i] = true
	}
	s.n -= to - from
}

func (s *usedSet) free(i uint32) {
	s.used[i] = false
	s.n++
}

// find returns n numbers that are free: the lowest run of that many if there is
// one, since a process can map a run of pages with one call, else the lowest
// numbers. It returns nil if fewer are free.
func (s *usedSet) find(n int) []uint32 {
	if n > s.n {
		return nil
	}
	found := make([]uint32, 0, n)
	for i, used := range s.used {
		if len(found) == n {
			return found
		}
		if used {
			found = found[:0]
			continue
		}
		found = append(found, uint32(i))
	}
	if len(found) == n {
		return found
	}
	found = found[:0]
	for i, used := range s.used {
		if !used && len(found) < n {
			found = append(found, uint32(i))
		}
	}
	return found
}

// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMapRecordsAndChecksNothing(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	for _, refs := range [][]xen.Gref{nil, make([]xen.Gref, wire.MaxRefs+1)} {
		_, errno := g.Map(1, refs)
		wantErrno(t, "number of refs out of bounds", errno, unix.EINVAL)
	}
	_, errno := g.Map(99, []xen.Gref{^xen.Gref(0)})
	wantErrno(t, "bad refs of no domain", errno, 0)
	x.wantUnused(t)
}

func TestIndexTakesTheFirstGap(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	index := func(n int) uint64 {
		i, errno := g.Map(1, make([]xen.Gref, n))
		wantErrno(t, "map", errno, 0)
		return i / 4096
	}
	got := []uint64{index(2), index(3), index(1)}
	g.Unmap(2*4096, 3)
	got = append(got, index(3), index(2)) // the kernel wants the gap to be larger
	if diff := cmp.Diff([]uint64{0, 2, 5, 6, 2}, got); diff != "" {
		t.Errorf("indices (-want +got):\n%s", diff)
	}
}

func TestMmapIsAllOrNothing(t *testing.T) {
	const bad = 77777
	for _, tc := range []struct {
		name     string
		domid    xen.Domid
		refs     []xen.Gref
		writable bool
		bad      BadRef
	}{
		{"first ref bad", 1, []xen.Gref{bad, writable, writable + 1}, true, BadRef{0, gntdev.StatusBadGntref}},
		{"middle ref bad", 1, []xen.Gref{writable, bad, writable + 1}, true, BadRef{1, gntdev.StatusBadGntref}},
		{"last ref bad", 1, []xen.Gref{writable, writable + 1, bad}, true, BadRef{2, gntdev.StatusBadGntref}},
		{"last ref never granted", 1, []xen.Gref{writable, 400}, true, BadRef{1, gntdev.StatusGeneralError}},
		{"read-only grant mapped writable", 1, []xen.Gref{writable, readOnly}, true, BadRef{1, gntdev.StatusGeneralError}},
		{"no such domain", 99, []xen.Gref{writable}, false, BadRef{0, gntdev.StatusBadDomain}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newXen(t)
			g := x.gntdev()
			index, errno := g.Map(tc.domid, tc.refs)
			wantErrno(t, "map", errno, 0)
			_, got, errno := g.Mmap(index, len(tc.refs), tc.writable)
			wantErrno(t, "mmap", errno, unix.EINVAL)
			if got != tc.bad {
				t.Errorf("blames %+v, want %+v", got, tc.bad)
			}
			x.wantUnused(t)
			_, _, errno = g.Mmap(index, len(tc.refs), tc.writable)
			wantErrno(t, "mmap again", errno, unix.EINVAL)
			wantErrno(t, "unmap", g.Unmap(index, len(tc.refs)), 0)
		})
	}
}

func TestMmapNeedsTheRecordItself(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	index, _ := g.Map(1, []xen.Gref{writable, writable + 1})
	for _, tc := range []struct {
		name  string
		index uint64
		count int
	}{
		{"another index", index + 4096, 2},
		{"fewer pages", index, 1},
		{"more pages", index, 3},
	} {
		_, _, errno := g.Mmap(tc.index, tc.count, true)
		wantErrno(t, "mmap of "+tc.name, errno, unix.EINVAL)
		wantErrno(t, "unmap of "+tc.name, g.Unmap(tc.index, tc.count), unix.ENOENT)
	}
	v, _, errno := g.Mmap(index, 2, true)
	wantErrno(t, "mmap", errno, 0)
	if diff := cmp.Diff([]uint32{x.first, x.first + 1}, v.Frames); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	_, _, errno = g.Mmap(index, 2, true)
	wantErrno(t, "second mmap", errno, unix.EINVAL)

	// The record may be removed first; the pages are released with the mapping.
	wantErrno(t, "unmap while mapped", g.Unmap(index, 2), 0)
	wantErrno(t, "unmap again", g.Unmap(index, 2), unix.ENOENT)
	if n := x.guest.Info().GrantsInUse; n != 2 {
		t.Errorf("%d grants in use while mapped, want 2", n)
	}
	wantErrno(t, "munmap", g.Munmap(v.VMA), 0)
	wantErrno(t, "munmap again", g.Munmap(v.VMA), unix.EINVAL)
	x.wantUnused(t)
}

func TestCloseUnmapsEverything(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	for i := range uint32(3) {
		index, _ := g.Map(1, []xen.Gref{xen.Gref(writable + i)})
		_, _, errno := g.Mmap(index, 1, i%2 == 0)
		wantErrno(t, "mmap", errno, 0)
	}
	g.Close()
	x.wantUnused(t)
}

func TestMaptrackExhausted(t *testing.T) {
	x := newXen(t)
	// The guest is the mapping domain now: it has 256 entries.
	table, _ := x.dom0.Frames()
	for i := range uint32(60) {
		x.dom0.Table().Set(xen.Gref(writable+i), gnttab.Entry{Flags: gnttab.PermitAccess, Domid: x.guest.ID(), Frame: uint32(table) + i})
	}
	g := OpenGntdev(x.hv, x.guest, 0)
	defer g.Close()
	refs := make([]xen.Gref, 60)
	for i := range refs {
		refs[i] = writable + xen.Gref(i)
	}
	for i := range 5 {
		index, _ := g.Map(0, refs)
		_, bad, errno := g.Mmap(index, len(refs), false)
		if i < 4 {
			wantErrno(t, "mmap within the limit", errno, 0)
			continue
		}
		wantErrno(t, "mmap beyond the limit", errno, unix.EINVAL)
		if want := (BadRef{16, gntdev.StatusNoSpace}); bad != want {
			t.Errorf("blames %+v, want %+v", bad, want)
		}
	}
	if n := x.guest.Info().Maps; n != 240 {
		t.Errorf("%d maps held, want 240", n)
	}
}

// TestEagainIsRetried: a page that is paged out is tried repeatedly, as the kernel does.
func TestEagainIsRetried(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	x.guest.AddFault(wire.Fault{Op: wire.FaultMap, Ref: writable, Status: int16(gntdev.StatusEagain), Count: 3})
	index, _ := g.Map(1, []xen.Gref{writable})
	_, _, errno := g.Mmap(index, 1, true)
	wantErrno(t, "mmap", errno, 0)
	if n := x.dom0.Info().Counters.GrantFailures; n != 3 {
		t.Errorf("%d failures, want 3 before it went well", n)
	}
}

func TestEagainForEverIsABadPage(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	x.guest.AddFault(wire.Fault{Op: wire.FaultCopy, Ref: writable, Status: int16(gntdev.StatusEagain)})
	x.hv.Interrupt() // ends the wait of half a minute
	local := make([]byte, 16)
	st, errno := copySegs(g, toLocal(writable, 0, local))
	wantErrno(t, "copy", errno, 0)
	if diff := cmp.Diff([]gntdev.Status{gntdev.StatusBadPage}, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

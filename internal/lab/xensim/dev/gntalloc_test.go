// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// linux returns a guest with its kernel: 100 pages, at most 60 of them granted.
func linux(t testing.TB) (*hyp.Hypervisor, *hyp.Domain, *Kernel) {
	t.Helper()
	hv, err := hyp.New(wire.DomainConfig{Pages: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hv.Close)
	d, err := hv.Create(wire.DomainConfig{Pages: 100, GntallocLimit: 60, MaxGrantFrames: 2})
	if err != nil {
		t.Fatal(err)
	}
	return hv, d, Boot(d)
}

func TestAllocGrantsZeroedPages(t *testing.T) {
	_, d, k := linux(t)
	g := k.OpenGntalloc()
	defer g.Close()
	for _, w := range []bool{true, false} {
		a, errno := g.Alloc(3, 4, w)
		wantErrno(t, "alloc", errno, 0)
		flags := gnttab.PermitAccess
		if !w {
			flags |= gnttab.ReadOnly
		}
		for i, ref := range a.Refs {
			want := gnttab.Entry{Flags: flags, Domid: 3, Frame: a.Frames[i]}
			if got := d.Table().Entry(ref); got != want {
				t.Errorf("entry %+v, want %+v", got, want)
			}
			if ref < gnttab.ReservedRefs {
				t.Errorf("reference %d is reserved", ref)
			}
			page := d.Frame(a.Frames[i])
			if slices.Max(page) != 0 {
				t.Error("page is not zeroed")
			}
			pattern(page, 1)
		}
		wantErrno(t, "dealloc", g.Dealloc(a.Index, 4), 0)
		for _, ref := range a.Refs {
			if f := d.Table().Head(ref).Flags(); f != 0 {
				t.Errorf("reference %d still has flags %#x", ref, f)
			}
		}
	}
}

func TestAllocLimitIsForAllFilesTogether(t *testing.T) {
	_, _, k := linux(t)
	a, b := k.OpenGntalloc(), k.OpenGntalloc()
	defer a.Close()
	_, errno := a.Alloc(0, 61, true)
	wantErrno(t, "61 of 60", errno, unix.ENOSPC)
	_, errno = a.Alloc(0, 40, true)
	wantErrno(t, "40 of 60", errno, 0)
	_, errno = b.Alloc(0, 21, true)
	wantErrno(t, "21 of 20 left", errno, unix.ENOSPC)
	_, errno = b.Alloc(0, 20, true)
	wantErrno(t, "20 of 20 left", errno, 0)
	b.Close()
	_, errno = a.Alloc(0, 20, true)
	wantErrno(t, "20 after the other file was closed", errno, 0)
}

func TestPagesInUseAreFreedLater(t *testing.T) {
	hv, d, k := linux(t)
	g := k.OpenGntalloc()
	a, _ := g.Alloc(0, 60, true)
	held, st := hv.Domain(0, 0).Acquire(d, a.Refs[30], true, hyp.ForMap)
	if st != gntdev.StatusOkay {
		t.Fatal(st)
	}
	g.Close()
	if f := d.Table().Head(a.Refs[30]).Flags(); f&gnttab.PermitAccess == 0 {
		t.Error("the grant in use was taken back")
	}
	b := k.OpenGntalloc()
	defer b.Close()
	_, errno := b.Alloc(0, 60, true)
	wantErrno(t, "60 while one is held", errno, unix.ENOSPC)
	rest, errno := b.Alloc(0, 59, true)
	wantErrno(t, "59 while one is held", errno, 0)
	if slices.Contains(rest.Refs, a.Refs[30]) || slices.Contains(rest.Frames, a.Frames[30]) {
		t.Error("what is in use was handed out again")
	}
	held.Release()
	_, errno = b.Alloc(0, 1, true)
	wantErrno(t, "after it was let go", errno, 0)
}

func TestDeallocOfWhatIsNotThere(t *testing.T) {
	_, _, k := linux(t)
	g, other := k.OpenGntalloc(), k.OpenGntalloc()
	defer g.Close()
	defer other.Close()
	a, _ := g.Alloc(0, 4, true)
	wantErrno(t, "too many", g.Dealloc(a.Index, 5), unix.EINVAL)
	wantErrno(t, "another index", g.Dealloc(a.Index+4*4096, 1), unix.EINVAL)
	wantErrno(t, "through another file", other.Dealloc(a.Index, 4), unix.EINVAL)
	wantErrno(t, "a part", g.Dealloc(a.Index, 2), 0)
	wantErrno(t, "all, when a part is gone", g.Dealloc(a.Index, 4), unix.EINVAL)
	wantErrno(t, "the rest", g.Dealloc(a.Index+2*4096, 2), 0)
	b, _ := g.Alloc(0, 1, true)
	if b.Index != a.Index+4*4096 {
		t.Errorf("index %d again", b.Index)
	}
}

func TestGrantTableIsFull(t *testing.T) {
	hv, err := hyp.New(wire.DomainConfig{Pages: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hv.Close)
	d, err := hv.Create(wire.DomainConfig{Pages: 2000, GntallocLimit: 2000, MaxGrantFrames: 2})
	if err != nil {
		t.Fatal(err)
	}
	g := Boot(d).OpenGntalloc()
	defer g.Close()
	_, errno := g.Alloc(0, 2*gnttab.RefsPerFrame-gnttab.ReservedRefs+1, true)
	wantErrno(t, "one too many", errno, unix.ENOSPC)
	_, errno = g.Alloc(0, 2*gnttab.RefsPerFrame-gnttab.ReservedRefs, true)
	wantErrno(t, "all of two frames", errno, 0)
	if n := d.Info().GrantFrames; n != 2 {
		t.Errorf("%d frames, want 2", n)
	}
}

func TestMemoryIsFull(t *testing.T) {
	hv, err := hyp.New(wire.DomainConfig{Pages: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hv.Close)
	g := Boot(hv.Domain(0, 0)).OpenGntalloc()
	defer g.Close()
	_, errno := g.Alloc(1, 17, true)
	wantErrno(t, "17 of 16 pages", errno, unix.ENOMEM)
	a, errno := g.Alloc(1, 16, true)
	wantErrno(t, "16 of 16 pages", errno, 0)
	for i := range 8 {
		g.Dealloc(a.Index+uint64(2*i)*4096, 1)
	}
	b, errno := g.Alloc(1, 8, true)
	wantErrno(t, "8 pages, none beside another", errno, 0)
	var want []uint32
	for i := range 8 {
		want = append(want, a.Frames[2*i])
	}
	if diff := cmp.Diff(want, b.Frames); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
}

// TestFindModel compares find with a simple search.
func TestFindModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		used := rapid.SliceOfN(rapid.Bool(), 0, 40).Draw(t, "used")
		n := rapid.IntRange(0, 42).Draw(t, "n")
		var s usedSet
		s.extend(len(used))
		var free []uint32
		for i, u := range used {
			if u {
				s.take(i, i+1)
			} else {
				free = append(free, uint32(i))
			}
		}
		got := s.find(n)
		if n > len(free) {
			if got != nil {
				t.Fatalf("found %v, there are only %d", got, len(free))
			}
			return
		}
		want := free[:n]
		for i := 0; i+n <= len(used); i++ {
			if !slices.Contains(used[i:i+n], true) {
				want = nil
				for j := range n {
					want = append(want, uint32(i+j))
				}
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("found %v, want %v", got, want)
		}
	})
}

// TestPagesThatTheToolstackGrants: before a guest runs, the toolstack grants dom0 exactly
// its console page and its xenstore page, by references that gntalloc does not use.
func TestPagesThatTheToolstackGrants(t *testing.T) {
	x := newXen(t)
	g := Boot(x.guest).OpenGntalloc()
	defer g.Close()
	var special []uint32
	for ref := range uint32(gnttab.ReservedRefs) {
		grant, status := x.dom0.Acquire(x.guest, xen.Gref(ref), true, hyp.ForCopy)
		if granted := ref == gnttab.ConsoleRef || ref == gnttab.XenstoreRef; (status == gntdev.StatusOkay) != granted {
			t.Errorf("reference %d: %v", ref, status)
		}
		if status == gntdev.StatusOkay {
			special = append(special, grant.Frame())
			grant.Release()
		}
	}
	table, end := x.guest.Frames()
	if len(special) != 2 || special[0] == special[1] {
		t.Fatalf("pages %v are granted, want two", special)
	}
	a, errno := g.Alloc(0, end-table-len(special), true)
	wantErrno(t, "all other pages", errno, 0)
	for _, frame := range a.Frames {
		if slices.Contains(special, frame) {
			t.Errorf("page %d is the toolstack's, and given away", frame)
		}
	}
	x.wantUnused(t)
}

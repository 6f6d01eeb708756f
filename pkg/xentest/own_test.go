// SPDX-License-Identifier: Apache-2.0

package xentest_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// TestOwn: the limit holds for all pages together, a copy needs the grant of our page, and
// copies by address reach it as well.
func TestOwn(t *testing.T) {
	g := xentest.Start(t, domid)
	d := gnttab(t, g)
	ref, page := g.Grant(gntdev.ReadWrite)
	a, err := gntdev.NewArena(8 * gntdev.PageSize)
	must(t, err)
	defer a.Close()
	mem := a.Bytes()

	o := xentest.StartOwn(t, 3)
	o.FailNext(unix.ENOMEM)
	if _, err := o.AllocAt(mem[:gntdev.PageSize], 0, true); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("a failure that was ordered: %v", err)
	}
	p, err := o.AllocAt(mem[:2*gntdev.PageSize], 0, true)
	must(t, err)
	if _, err := o.AllocAt(mem[4*gntdev.PageSize:][:2*gntdev.PageSize], 0, true); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("beyond the limit: %v", err)
	}
	o.SetLimit(4)
	more, err := o.AllocAt(mem[4*gntdev.PageSize:][:2*gntdev.PageSize], 0, true)
	must(t, err)
	if n := o.Granted(); n != 4 {
		t.Errorf("%d pages granted, want 4", n)
	}
	if _, err := o.AllocAt(mem[1:gntdev.PageSize+1], 0, true); !errors.Is(err, unix.EINVAL) {
		t.Errorf("not a page: %v", err)
	}

	var seg [1]gntdev.Segment
	copy(page, "of the guest")
	seg[0].FromGuestToOwn(domid, ref, 3, p.Refs()[1], 50, 9)
	must(t, d.Copy(seg[:]))
	if got := string(mem[gntdev.PageSize+50:][:9]); seg[0].Status() != gntdev.StatusOkay || got != "the guest" {
		t.Errorf("copied %q, %v", got, seg[0].Status())
	}
	seg[0].ToGuest(domid, ref, 0, mem[gntdev.PageSize+50:][:3])
	must(t, d.Copy(seg[:]))
	if got := string(page[:3]); seg[0].Status() != gntdev.StatusOkay || got != "the" {
		t.Errorf("copied by address %q, %v", got, seg[0].Status())
	}
	xentest.RevokeOwn(p.Refs()[1])
	seg[0].ToGuestFromOwn(domid, ref, 0, p.Refs()[1], 50, 9)
	must(t, d.Copy(seg[:]))
	if seg[0].Status() != gntdev.StatusGeneralError {
		t.Errorf("the grant has ended: %v", seg[0].Status())
	}
	if n := g.Counts().OwnCopies; n != 1 {
		t.Errorf("%d copies to and from own pages, want 1", n)
	}
	for _, pages := range []*gntalloc.Pages{more, p} {
		must(t, pages.Free())
	}
	if mem[gntdev.PageSize+50] != 0 || mem[4*gntdev.PageSize] != 0 {
		t.Error("memory is not cleared after Free")
	}
	mem[gntdev.PageSize] = 1 // still there
}

// TestOwnLeftovers: Close says what is still granted.
func TestOwnLeftovers(t *testing.T) {
	a, err := gntdev.NewArena(2 * gntdev.PageSize)
	must(t, err)
	defer a.Close()
	o := xentest.NewOwn(10)
	p, err := o.AllocAt(a.Bytes(), xen.Dom0, true)
	must(t, err)
	if err := o.Close(); err == nil || err.Error() != "xentest: left of domain 0: 2 pages granted" {
		t.Errorf("Close: %v", err)
	}
	if _, err := o.AllocAt(a.Bytes(), xen.Dom0, true); !errors.Is(err, gntalloc.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	must(t, p.Free())
}

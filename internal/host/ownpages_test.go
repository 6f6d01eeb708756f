// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// domidStore is a xenstore with the number of a domain, or an error.
type domidStore struct {
	xenbus.Store
	domid string
	err   error
}

func (s domidStore) Read(_ context.Context, path string) (string, error) {
	if path != "domid" {
		return "", fs.ErrNotExist
	}
	return s.domid, s.err
}

// copier copies with another device, or fails.
type copier struct {
	Copier
	err    error
	status gntdev.Status
	skip   bool
}

func (c copier) Copy(segs []gntdev.Segment) error {
	if c.err != nil {
		return c.err
	}
	if !c.skip && c.status == gntdev.StatusOkay {
		return c.Copier.Copy(segs)
	}
	for i := range segs {
		segs[i].SetStatus(c.status)
	}
	return nil
}

func arena(t *testing.T, pages int) []byte {
	t.Helper()
	a, err := gntdev.NewArena(pages * gntdev.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a.Bytes()
}

func TestOwnPages(t *testing.T) {
	g := xentest.Start(t, 7)
	dev := xentest.StartOwn(t, 100)
	limit := 8
	o := NewOwnPages(dev, g.Gntdev(), func() (int, error) { return limit, nil })
	mem := arena(t, 12)
	if _, err := o.AllocOwn(mem[:gntdev.PageSize]); !errors.Is(err, errNotLearned) {
		t.Errorf("before Learn: %v", err)
	}
	for range 2 {
		if err := o.Learn(t.Context(), domidStore{domid: "0"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := dev.Granted(); n != 0 {
		t.Errorf("%d pages are left of the trial", n)
	}
	if domid, err := o.Domid(); domid != 0 || err != nil {
		t.Errorf("domid %d, %v", domid, err)
	}
	// A quarter of the limit is left to others.
	p, err := o.AllocOwn(mem[:4*gntdev.PageSize])
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.AllocOwn(mem[4*gntdev.PageSize : 7*gntdev.PageSize])
	const want = "gntalloc: alloc: 3 pages for domid 0: no space left on device; of the 8 pages that " +
		"/sys/module/xen_gntalloc/parameters/limit allows, 4 are in use here and the rest is left to other programs: raise it"
	if !errors.Is(err, unix.ENOSPC) || err.Error() != want {
		t.Errorf("beyond our share: %v\nwant: %s", err, want)
	}
	two, err := o.AllocOwn(mem[4*gntdev.PageSize : 6*gntdev.PageSize])
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Free(); err != nil {
		t.Error(err)
	}
	limit = 100 // as root may do at any time
	many, err := o.AllocOwn(mem[4*gntdev.PageSize:])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*gntalloc.Pages{p, many} {
		if err := p.Free(); err != nil {
			t.Error(err)
		}
	}
	if n := dev.Granted(); n != 0 {
		t.Errorf("%d pages are left", n)
	}
}

// TestNoOwnPages: what is missing is found when the store answers, and not by a worker.
func TestNoOwnPages(t *testing.T) {
	failed := errors.New("failed")
	g := xentest.Start(t, 7)
	for _, c := range []struct {
		name   string
		store  domidStore
		limit  int
		copier copier
		want   error
	}{
		{"xenstored fails", domidStore{err: failed}, 10, copier{Copier: g.Gntdev()}, failed},
		{"no page", domidStore{domid: "0"}, 0, copier{Copier: g.Gntdev()}, unix.ENOSPC},
		{"the number of another domain", domidStore{domid: "5"}, 10, copier{Copier: g.Gntdev()}, gntdev.StatusGeneralError},
		{"the kernel cannot copy", domidStore{domid: "0"}, 10, copier{err: failed}, failed},
		{"the hypervisor refuses", domidStore{domid: "0"}, 10, copier{status: gntdev.StatusPermissionDenied}, gntdev.StatusPermissionDenied},
		{"nothing is copied", domidStore{domid: "0"}, 10, copier{skip: true}, errNotCopied},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := xentest.StartOwn(t, c.limit)
			o := NewOwnPages(dev, c.copier, nil)
			if err := o.Learn(t.Context(), c.store); !errors.Is(err, c.want) {
				t.Errorf("Learn: %v, want %v", err, c.want)
			}
			if _, err := o.AllocOwn(arena(t, 1)); !errors.Is(err, c.want) {
				t.Errorf("AllocOwn: %v, want %v", err, c.want)
			}
			if _, err := o.Domid(); !errors.Is(err, c.want) {
				t.Errorf("Domid: %v, want %v", err, c.want)
			}
			if n := dev.Granted(); n != 0 {
				t.Errorf("%d pages are left", n)
			}
		})
	}
}

// TestOwnPagesOfADriverDomain: the pages are granted to the number that xenstore tells. A
// later attempt may succeed.
func TestOwnPagesOfADriverDomain(t *testing.T) {
	g := xentest.Start(t, 7)
	dev := &recorder{Own: xentest.StartOwn(t, 10)}
	o := NewOwnPages(dev, g.Gntdev(), nil)
	dev.FailNext(unix.ENOMEM)
	if err := o.Learn(t.Context(), domidStore{domid: "3"}); !errors.Is(err, unix.ENOMEM) {
		t.Fatalf("Learn: %v", err)
	}
	if err := o.Learn(t.Context(), domidStore{domid: "3"}); err != nil {
		t.Fatal(err)
	}
	p, err := o.AllocOwn(arena(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Free(); err != nil {
		t.Error(err)
	}
	for _, domid := range dev.domids {
		if domid != 3 {
			t.Errorf("granted to domain %d, want 3", domid)
		}
	}
}

// recorder is the device of a domain with another number than 0.
type recorder struct {
	*xentest.Own
	domids []xen.Domid
}

func (r *recorder) AllocAt(mem []byte, domid xen.Domid, writable bool) (*gntalloc.Pages, error) {
	r.domids = append(r.domids, domid)
	return r.Own.AllocAt(mem, 0, writable)
}

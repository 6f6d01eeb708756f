// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeXen is a hypervisor with a backend domain, 0, and a guest that has granted
// its first pages, as references 8, 9 ... for writing and as 100, 101 ... for
// reading.
type fakeXen struct {
	hv          *hyp.Hypervisor
	dom0, guest *hyp.Domain
	first       uint32 // the guest's first page
}

const (
	writable = gnttab.ReservedRefs
	readOnly = 100
	granted  = 80
)

func newXen(t testing.TB) *fakeXen {
	t.Helper()
	hv, err := hyp.New(wire.DomainConfig{Pages: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hv.Interrupt()
		hv.Close()
	})
	x := &fakeXen{hv: hv, dom0: hv.Domain(0, 0)}
	x.guest, err = hv.Create(wire.DomainConfig{Pages: 256, MaxGrantFrames: 4, MaxMaptrackFrames: 1})
	if err != nil {
		t.Fatal(err)
	}
	table, _ := x.guest.Frames()
	x.first = uint32(table)
	for i := range uint32(granted) {
		x.guest.Table().Set(xen.Gref(writable+i), gnttab.Entry{Flags: gnttab.PermitAccess, Frame: x.first + i})
		x.guest.Table().Set(xen.Gref(readOnly+i), gnttab.Entry{Flags: gnttab.PermitAccess | gnttab.ReadOnly, Frame: x.first + i})
	}
	return x
}

// gntdev opens the device for this process.
func (x *fakeXen) gntdev() *Gntdev { return OpenGntdev(x.hv, x.dom0, Process(os.Getpid())) }

// page returns a page that the guest granted.
func (x *fakeXen) page(i int) []byte { return x.guest.Frame(x.first + uint32(i)) }

func (x *fakeXen) wantUnused(t testing.TB) {
	t.Helper()
	if i := x.guest.Info(); i.Pins != 0 || i.GrantsInUse != 0 {
		t.Errorf("%d grants in use by %d pins, want none", i.GrantsInUse, i.Pins)
	}
	if n := x.dom0.Info().Maps; n != 0 {
		t.Errorf("%d maps, want none", n)
	}
}

func wantErrno(t testing.TB, what string, got, want unix.Errno) {
	t.Helper()
	if got != want {
		t.Errorf("%s: errno %d (%v), want %d", what, got, got, want)
	}
}

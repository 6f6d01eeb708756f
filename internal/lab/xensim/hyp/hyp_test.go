// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small is a domain with room for two frames of grants and a few pages.
var small = wire.DomainConfig{Pages: 32, MaxGrantFrames: 2, MaxEventChannels: 8, MaxMaptrackFrames: 1}

func newXen(t testing.TB) *Hypervisor {
	t.Helper()
	h, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Interrupt()
		h.Close()
	})
	return h
}

func newGuest(t testing.TB, h *Hypervisor) *Domain {
	t.Helper()
	d, err := h.Create(small)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	ref   = 9 // a reference of the first frame
	page  = 5 // a page of the domain's memory
	table = 2 // frames before it, see small
)

// grant writes an entry as the guest does.
func grant(d *Domain, ref xen.Gref, flags uint16, to xen.Domid, frame uint32) {
	d.Table().Set(ref, gnttab.Entry{Flags: flags, Domid: to, Frame: frame})
}

func wantStatus(t testing.TB, what string, got, want gntdev.Status) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func wantFlags(t testing.TB, d *Domain, want uint16) {
	t.Helper()
	if got := d.Table().Head(ref).Flags(); got != want {
		t.Errorf("flags of the entry are %#x, want %#x", got, want)
	}
}

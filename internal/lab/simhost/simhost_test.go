// SPDX-License-Identifier: Apache-2.0

package simhost

import (
	"errors"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/simtest"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEmbeddedXen: a handle for one domain reaches no other domain.
func TestEmbeddedXen(t *testing.T) {
	dir := simtest.Start(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dom0, err := simclient.Dial(dir, 0)
	must(err)
	defer func() { must(dom0.Close()) }()
	control, err := dom0.Control()
	must(err)
	defer func() { must(control.Close()) }()
	one, err := control.CreateDomain(simclient.DomainConfig{})
	must(err)
	two, err := control.CreateDomain(simclient.DomainConfig{})
	must(err)

	h, err := Open(dir)
	must(err)
	if _, err := h.Grants().Map(one, []xen.Gref{4711}, gntdev.ReadWrite); !errors.Is(err, unix.EINVAL) {
		t.Errorf("mapped what was not granted: %v", err)
	}
	m, err := h.OpenMapper()
	must(err)
	if _, err := m.Map(one, []xen.Gref{4711}, gntdev.ReadOnly); !errors.Is(err, unix.EINVAL) {
		t.Errorf("mapped what was not granted: %v", err)
	}
	must(m.Close())
	e, err := h.OpenEvents(one)
	must(err)
	if _, err := e.BindInterdomain(two, 1); !errors.Is(err, unix.EACCES) {
		t.Errorf("bound a channel of another domain: %v", err)
	}
	if _, err := e.BindInterdomain(one, 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bound what was not offered: %v", err)
	}
	must(e.Close())
	zero, err := h.OpenEvents(0)
	must(err) // Xen would refuse to name it
	must(zero.Close())
	for range 2 {
		s, err := h.DialStore(t.Context())
		must(err)
		if _, err := s.List(t.Context(), "/"); err != nil {
			t.Error(err)
		}
		must(s.Close())
	}
	must(h.Close())
	if _, err := h.Grants().Map(one, []xen.Gref{1}, gntdev.ReadWrite); !errors.Is(err, gntdev.ErrClosed) {
		t.Errorf("mapped after the end: %v", err)
	}
}

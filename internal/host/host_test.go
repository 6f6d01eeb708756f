// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/simtest"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNotThere: an error says what to do.
func TestNotThere(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(filepath.Join(dir, "xen"))
	if err == nil || !strings.Contains(err.Error(), "modprobe xen-gntdev xen-evtchn") || !strings.Contains(err.Error(), "netbackd demo") {
		t.Errorf("without a directory: %v", err)
	}
	_, err = Open(dir)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe xen-gntdev") {
		t.Errorf("without gntdev: %v", err)
	}
	// Any file can be opened; that it is no event channel device shows later.
	for _, name := range []string{"gntdev", "evtchn"} {
		_, err := Open(dir)
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe xen-"+name) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.OpenEvents(1); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("a file that restricts: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// TestEmbeddedXen: what is opened belongs to one domain, and to each its own.
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
	if _, err := h.Grants().Map(one, []gntdev.Ref{4711}, gntdev.ReadWrite); !errors.Is(err, unix.EINVAL) {
		t.Errorf("mapped what was not granted: %v", err)
	}
	m, err := h.OpenMapper()
	must(err)
	if _, err := m.Map(one, []gntdev.Ref{4711}, gntdev.ReadOnly); !errors.Is(err, unix.EINVAL) {
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
		s, err := h.DialStore()
		must(err)
		if _, err := s.List("/"); err != nil {
			t.Error(err)
		}
		must(s.Close())
	}
	must(h.Close())
	if _, err := h.Grants().Map(one, []gntdev.Ref{1}, gntdev.ReadWrite); !errors.Is(err, gntdev.ErrClosed) {
		t.Errorf("mapped after the end: %v", err)
	}
}

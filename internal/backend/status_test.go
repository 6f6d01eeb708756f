// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestStatusOfOneVif finds a vif by its name. If there is none, the error names others.
func TestStatusOfOneVif(t *testing.T) {
	w, _ := withKernel(t, true, xenbus.VifID{Domid: 1, Devid: 0})
	b, _ := w.start()
	if _, err := b.Status(t.Context(), "vif9.0", 0); !errors.Is(err, ErrNoVif) || !strings.Contains(err.Error(), "the daemon has none") {
		t.Errorf("of none: %v", err)
	}
	w.attach(1, 0)
	w.attach(2, 0)
	w.awaitServed(b, map[string]string{"vif1.0": "kernel", "vif2.0": "none"})
	w.must(b.Adopt("vif2.0"))
	for name, servedBy := range map[string]string{"vif1.0": "kernel", "vif2.0": ""} {
		s, err := b.Status(t.Context(), name, 0)
		if err != nil || s.Name != name || s.ServedBy != servedBy {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if diff := gocmp.Diff([]string{"vif1.0", "vif2.0"}, b.Names()); diff != "" {
		t.Errorf("unexpected names (-want +got):\n%s", diff)
	}
	for _, name := range []string{"vif9.0", "eth0", ""} {
		_, err := b.Status(t.Context(), name, 0)
		if want := name + ": no such vif; there are vif1.0, vif2.0"; err == nil || err.Error() != want || !errors.Is(err, ErrNoVif) {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
	want := map[string]string{"vif1.0": "kernel", "vif2.0": ""}
	for i := range 8 {
		w.attach(100+i, 0)
		want[fmt.Sprintf("vif%d.0", 100+i)] = "none"
	}
	w.awaitServed(b, want)
	if _, err := b.Status(t.Context(), "vif9.0", 0); err == nil || !strings.HasSuffix(err.Error(), "there are vif1.0, vif2.0, vif100.0, vif101.0, vif102.0, vif103.0, vif104.0, vif105.0, ...") {
		t.Errorf("of many: %v", err)
	}
}

// TestStatusByInterface finds a vif by the name of its renamed interface.
func TestStatusByInterface(t *testing.T) {
	w := newWorld(t)
	w.attach(1, 0)
	b, _ := w.start()
	w.await(b, "vif1.0")
	w.must(netns.Rename("vif1.0", "web"))
	if s, err := b.Status(t.Context(), "web", 0); err != nil || s.Name != "vif1.0" || s.Interface != "web" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestStatusWaitsForAnotherRevision: Status waits for another revision of the vif, and no
// longer than its context.
func TestStatusWaitsForAnotherRevision(t *testing.T) {
	w := newWorld(t)
	w.attach(1, 0)
	b, _ := w.start()
	w.await(b, "vif1.0")
	was, err := b.Status(t.Context(), "vif1.0", 0)
	for was.Interface == "" && err == nil {
		was, err = b.Status(t.Context(), "vif1.0", was.Revision)
	}
	w.must(err)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if s, err := b.Status(ctx, "vif1.0", was.Revision); err != nil || s.Revision != was.Revision || ctx.Err() == nil {
		t.Errorf("unchanged: revision %d, want %d; %v", s.Revision, was.Revision, err)
	}
	go func() { _ = w.tool.Write(t.Context(), w.back(1, 0)+"/hotplug-status", "connected") }()
	for s := was; s.Hotplug != "connected"; {
		if s, err = b.Status(t.Context(), "vif1.0", s.Revision); err != nil {
			t.Fatal(err)
		}
	}
	go w.detach(1, 0)
	for s := was; err == nil; s, err = b.Status(t.Context(), "vif1.0", s.Revision) {
	}
	if !errors.Is(err, ErrNoVif) {
		t.Errorf("of a vif that ends: %v", err)
	}
}

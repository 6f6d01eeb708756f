// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// fakeKernel is the kernel's driver as the backend sees it.
type fakeKernel struct {
	mu     sync.Mutex // guards all below
	loaded bool
	has    map[xenbus.VifID]bool
}

func (r *fakeKernel) Loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

func (r *fakeKernel) Serves(id xenbus.VifID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.has[id]
}

func (r *fakeKernel) set(loaded bool, has ...xenbus.VifID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded, r.has = loaded, map[xenbus.VifID]bool{}
	for _, k := range has {
		r.has[k] = true
	}
}

// withKernel is a world with the kernel's driver.
func withKernel(t *testing.T, loaded bool, has ...xenbus.VifID) (*world, *fakeKernel) {
	w := newWorld(t)
	r := &fakeKernel{}
	r.set(loaded, has...)
	w.kernel = r
	return w, r
}

// marked reports whether a vif's directory says that it is ours.
func (w *world) marked(domid, devid int) bool {
	w.t.Helper()
	v, err := w.tool.Read(w.t.Context(), w.back(domid, devid)+"/served-by")
	if !errors.Is(err, xenstore.ErrNotExist) {
		w.must(err)
	}
	return v == "netbackd"
}

// awaitServed waits until the status list names these servers of the vifs. "" is
// netbackd.
func (w *world) awaitServed(b *Backend, want map[string]string) {
	w.t.Helper()
	var diff string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got := map[string]string{}
		for _, l := range b.Lines() {
			got[l.Name] = l.ServedBy
		}
		if diff = cmp.Diff(want, got); diff == "" {
			return
		}
	}
	w.t.Fatalf("unexpected list (-want +got):\n%s", diff)
}

// TestNoDriver: without the driver netbackd serves all vifs, and keeps them when the
// driver is loaded.
func TestNoDriver(t *testing.T) {
	w, r := withKernel(t, false)
	w.attach(1, 0)
	b, stop := w.start()
	w.await(b, "vif1.0")
	if !w.marked(1, 0) {
		t.Error("not marked")
	}
	r.set(true)
	stop()
	w.attach(2, 0)
	b, _ = w.start()
	w.awaitServed(b, map[string]string{"vif1.0": "", "vif2.0": "none"})
	r.set(true, xenbus.VifID{Domid: 2, Devid: 0})
	w.awaitServed(b, map[string]string{"vif1.0": "", "vif2.0": "kernel"})
}

// TestDriverLoaded: a loaded driver owns all vifs, even before it has bound them.
func TestDriverLoaded(t *testing.T) {
	w, r := withKernel(t, true, xenbus.VifID{Domid: 1, Devid: 0})
	w.attach(1, 0)
	b, _ := w.start()
	w.attach(2, 0)
	w.awaitServed(b, map[string]string{"vif1.0": "kernel", "vif2.0": "none"})
	w.must(w.tool.Write(t.Context(), w.back(2, 0)+"/hotplug-status", "connected"))
	r.set(true, xenbus.VifID{Domid: 1, Devid: 0}, xenbus.VifID{Domid: 2, Devid: 0})
	w.awaitServed(b, map[string]string{"vif1.0": "kernel", "vif2.0": "kernel"})
	if taps := w.taps(); len(taps) != 0 {
		t.Errorf("interfaces %v", taps)
	}
	for _, k := range []string{"state", "hotplug-status"} { // the kernel's nodes are not touched
		want := map[string]string{"state": "1", "hotplug-status": "connected"}[k]
		if got, err := w.tool.Read(t.Context(), w.back(2, 0)+"/"+k); got != want || err != nil {
			t.Errorf("%s is %q, %v", k, got, err)
		}
	}
	w.detach(2, 0)
	w.awaitServed(b, map[string]string{"vif1.0": "kernel"})
}

// TestAdopt: an adopted vif belongs to netbackd, and to the next daemon.
func TestAdopt(t *testing.T) {
	w, r := withKernel(t, true, xenbus.VifID{Domid: 1, Devid: 0})
	w.attach(1, 0)
	// As the driver does before the toolstack runs its script.
	w.must(w.tool.Write(t.Context(), w.back(1, 0)+"/state", "2"))
	b, stop := w.start()
	w.awaitServed(b, map[string]string{"vif1.0": "kernel"})
	if err := b.Adopt("vif1.0"); !errors.Is(err, devices.ErrKernelServes) {
		t.Errorf("got %v", err)
	}
	w.must(b.CanAdopt("vif1.0"))

	r.set(true)
	w.must(w.tool.Remove(t.Context(), w.back(1, 0)+"/hotplug-status"))
	w.must(b.Adopt("vif1.0"))
	w.await(b, "vif1.0")
	if s, err := w.tool.Read(t.Context(), w.back(1, 0)+"/hotplug-status"); s != "" || err != nil {
		t.Errorf("hotplug-status %q, %v", s, err)
	}
	for _, l := range w.log.All() {
		if strings.Contains(l.Message, "trouble") {
			t.Errorf("complains: %v", l.ContextMap())
		}
	}
	w.must(b.Adopt("vif1.0")) // again
	stop()
	b, _ = w.start()
	w.await(b, "vif1.0")
}

// TestRelease gives a vif back to the kernel.
func TestRelease(t *testing.T) {
	w, r := withKernel(t, false)
	w.attach(1, 0)
	b, _ := w.start()
	w.await(b, "vif1.0")
	if _, err := b.Release("vif1.0"); !errors.Is(err, devices.ErrKernelNotLoaded) {
		t.Errorf("got %v", err)
	}
	r.set(true)
	w.must(w.tool.Write(t.Context(), w.back(1, 0)+"/hotplug-status", "connected"))
	lost, err := b.Release("vif1.0")
	if lost != 0 || err != nil {
		t.Errorf("%d lost, %v", lost, err)
	}
	w.awaitServed(b, map[string]string{"vif1.0": "none"})
	if len(w.taps()) != 0 || w.marked(1, 0) {
		t.Errorf("interfaces %v, marked %t", w.taps(), w.marked(1, 0))
	}
	for k, want := range map[string]string{"state": "2", "hotplug-status": ""} {
		if got, err := w.tool.Read(t.Context(), w.back(1, 0)+"/"+k); got != want || err != nil {
			t.Errorf("%s is %q, %v", k, got, err)
		}
	}
	if _, err := b.Release("vif1.0"); !errors.Is(err, ErrNoVif) {
		t.Errorf("got %v", err)
	}
	w.must(b.Adopt("vif1.0"))
	w.await(b, "vif1.0")
}

// TestDriverComesFirst: the driver is loaded after netbackd looked for it and before
// netbackd makes its TAP. The driver's interface has the name, so the driver keeps the
// vif.
func TestDriverComesFirst(t *testing.T) {
	w, r := withKernel(t, false)
	w.kernel = &lateKernel{fakeKernel: r, after: 1}
	b, _ := w.start()
	_, err := netns.AddBridge("vif1.0") // any interface but a TAP
	w.must(err)
	t.Cleanup(func() { w.must(netns.Delete("vif1.0")) })
	w.attach(1, 0)
	w.awaitServed(b, map[string]string{"vif1.0": "kernel"})
	if got, err := w.tool.Read(t.Context(), w.back(1, 0)+"/state"); got != "1" || err != nil {
		t.Errorf("state %q, %v", got, err)
	}
	for end := time.Now().Add(10 * time.Second); w.marked(1, 0); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("is still marked as ours")
		}
	}
}

// lateKernel serves no vif for the first after calls of Serves, and then every vif.
type lateKernel struct {
	*fakeKernel
	after int
}

func (r *lateKernel) Serves(xenbus.VifID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.after--
	r.loaded = r.after < 0
	return r.after < 0
}

func TestAdoptOfUnknownVif(t *testing.T) {
	w, _ := withKernel(t, true)
	b, _ := w.start()
	for _, name := range []string{"vif9.0", "vif01.0", "1.0", "eth0", "vif1.0 ", ""} {
		for what, err := range map[string]error{
			"adopt": b.Adopt(name), "can adopt": b.CanAdopt(name),
			"release": func() error { _, err := b.Release(name); return err }(),
		} {
			if !errors.Is(err, ErrNoVif) {
				t.Errorf("%s %q: %v", what, name, err)
			}
		}
	}
}

// TestAdoptWithoutXenstore: a request for a vif fails in time while xenstore is gone.
func TestAdoptWithoutXenstore(t *testing.T) {
	w, _ := withKernel(t, true)
	w.attach(1, 0)
	b, _ := w.start()
	w.awaitServed(b, map[string]string{"vif1.0": "none"})
	w.cut()
	if err := b.Adopt("vif1.0"); err == nil {
		t.Error("adopted")
	}
	w.mend()
	w.awaitServed(b, map[string]string{"vif1.0": "none"})
}

var _ Kernel = (*fakeKernel)(nil)

// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestEvents: after lost events the set reads everything, after others only the devices that
// they name.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	for _, id := range []xenbus.DeviceID{vbd(1, 0), vbd(1, 1), vbd(2, 0), vbd3(1, 1)} {
		w.attach(id, "ours")
	}
	const base = "/local/domain/0/backend/vbd"
	for _, tt := range []struct {
		event xenstore.Event
		want  []string
	}{
		{xenstore.Event{Overflow: true}, []string{"vbd-1-0", "vbd-1-1", "vbd3-1-1", "vbd-2-0"}},
		{xenstore.Event{Path: base}, []string{"vbd-1-0", "vbd-1-1", "vbd3-1-1", "vbd-2-0"}},
		{xenstore.Event{Path: base + "3"}, []string{"vbd-1-0", "vbd-1-1", "vbd3-1-1", "vbd-2-0"}},
		{xenstore.Event{Path: "/local/domain/0"}, []string{"vbd-1-0", "vbd-1-1", "vbd3-1-1", "vbd-2-0"}},
		{xenstore.Event{Path: base + "/1"}, []string{"vbd-1-0", "vbd-1-1"}},
		{xenstore.Event{Path: base + "3/1"}, []string{"vbd3-1-1"}},
		{xenstore.Event{Path: base + "/1/1"}, []string{"vbd-1-1"}},
		{xenstore.Event{Path: base + "3/1/1"}, []string{"vbd3-1-1"}},
		{xenstore.Event{Path: base + "/2/0/state"}, []string{"vbd-2-0"}},
		{xenstore.Event{Path: base + "/2/0/a/b/c"}, []string{"vbd-2-0"}},
		{xenstore.Event{Path: base + "/3/0/state"}, nil},
		{xenstore.Event{Path: base + "/guest"}, nil},
		{xenstore.Event{Path: base + "/1/xvda/state"}, nil},
	} {
		t.Run(fmt.Sprintf("%+v", tt.event), func(t *testing.T) {
			s := w.set()
			ctx, cancel := context.WithCancel(context.Background())
			w.must(s.dial(ctx))
			w.must(s.findSelf(ctx))
			w.must(s.changed(ctx, tt.event))
			got := served(s)
			cancel()
			s.wg.Wait()
			w.must(s.store.Close())
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("unexpected devices (-want +got):\n%s", diff)
			}
		})
	}
}

// TestWanted: devices of two classes come and go. Those that the toolstack means for another
// back end are listed, not marked, and served once their directory is made again for us.
func TestWanted(t *testing.T) {
	w := newWorld(t)
	w.attach(vbd(1, 0), "ours")
	s, _ := w.start()
	w.attach(vbd3(1, 0), "ours")
	w.attach(vbd(2, 51712), "block")
	w.await(s, "vbd-1-0", "vbd3-1-0", "vbd-2-51712: not wanted")
	if got := w.node(vbd(2, 51712), "served-by"); got != "-" {
		t.Errorf("served-by of another's device is %q", got)
	}
	if got := w.node(vbd3(1, 0), "served-by"); got != "diskd" {
		t.Errorf("served-by of our device is %q", got)
	}
	if diff := cmp.Diff([]string{"vbd-1-0", "vbd3-1-0", "vbd-2-51712"}, s.Names()); diff != "" {
		t.Errorf("unexpected names (-want +got):\n%s", diff)
	}
	if s.Len() != 2 {
		t.Errorf("%d devices are served", s.Len())
	}
	if _, err := s.Adopt(t.Context(), vbd(2, 51712)); !errors.Is(err, ErrNotWanted) {
		t.Errorf("adopt of another's device: %v", err)
	}
	if err := s.CanAdopt(t.Context(), vbd(2, 51712)); !errors.Is(err, ErrNotWanted) {
		t.Errorf("another's device can be adopted: %v", err)
	}
	if _, err := s.Adopt(t.Context(), vbd(9, 0)); !errors.Is(err, errNoDisk) {
		t.Errorf("adopt of no device: %v", err)
	}
	w.detach(vbd(2, 51712))
	w.await(s, "vbd-1-0", "vbd3-1-0")
	w.attach(vbd(2, 51712), "ours")
	w.await(s, "vbd-1-0", "vbd3-1-0", "vbd-2-51712")
	w.detach(vbd(1, 0))
	w.await(s, "vbd3-1-0", "vbd-2-51712")
	w.detach(vbd3(1, 0))
	if domid := <-w.gone; domid != 1 {
		t.Errorf("guest %d is gone", domid)
	}
	w.await(s, "vbd-2-51712")
}

// TestLimit: a guest with too many devices gets the rest when others are gone, and other
// guests get theirs.
func TestLimit(t *testing.T) {
	w := newWorld(t)
	w.limit = 2
	s, _ := w.start()
	w.attach(vbd(1, 0), "ours")
	w.attach(vbd3(1, 1), "ours")
	w.await(s, "vbd-1-0", "vbd3-1-1")
	w.attach(vbd(1, 2), "ours")
	w.attach(vbd(2, 0), "ours")
	w.await(s, "vbd-1-0", "vbd3-1-1", "vbd-1-2: over limit", "vbd-2-0")
	got, err := w.tool.Read(t.Context(), vbd(1, 2).ErrorPath(0))
	if got != "diskd serves at most 2 disks of a guest" || err != nil {
		t.Errorf("error node %q, %v", got, err)
	}
	if _, err := s.Adopt(t.Context(), vbd(1, 2)); err == nil || !strings.Contains(err.Error(), "at most 2 disks") {
		t.Errorf("adopt: %v", err)
	}
	w.detach(vbd(1, 0))
	w.await(s, "vbd3-1-1", "vbd-1-2", "vbd-2-0")
}

// TestKernelOfOneClass: the kernel's driver has the devices of one class only. Devices move
// between it and the set.
func TestKernelOfOneClass(t *testing.T) {
	w := newWorld(t)
	w.kernel.set(true, vbd(1, 0))
	w.attach(vbd(1, 0), "ours")
	w.attach(vbd3(1, 1), "ours")
	s, stop := w.start()
	w.await(s, "vbd-1-0: kernel", "vbd3-1-1")
	w.must(s.CanAdopt(t.Context(), vbd(1, 0)))
	if _, err := s.Adopt(t.Context(), vbd(1, 0)); !errors.Is(err, ErrKernelServes) || !strings.Contains(err.Error(), "xen-blkback") {
		t.Errorf("adopt: %v", err)
	}
	w.kernel.set(true)
	d, err := s.Adopt(t.Context(), vbd(1, 0))
	w.must(err)
	if d.id != vbd(1, 0) || w.node(vbd(1, 0), "served-by") != "diskd" || w.node(vbd(1, 0), "claimed") != "1" || w.node(vbd(1, 0), "hotplug-status") != "" {
		t.Errorf("adopted %v, served-by %q, claimed %q, hotplug-status %q", d.id,
			w.node(vbd(1, 0), "served-by"), w.node(vbd(1, 0), "claimed"), w.node(vbd(1, 0), "hotplug-status"))
	}
	stop()
	s, _ = w.start()
	w.await(s, "vbd-1-0", "vbd3-1-1")
	if err := s.Release(t.Context(), vbd3(1, 1), func(*fake) error { return nil }); !errors.Is(err, ErrKernelNotLoaded) {
		t.Errorf("release of a device that the driver does not take: %v", err)
	}
	refused := errors.New("busy")
	if err := s.Release(t.Context(), vbd(1, 0), func(*fake) error { return refused }); !errors.Is(err, refused) || w.node(vbd(1, 0), "served-by") != "diskd" {
		t.Errorf("refused release: %v", err)
	}
	if err := s.Release(t.Context(), vbd(9, 0), nil); !errors.Is(err, errNoDisk) {
		t.Errorf("release of no device: %v", err)
	}
	w.must(s.Release(t.Context(), vbd(1, 0), func(*fake) error { return nil }))
	if w.node(vbd(1, 0), "served-by") != "-" || w.node(vbd(1, 0), "claimed") != "-" {
		t.Error("a released device is marked as ours")
	}
}

// TestNames finds devices by their names, and names others in errors.
func TestNames(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start()
	if err := s.NoSuch("vbd-9-0"); !errors.Is(err, errNoDisk) || !strings.Contains(err.Error(), "disk=[...]") {
		t.Errorf("of none: %v", err)
	}
	w.attach(vbd(1, 0), "ours")
	w.await(s, "vbd-1-0")
	if got, ok := s.Status(t.Context(), vbd(1, 0), 0); got != "vbd-1-0" || !ok {
		t.Errorf("status %q, %t", got, ok)
	}
	if _, ok := s.Status(t.Context(), vbd(9, 0), 0); ok {
		t.Error("a device that does not exist has a status")
	}
	if err := s.NoSuch("x"); err.Error() != "x: no such disk; there are vbd-1-0" {
		t.Errorf("of one: %v", err)
	}
	for _, name := range []string{"vif1.0", "xvda", "", "vbd-1"} {
		if id, err := s.Parse(name); !errors.Is(err, errNoDisk) {
			t.Errorf("%q: %v, %v", name, id, err)
		}
	}
	w.must(s.Reset("vbd-1-0"))
	if err := s.Reset("vbd-1-1"); !errors.Is(err, errNoDisk) {
		t.Errorf("reset: %v", err)
	}
}

// TestSweep: what is still in use is swept again, but not for ever.
func TestSweep(t *testing.T) {
	for inUse, want := range map[int]int{0: 1, 1: 2, 100: maxSweeps} {
		left := inUse
		s := New(Config[*fake, string]{Kind: fakeKind{inUse: &left}, Classes: []xenbus.Class{xenbus.VBD}})
		for s.sweep(); s.sweepAt != nil; s.sweep() {
		}
		if s.sweeps != want {
			t.Errorf("in use %d times: swept %d times, want %d", inUse, s.sweeps, want)
		}
	}
}

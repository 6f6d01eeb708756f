// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// resources counts the process's resources that connections use.
func resources(t *testing.T) map[string]int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]int{
		"descriptors": len(fds),
		"journals":    bytes.Count(maps, []byte("/ring-")),
		"goroutines":  runtime.NumGoroutine(),
	}
}

// beginAnew frees the guest's rings and channels, so that it can connect again.
func (w *world) beginAnew() {
	w.t.Helper()
	for n := xen.Gref(8); n < w.next; n++ {
		w.must(w.host.Revoke(n))
		w.host.Withdraw(evtchn.Port(n))
	}
	w.next = 8
	w.frontState(xenbus.Initialising)
	w.settle()
}

// TestThousandConnections: connecting and disconnecting, properly or not, leaves
// nothing behind.
func TestThousandConnections(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.frontState(xenbus.Closed)
	w.settle()
	cycle := func(i int) {
		w.beginAnew()
		if i%10 == 9 {
			w.rings(2, true, "queue-1/rx-ring-ref", "4095")
		} else {
			w.rings(1+i%2, i%3 == 0)
		}
		w.frontState(xenbus.Connected)
		w.settle()
		switch i % 4 {
		case 0:
			w.frontState(xenbus.Closing)
			w.settle()
		case 1:
			if w.v.conn != nil {
				w.v.quarantine(t.Context(), fmt.Errorf("round %d", i))
			}
		}
		w.frontState(xenbus.Closed)
		w.settle()
		w.wantState("6")
	}
	for i := range 12 {
		cycle(i) // all kinds once, so that everything that is made at first use exists
	}
	before := resources(t)
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	for i := range 1000 {
		cycle(i)
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	if diff := cmp.Diff(before, resources(t)); diff != "" {
		t.Errorf("resources after 1000 connections (-before +after):\n%s", diff)
	}
	w.wantHeld(nothing)
	w.wantTapAtRest()
	if got := w.journals(); got != "" {
		t.Errorf("journals left: %s", got)
	}
	if grew := int64(m1.HeapAlloc) - int64(m0.HeapAlloc); grew > 1<<20 {
		t.Errorf("heap grew by %d bytes", grew)
	}
}

// TestHundredControlRings: a guest that uses its whole control ring leaves nothing behind
// either, no matter which side ends the connection, also in the middle of a message.
func TestHundredControlRings(t *testing.T) {
	w := ctrlWorld(t, ctrlserver.Slot|ctrlserver.Stream)
	w.attach()
	w.settle()
	w.plugIn()
	cycle := func(i int) {
		w.beginAnew()
		if w.v.cfg.NoBPF = w.cfg.NoBPF; i%50 != 1 {
			w.v.cfg.NoBPF = errors.New("each change takes the kernel some milliseconds")
		}
		p := ctrlring.Slot
		if i%5 == 4 {
			p = ctrlring.Stream
		}
		g := w.control(p)
		w.rings(1+i%2, false, g.names()...)
		w.frontState(xenbus.Connected)
		w.settle()
		if p == ctrlring.Stream {
			g.want(0, netif.CtrlSetHashFlags, 15)
		} else {
			var list []netif.GrefEntry
			for range 8 {
				list = append(list, netif.GrefEntry{Ref: w.page(nil)})
			}
			page := w.page(gref(list...))
			g.want(0, netif.CtrlSetHashAlgorithm, 1)
			g.want(0, netif.CtrlSetHashFlags, 15)
			g.want(0, netif.CtrlAddGrefMapping, 0, uint32(page), 8)
			g.want(0, netif.CtrlDelGrefMapping, 0, uint32(page), 3)
			g.want(0, netif.CtrlAddGrefMapping, 0, uint32(page), 2)
			if i%3 == 0 {
				g.send(ctrlring.Request{Type: netif.CtrlAddGrefMapping, Data: [3]uint32{0, uint32(page + 1), 1}})
			}
		}
		switch i % 4 {
		case 0:
			w.frontState(xenbus.Closing)
			w.settle()
		case 1:
			w.v.quarantine(t.Context(), fmt.Errorf("round %d", i))
		case 2:
			g.breach()
		}
		w.frontState(xenbus.Closed)
		w.settle()
		w.wantState("6")
		w.wantHeld(nothing)
	}
	for i := range 20 {
		cycle(i)
	}
	before := resources(t)
	for i := range 100 {
		cycle(i)
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	if diff := cmp.Diff(before, resources(t)); diff != "" {
		t.Errorf("resources after 100 connections (-before +after):\n%s", diff)
	}
	w.frontState(xenbus.Initialising)
	w.settle()
	if got := w.journals(); got != "" {
		t.Errorf("left in the run directory: %s", got)
	}
	if n := w.cfg.GrantBudget.Used(); n != 0 {
		t.Errorf("%d pages counted as the guest's", n)
	}
}

// TestRemoveLeftovers removes the TAPs and files of vifs that were removed while no daemon
// served them.
func TestRemoveLeftovers(t *testing.T) {
	netns.NeedTUN(t)
	dir := t.TempDir()
	make := func(name, alt string) *tap.Device {
		d, err := tap.Create(tap.Config{Name: name, Persist: true})
		if err != nil {
			t.Fatal(err)
		}
		if alt != "" {
			if err := d.AddAltName(alt); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	devices := map[string]*tap.Device{
		"vif1.0":   make("vif1.0", altName(xenbus.VifID{Domid: 1, Devid: 0})),   // gone
		"guestnet": make("guestnet", altName(xenbus.VifID{Domid: 1, Devid: 1})), // gone, and renamed
		"vif2.0":   make("vif2.0", altName(xenbus.VifID{Domid: 2, Devid: 0})),   // still there
		"vif3.0":   make("vif3.0", altName(xenbus.VifID{Domid: 3, Devid: 0})),   // gone, but a process has it open
		"vif4.0":   make("vif4.0", ""),                                          // not ours
		"vif5.0":   make("vif5.0", "netbackd-vif5"),                             // not ours either
	}
	for name, d := range devices {
		if name == "vif3.0" {
			defer func() { _ = d.Close() }()
			continue
		}
		if err := d.CloseKeep(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = removeTapNamed(name) }()
	}
	files := []string{"ring-1.0-0", "ring-1.1-7", "ring-2.0-0", "ring-4", "ring-1.0-0.old", "ring-01.0-0", "control.sock", "ring-70000.0-0"}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here := func(id xenbus.VifID) bool { return id == xenbus.VifID{Domid: 2} }
	removed, inUse, err := RemoveLeftovers(dir, here)
	if err != nil || !inUse {
		t.Errorf("in use %t, error %v", inUse, err)
	}
	want := map[string]bool{"vif1.0": true, "guestnet": true, "ring-1.0-0": true, "ring-1.1-7": true}
	got := map[string]bool{}
	for _, r := range removed {
		got[r] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unexpected removals (-want +got):\n%s", diff)
	}
	for name := range devices {
		if there := netns.Up(name) == nil; there == want[name] {
			t.Errorf("%s is there: %t", name, there)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(filepath.Join(dir, f)); (err == nil) == want[f] {
			t.Errorf("%s: %v", f, err)
		}
	}
	if removed, inUse, err := RemoveLeftovers(dir, here); !inUse || err != nil || len(removed) > 0 {
		t.Errorf("the second time removed %v, %v", removed, err)
	}
	if removed, _, err := RemoveLeftovers("", here); err != nil || len(removed) > 0 {
		t.Errorf("without a directory removed %v, %v", removed, err)
	}
	if _, _, err := RemoveLeftovers(filepath.Join(dir, "nowhere"), here); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestLinkWatcher waits for the events of one interface, and not for those of others.
func TestLinkWatcher(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	other, err := netlink.LinkByName("lo")
	w.must(err)
	watcher, err := newLinkWatcher(w.v.tap.Index(), time.Now().Add(10*time.Second))
	w.must(err)
	defer watcher.close()
	w.must(netlink.LinkSetMTU(other, 1400))
	w.must(netlink.LinkSetMTU(w.iface(ifname), 1300))
	w.must(watcher.wait())
	w.must(netlink.LinkSetMTU(other, 1300))
	w.must(watcher.file.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
	for err = nil; err == nil; err = watcher.wait() { // the change may be several events
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wait after the last event: %v", err)
	}
}

// TestCarrierEvent: when the kernel acts on a carrier there is an event.
func TestCarrierEvent(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	w.must(w.v.tap.SetCarrier(false))
	w.eventually("no carrier", func() bool { done, err := w.v.operational(); return err == nil && !done })
	watcher, err := newLinkWatcher(w.v.tap.Index(), time.Now().Add(10*time.Second))
	w.must(err)
	defer watcher.close()
	w.must(w.v.tap.SetCarrier(true))
	w.must(watcher.wait())
	if err := w.v.awaitOperational(); err != nil {
		t.Error(err)
	}
	if done, err := w.v.operational(); !done || err != nil {
		t.Errorf("operational: %v, %v", done, err)
	}
}

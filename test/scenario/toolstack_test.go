// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func script(s lab.Script) option { return vifKeys(func(v *lab.VifConfig) { v.Script = s }) }

// TestInterfaceIsThereBeforeInitWait: the toolstack starts its script at InitWait, so the
// interface must exist by then.
func TestInterfaceIsThereBeforeInitWait(t *testing.T) {
	w := newWorld(t)
	ran := false
	f := w.rawFront(1, script(func(ctx context.Context, s *xenstore.Client, h lab.Hotplug) error {
		if !h.Online {
			return nil
		}
		ran = true
		l, err := netlink.LinkByName(h.Vif)
		if err != nil {
			return fmt.Errorf("the script finds no interface: %w", err)
		}
		if a := l.Attrs(); a.OperState == netlink.OperUp {
			t.Errorf("%s is %v before its guest is there", a.Name, a.OperState)
		}
		if v, err := s.Read(ctx, h.Back+"/feature-rx-copy"); v != "1" {
			t.Errorf("feature-rx-copy is %q at InitWait (%v): features come too late for the guest", v, err)
		}
		return s.Write(ctx, h.Back+"/hotplug-status", "connected")
	}))
	if !ran {
		t.Fatal("the script was not run")
	}
	f.connect()
	f.connected()
}

// TestScriptRenamesTheInterface: with vifname in a guest's config the script renames the
// interface, and the daemon uses the new name.
func TestScriptRenamesTheInterface(t *testing.T) {
	w := newWorld(t)
	g := w.guest(vifKeys(func(v *lab.VifConfig) { v.Name = "web01" }))
	if s := g.status(); s.Interface != "web01" || s.Name != g.VifName() || !s.Carrier || !s.Up {
		t.Errorf("%s has the interface %q, carrier %t, up %t", s.Name, s.Interface, s.Carrier, s.Up)
	}
	g.pings(5)
	// A successor finds it under its new name.
	w.Daemon().Kill()
	w.must(w.StartDaemon(w.ctx))
	g.waitStatus("the successor to serve", func(s *vif.Status) bool { return len(s.Queues) == 1 })
	if s := g.status(); s.Interface != "web01" || !s.Carrier {
		t.Errorf("after kill -9: interface %q, carrier %t", s.Interface, s.Carrier)
	}
	g.pings(5)
	if _, err := w.Detach(w.ctx, g.Domid, g.Devid); err != nil {
		t.Error(err)
	}
	w.vifGone(g.Domid, g.Devid)
	if _, err := netlink.LinkByName("web01"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("web01 is left: %v", err)
	}
	g.innocent()
}

// TestConnectedWaitsForTheHotplugScript: Connected tells the guest that it is on the
// network, so the daemon writes it only after the hotplug script, if there is one.
func TestConnectedWaitsForTheHotplugScript(t *testing.T) {
	w := newWorld(t)
	back := func(key, value string) option {
		return vifKeys(func(v *lab.VifConfig) {
			v.Script = lab.NoScript
			v.Back = map[string]string{key: value}
		})
	}
	for _, c := range []struct {
		name   string
		opt    option
		status string // of hotplug-status, while the guest is Connected already
		waits  bool
	}{
		{"the script comes late", back("hotplug-status", ""), "", true},
		{"the script fails", back("hotplug-status", "error"), "error", true},
		{"the status is of another kind", back("hotplug-status", "busy"), "busy", true},
		{"there is no script", back("hotplug-status", lab.Absent), "", false},
		{"the script was faster than we", back("hotplug-status", "connected"), "connected", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1, c.opt)
			seen := w.record(f.back() + "/state")
			f.offer(f.keys(), xenbus.Connected)
			if c.waits {
				// It connects, and waits with everything ready.
				w.wait("the rings to be mapped", func() bool { return f.status().Grants == 2 })
				s := f.status()
				if s.State != xenbus.InitWait || s.Hotplug != c.status || s.Carrier || !strings.Contains(s.Waits, "hotplug") {
					t.Errorf("state %v, hotplug-status %q, carrier %t, waits for %q", s.State, s.Hotplug, s.Carrier, s.Waits)
				}
				if failed := strings.Contains(s.Error, "hotplug script failed"); failed != (c.status == "error") {
					t.Errorf("with hotplug-status %q the error is %q", c.status, s.Error)
				}
				w.must(w.Store().Write(w.ctx, f.back()+"/hotplug-status", "connected"))
			}
			f.waitBack(xenbus.Connected)
			f.connected()
			w.must(netns.Up(f.name()))
			if s := f.status(); !s.Carrier {
				t.Error("connected without carrier")
			}
			if got := strings.Join(seen.values(), " "); got != "2 4" {
				t.Errorf("states %s, want 2 4", got)
			}
		})
	}
}

func TestMTUOfTheConfigReachesInterfaceAndGuest(t *testing.T) {
	w := newWorld(t)
	g := w.guest(vifKeys(func(v *lab.VifConfig) { v.MTU = 9000 }), func(c *lab.GuestConfig) { c.Front.MTU = 9000 })
	if s := g.status(); s.MTU != 9000 || s.ConfigMTU != 9000 || s.GuestMTU != 9000 {
		t.Errorf("mtu %d, configured %d, guest is told %d; want 9000 everywhere", s.MTU, s.ConfigMTU, s.GuestMTU)
	}
	before := g.counter(dataplane.RxPackets)
	w.pinged(g.ip, 10, 8900)
	if n := g.counter(dataplane.RxPackets) - before; n > 15 {
		t.Errorf("10 pings of 8900 bytes took %d packets: they were cut up", n)
	}
	g.tcpToHost(8 << 20)
	g.tcpToGuest(g.ip, 8<<20)
	g.innocent()
}

func TestTwoVifsOfOneGuest(t *testing.T) {
	w := newWorld(t)
	w.must(w.Bridge("xenbr1", "10.99.0.1/24"))
	g := w.guest()
	second := config(0, vifKeys(func(v *lab.VifConfig) {
		*v = lab.VifConfig{Devid: 1, MAC: "00:16:3e:00:01:01", Bridge: "xenbr1"}
	}))
	w.must(w.Attach(w.ctx, g.Domid, second.Vif))
	second.Front.Name, second.Front.Addrs = "eth1", []string{"10.99.0.10/24"}
	second.Front.Front.Dir = "device/vif/1"
	_, err := g.Attach(w.ctx, second.Front)
	w.must(err)
	w.waitBack(g.Domid, 1, xenbus.Connected)
	w.pinged("10.99.0.10", 5, 0)
	g.pings(5)

	// One goes while the other works.
	whole := g.streaming(16 << 20)
	_, err = w.Detach(w.ctx, g.Domid, 1)
	w.must(err)
	w.vifGone(g.Domid, 1)
	whole()
	if s := g.status(); s.State != xenbus.Connected || s.Quarantine != "" {
		t.Errorf("the other vif is %v, quarantine %q", s.State, s.Quarantine)
	}
	g.innocent()
}

// TestGarbageBelowTheBackendDirectory: directories that no toolstack makes are no vifs.
func TestGarbageBelowTheBackendDirectory(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	f.connect()
	base := "/local/domain/0/backend/vif"
	for _, dir := range []string{
		"abc/0", "-1/0", "01/0", "0x1/0", "1e1/0", "65536/0", "4294967297/0", "32752/0",
		fmt.Sprintf("%d/x", f.domid), fmt.Sprintf("%d/-1", f.domid), fmt.Sprintf("%d/00", f.domid),
		fmt.Sprintf("%d/65536", f.domid), fmt.Sprintf("%d/99999999999999999999", f.domid),
	} {
		w.must(w.Store().Write(w.ctx, base+"/"+dir+"/state", "1"))
		w.must(w.Store().Write(w.ctx, base+"/"+dir+"/frontend", "/local/domain/1/device/vif/0"))
	}
	// A directory without a state, a file where a directory should be.
	w.must(w.Store().Write(w.ctx, fmt.Sprintf("%s/%d/7", base, f.domid), ""))
	w.must(w.Store().Write(w.ctx, base+"/999", ""))
	// The daemon serves a later event, so it has handled all events before it.
	g := w.rawFront(1)
	g.connect()
	vifs, err := w.Control().Vifs(w.ctx)
	w.must(err)
	var names []string
	for _, v := range vifs {
		names = append(names, v.Name)
	}
	if want := []string{f.name(), g.name()}; fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("vifs %v, want %v", names, want)
	}
	links, err := netlink.LinkList()
	w.must(err)
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, "vif") && n != f.name() && n != g.name() {
			t.Errorf("there is an interface %s", n)
		}
	}
	f.connected()
}

// TestInitWaitComesAtOnce: xl gives a backend 10 s to go to InitWait, for one vif of a
// booting guest after the other.
func TestInitWaitComesAtOnce(t *testing.T) {
	w := newWorld(t)
	domid := w.domain()
	var took times
	for devid := range 20 {
		begin := time.Now()
		w.must(w.Attach(w.ctx, domid, lab.VifConfig{
			Devid: devid, MAC: fmt.Sprintf("00:16:3e:00:02:%02x", devid), Bridge: bridge,
			Script: func(context.Context, *xenstore.Client, lab.Hotplug) error {
				took = append(took, time.Since(begin))
				return nil
			},
		}))
	}
	t.Logf("from the nodes to the script: %v", took)
	if d := took.at(0.9); d > 250*time.Millisecond {
		t.Errorf("the script waits %v", d)
	}
	if d := took.at(1); d > 2*time.Second {
		t.Errorf("once the script waited %v", d)
	}
}

// TestManyVifsAttachedAtTheSameTime: a host starts all of its guests at once.
func TestManyVifsAttachedAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	const n = 24
	begin := time.Now()
	done := make(chan error, n)
	domids := make([]xen.Domid, n)
	for i := range n {
		domids[i] = w.domain()
		v := w.vifConfig()
		go func() { done <- w.Attach(w.ctx, domids[i], v) }()
	}
	for range n {
		w.must(<-done)
	}
	t.Logf("%d vifs in InitWait and plugged in after %v", n, time.Since(begin).Round(time.Millisecond))
	for _, d := range domids {
		f := w.join(d, 0)
		f.newRings(1)
		f.connect()
		f.connected()
	}
}

// TestInterfaceThatWasNotBroughtUp: a script attaches the interface and brings it up only
// later. The guest becomes connected, and the daemon shows that it waits for the interface.
func TestInterfaceThatWasNotBroughtUp(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.must(netns.Down(g.VifName()))
	s := g.waitStatus("the daemon to notice", func(s *vif.Status) bool { return !s.Up })
	if s.State != xenbus.Connected || !strings.Contains(s.Waits, "interface up") {
		t.Errorf("state %v, waits for %q", s.State, s.Waits)
	}
	before := g.counter(dataplane.DropTxTapDown)
	_, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP})
	w.must(err)
	g.waitCounter(dataplane.DropTxTapDown, before+1)
	w.must(netns.Up(g.VifName()))
	// The bridge has lost its only port, and with it its carrier. The kernel reports both
	// again before the bridge can send.
	w.wait("the host to answer", func() bool {
		r, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: 1}})
		return err == nil && r.Received == 1
	})
	g.pings(5)
	g.innocent()
}

// TestInterfaceIsDeleted: the interface is deleted under a connected guest. The script's
// settings are lost with it, so the guest is connected again only after the script has run
// again.
func TestInterfaceIsDeleted(t *testing.T) {
	w := newWorld(t)
	g := w.guest(func(c *lab.GuestConfig) { c.Front.Reconnect = true })
	w.undisturbed(func() {
		w.must(netns.Delete(g.VifName()))
		w.waitError(g.Domid, g.Devid, "was deleted; run the script")
		w.wait("the script's work to be taken back", func() bool {
			return w.read(w.BackPath(g.Domid, g.Devid)+"/hotplug-status") == ""
		})
		w.wait("a new interface", func() bool { return w.link(g.Domid, g.Devid) != nil })
		// As an administrator does after reading the error.
		w.must(netns.Attach(g.VifName(), bridge))
		w.must(netns.Up(g.VifName()))
		w.must(w.Store().Write(w.ctx, w.BackPath(g.Domid, g.Devid)+"/hotplug-status", "connected"))
		g.waitStatus("the guest to be back", func(s *vif.Status) bool { return s.State == xenbus.Connected && s.Carrier })
		w.wait("the guest to be reached", func() bool {
			i, err := g.Client.Info(w.ctx, "")
			return err == nil && i.State == xenbus.Connected && i.Backend == xenbus.Connected
		})
		g.waitLink()
		g.pings(5)
	})
}

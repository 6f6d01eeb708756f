// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
)

// bridged returns a lab with BridgeScript and the bridge xenbr0.
func bridged(t *testing.T) (*lab, *netlink.Handle) {
	t.Helper()
	netns.NeedTUN(t)
	h, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name, br.MTU = "xenbr0", 1400
	if err := h.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.LinkDel(br) })
	l := newLab(t)
	l.Toolstack.script = BridgeScript(h)
	return l, h
}

// addTap makes the device as a backend does, up and with an address.
func addTap(t *testing.T, h *netlink.Handle, name string) {
	t.Helper()
	tap := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS}
	tap.Name = name
	if err := h.LinkAdd(tap); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.LinkDel(tap) })
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.AddrAdd(tap, addr), h.LinkSetUp(tap)); err != nil {
		t.Fatal(err)
	}
}

func TestBridgeScript(t *testing.T) {
	for _, tc := range []struct {
		name string
		vif  Vif
		dev  string
		mtu  int
	}{
		{"default", Vif{}, "vif1.0", 1400},
		{"mtu of its own", Vif{MTU: 1280}, "vif1.0", 1280},
		{"name of its own", Vif{Name: "web0"}, "web0", 1400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, h := bridged(t)
			addTap(t, h, "vif1.0")
			l.backend(1, 0, true)
			domid, _, err := l.Create(context.Background(), Config{Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{tc.vif}})
			if err != nil {
				t.Fatal(err)
			}
			br, err := h.LinkByName("xenbr0")
			if err != nil {
				t.Fatal(err)
			}
			link, err := h.LinkByName(tc.dev)
			if err != nil {
				t.Fatal(err)
			}
			a := link.Attrs()
			if a.MasterIndex != br.Attrs().Index || a.HardwareAddr.String() != "fe:ff:ff:ff:ff:ff" || a.MTU != tc.mtu || a.Flags&1 == 0 {
				t.Errorf("port %+v, want it up, on the bridge, with mtu %d", a, tc.mtu)
			}
			if addrs, err := h.AddrList(link, netlink.FAMILY_V4); len(addrs) > 0 || err != nil {
				t.Errorf("addresses %v, %v", addrs, err)
			}
			d := newVif(domid, 0, 0)
			l.wantNode(d.backendPath()+"/hotplug-status", "connected")
			l.wantNode(d.frontendPath()+"/mtu", fmt.Sprint(tc.mtu))

			if _, err := l.DetachVif(context.Background(), domid, 0); err != nil {
				t.Fatal(err)
			}
			if link, err = h.LinkByName(tc.dev); err != nil || link.Attrs().MasterIndex != 0 {
				t.Errorf("after offline: %+v, %v; want the device, off the bridge", link, err)
			}
		})
	}
}

func TestBridgeScriptFails(t *testing.T) {
	for _, tc := range []struct {
		name, dev string
		vif       Vif
		want      string
	}{
		{"no device", "", Vif{}, `cannot find device "vif1.0"`},
		{"no bridge", "vif1.0", Vif{Bridge: "nobr"}, "could not find bridge device nobr"},
		{"name taken", "vif1.0", Vif{Name: "xenbr0"}, "already exists"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, h := bridged(t)
			if tc.dev != "" {
				addTap(t, h, tc.dev)
			}
			domid := l.guest()
			l.backend(domid, 0, true)
			_, _, err := l.AttachVif(context.Background(), domid, tc.vif)
			if !errors.Is(err, ErrScript) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("attach: %v, want one that says %q", err, tc.want)
			}
			be := newVif(domid, 0, 0).backendPath()
			l.wantNode(be+"/hotplug-status", "error")
			if s, _ := l.xs.Read(t.Context(), be+"/hotplug-error"); !strings.Contains(s, tc.want) {
				t.Errorf("hotplug-error is %q", s)
			}
			if _, err := l.DetachVif(context.Background(), domid, 0); err != nil {
				t.Errorf("detach: %v", err)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// place holds the settings that a hotplug script has given to an interface: its name, and
// its port of a bridge.
type place struct {
	index  int
	name   string
	mac    net.HardwareAddr
	mtu    int
	up     bool
	bridge int               // interface number, 0 if it is no port of a Linux bridge
	port   map[string]string // settings of the bridge port, by file name
}

const classNet = "/sys/class/net"

// placeOf reads the settings of an interface.
func placeOf(name string) (*place, error) {
	l, err := nlsock.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := l.Attrs()
	p := &place{
		index: a.Index, name: a.Name, mac: a.HardwareAddr, mtu: a.MTU,
		up: a.Flags&net.FlagUp != 0,
	}
	if a.MasterIndex == 0 {
		return p, nil
	}
	br, err := nlsock.LinkByIndex(a.MasterIndex)
	if err != nil {
		return nil, fmt.Errorf("bridge of %s: %w", name, err)
	}
	if br.Type() == "bridge" {
		p.bridge = a.MasterIndex
		p.port, err = portSettings(name)
	}
	return p, err
}

// copyable reports whether all settings of a script can be read from the interface and
// given to another: it is a port of a Linux bridge without VLAN filtering, and has no
// addresses or routes of its own.
func (p *place) copyable() (bool, error) {
	if p.bridge == 0 {
		return false, nil
	}
	br, err := nlsock.LinkByIndex(p.bridge)
	if err != nil {
		return false, err
	}
	if b, ok := br.(*netlink.Bridge); !ok || b.VlanFiltering != nil && *b.VlanFiltering {
		return false, nil
	}
	l, err := nlsock.LinkByIndex(p.index)
	if err != nil {
		return false, err
	}
	addrs, err := dump(func() (all []netlink.Addr, err error) {
		err = nlsock.Do(func(h *netlink.Handle) error { all, err = h.AddrList(l, unix.AF_UNSPEC); return err })
		return all, err
	})
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			return false, nil
		}
	}
	routes, err := dump(func() (all []netlink.Route, err error) {
		err = nlsock.Do(func(h *netlink.Handle) error { all, err = h.RouteList(l, unix.AF_INET); return err })
		return all, err
	})
	return len(routes) == 0, err
}

// dump calls list again while the kernel reports that its list has changed meanwhile. That
// happens on a host where guests start and stop.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	const tries = 20
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// give gives the settings to another interface.
func (p *place) give(name string) error {
	l, err := nlsock.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := l.Attrs()
	// An interface can be renamed, and get another address, while it is down. It is set
	// up before it joins the bridge: linkwatch notes a carrier that comes after that at
	// once, and an earlier one up to a second later.
	steps := []func(*netlink.Handle) error{
		func(h *netlink.Handle) error {
			if a.Flags&net.FlagUp == 0 || name == p.name && bytes.Equal(a.HardwareAddr, p.mac) {
				return nil
			}
			return h.LinkSetDown(l)
		},
		func(h *netlink.Handle) error {
			if name == p.name {
				return nil
			}
			return h.LinkSetName(l, p.name)
		},
		func(h *netlink.Handle) error {
			if bytes.Equal(a.HardwareAddr, p.mac) {
				return nil
			}
			return h.LinkSetHardwareAddr(l, p.mac)
		},
		func(h *netlink.Handle) error {
			if !p.up {
				return nil
			}
			return h.LinkSetUp(l)
		},
		func(h *netlink.Handle) error {
			if a.MTU == p.mtu {
				return nil
			}
			return h.LinkSetMTU(l, p.mtu)
		},
		func(h *netlink.Handle) error { return h.LinkSetMasterByIndex(l, p.bridge) },
		func(*netlink.Handle) error { return setPort(p.name, p.port) },
	}
	for _, step := range steps {
		if err := nlsock.Do(step); err != nil {
			return fmt.Errorf("move %s to the place of %s: %w", name, p.name, err)
		}
	}
	return nil
}

// portSettings reads the settings of a bridge's port that can be written.
func portSettings(name string) (map[string]string, error) {
	dir := filepath.Join(classNet, name, "brport")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o200 == 0 || info.Mode()&0o400 == 0 {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
			settings[e.Name()] = strings.TrimSpace(string(b))
		}
	}
	return settings, nil
}

// setPort writes the settings that differ.
func setPort(name string, want map[string]string) error {
	have, err := portSettings(name)
	if err != nil {
		return err
	}
	var errs []error
	for file, v := range want {
		if had, known := have[file]; !known || had == v {
			continue
		}
		if err := os.WriteFile(filepath.Join(classNet, name, "brport", file), []byte(v), 0); err != nil {
			errs = append(errs, fmt.Errorf("bridge port setting %s=%s: %w", file, v, err))
		}
	}
	return errors.Join(errs...)
}

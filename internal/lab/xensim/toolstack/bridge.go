// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// bridgePortMAC is the address that vif-bridge gives a vif: the largest unicast address,
// so that the bridge never uses it as its own.
var bridgePortMAC = net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff}

// BridgeScript implements /etc/xen/scripts/vif-bridge, on the network namespace of h:
// it makes the network device of the vif, which the backend has created, a port
// of the bridge that is named in xenstore. It does without the firewall rules.
func BridgeScript(h *netlink.Handle) Script {
	return func(ctx context.Context, c Call) error {
		s := bridgeScript{h, c}
		err := s.run(ctx)
		if err != nil && c.Action == Online {
			// As the script's function fatal.
			return errors.Join(err,
				c.Store.Write(ctx, c.Backend+"/hotplug-error", err.Error()),
				c.Store.Write(ctx, c.Backend+"/hotplug-status", "error"))
		}
		return err
	}
}

type bridgeScript struct {
	h *netlink.Handle
	c Call
}

func (s *bridgeScript) run(ctx context.Context) error {
	dev, err := s.device(ctx)
	if err != nil {
		return err
	}
	name, err := s.read(ctx, "bridge")
	if err != nil {
		return err
	}
	bridge, err := s.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("could not find bridge device %s: %w", name, err)
	}
	link, err := s.h.LinkByName(dev)
	if s.c.Action == Offline {
		if err == nil { // else the device is already gone
			_ = s.h.LinkSetDown(link)
			_ = s.h.LinkSetNoMaster(link)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot find device %q: %w", dev, err)
	}
	if err := s.plug(ctx, link, bridge); err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	return s.c.Store.Write(ctx, s.c.Backend+"/hotplug-status", "connected")
}

// device returns the name of the network device. It renames the device if the
// configuration has a name.
func (s *bridgeScript) device(ctx context.Context) (string, error) {
	dev := s.c.Vif()
	name, err := s.read(ctx, "vifname")
	if err != nil || name == "" {
		return dev, err
	}
	if s.c.Action == Offline {
		return name, nil
	}
	if _, err := s.h.LinkByName(name); err == nil {
		return "", fmt.Errorf("cannot rename interface %s: an interface with name %s already exists", dev, name)
	}
	link, err := s.h.LinkByName(dev)
	if err != nil {
		return "", fmt.Errorf("cannot find device %q: %w", dev, err)
	}
	return name, s.h.LinkSetName(link, name)
}

// plug makes link a port of bridge.
func (s *bridgeScript) plug(ctx context.Context, link, bridge netlink.Link) error {
	if err := s.h.LinkSetDown(link); err != nil {
		return fmt.Errorf("set down: %w", err)
	}
	_ = s.h.LinkSetHardwareAddr(link, bridgePortMAC) // the script ignores errors, too
	addrs, err := s.h.AddrList(link, netlink.FAMILY_ALL)
	for errors.Is(err, netlink.ErrDumpInterrupted) { // they changed meanwhile
		addrs, err = s.h.AddrList(link, netlink.FAMILY_ALL)
	}
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for i := range addrs {
		if err := s.h.AddrDel(link, &addrs[i]); err != nil {
			return fmt.Errorf("remove address: %w", err)
		}
	}
	if err := s.setMTU(ctx, link, bridge); err != nil {
		return err
	}
	if err := s.h.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("add to bridge: %w", err)
	}
	if err := s.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// setMTU gives the device the MTU of the configuration, else the bridge's, and
// tells the frontend.
func (s *bridgeScript) setMTU(ctx context.Context, link, bridge netlink.Link) error {
	configured, err := s.read(ctx, "mtu")
	if err != nil {
		return err
	}
	mtu := bridge.Attrs().MTU
	if configured != "" {
		mtu = atoi(configured)
	}
	if mtu <= 0 {
		return nil
	}
	_ = s.h.LinkSetMTU(link, mtu) // the script ignores errors, too
	front := newVif(s.c.Domid, s.c.Devid, 0).frontendPath()
	return s.c.Store.Write(ctx, front+"/mtu", strconv.Itoa(mtu))
}

// read implements xenstore_read_default with an empty default.
func (s *bridgeScript) read(ctx context.Context, key string) (string, error) {
	v, err := s.c.Store.Read(ctx, s.c.Backend+"/"+key)
	if errors.Is(err, xenstore.ErrNotExist) {
		return "", nil
	}
	return v, err
}

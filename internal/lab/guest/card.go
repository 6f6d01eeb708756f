// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

const ethHeader = 14

// newCard makes the guest's network card: a TAP with addresses, without carrier
// until the backend is there.
func newCard(c VifConfig, mac string) (*tap.Device, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	dev, err := tap.Create(tap.Config{Name: c.Name, VnetHdr: !c.Plain, NoCarrier: true})
	if err != nil {
		return nil, err
	}
	if err := setupCard(c, hw, dev); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", c.Name, err), dev.Close())
	}
	return dev, nil
}

func setupCard(c VifConfig, mac net.HardwareAddr, dev *tap.Device) error {
	if err := netns.SetMAC(c.Name, mac); err != nil {
		return err
	}
	if err := dev.SetMTU(c.MTU); err != nil {
		return err
	}
	link, err := netlink.LinkByName(c.Name)
	if err != nil {
		return err
	}
	// A packet on the ring has 16 bits for its size, Ethernet header included:
	// netfront sets this limit too.
	if err := netlink.LinkSetGSOMaxSize(link, netif.MaxTxSize-ethHeader); err != nil {
		return fmt.Errorf("limit segments: %w", err)
	}
	// No other card has our addresses, so duplicate address detection would only
	// take a second. A kernel without IPv6 has no such file.
	if err := netns.Sysctl("net/ipv6/conf/"+c.Name+"/accept_dad", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, a := range c.Addrs {
		if err := netns.AddAddr(c.Name, a); err != nil {
			return err
		}
	}
	if err := netns.Up(c.Name); err != nil {
		return err
	}
	if c.Gateway == "" {
		return nil
	}
	gw := net.ParseIP(c.Gateway)
	if gw == nil {
		return fmt.Errorf("gateway %q is no address", c.Gateway)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Index(), Gw: gw}); err != nil {
		return fmt.Errorf("default route by way of %v: %w", gw, err)
	}
	return nil
}

// awaitReady waits until the kernel has processed a card's carrier and addresses. Packets
// sent earlier are lost.
func awaitReady(ctx context.Context, index int) error {
	for {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		changed := errors.Is(err, netlink.ErrDumpInterrupted) // while they were listed
		if err != nil && !changed {
			return err
		}
		// A device that always had carrier is in the state unknown.
		state := link.Attrs().OperState
		up := state == netlink.OperUp || state == netlink.OperUnknown
		if up && !changed && !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }) {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s, which is %v, with %v: %w", link.Attrs().Name, state, addrs, ctx.Err())
		}
	}
}

// multicastList returns the multicast addresses that the kernel receives on a card.
func multicastList(name string) ([][6]byte, error) {
	b, err := os.ReadFile("/proc/self/net/dev_mcast")
	if err != nil {
		return nil, err
	}
	return parseMulticastList(string(b), name), nil
}

// parseMulticastList reads lines of index, name, users, whether global, address.
func parseMulticastList(text, name string) (list [][6]byte) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 || f[1] != name {
			continue
		}
		var a [6]byte
		if n, err := fmt.Sscanf(f[4], "%02x%02x%02x%02x%02x%02x", &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]); n == 6 && err == nil && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// All functions below act on the network namespace of the calling thread and
// name links as `ip link` does.

// AddBridge creates a bridge, without spanning tree and up, and returns its
// interface index. Frames pass at once: there is no forwarding delay.
func AddBridge(name string) (index int, err error) {
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = name
	// Snooping would hold back multicast until a querier is heard. A private
	// network has none.
	off := false
	br.MulticastSnooping = &off
	if err := netlink.LinkAdd(br); err != nil {
		return 0, fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := Up(name); err != nil {
		return 0, err
	}
	return br.Index, nil
}

// Attach makes a link a port of a bridge.
func Attach(link, bridge string) error {
	return with(link, "attach to "+bridge, func(l netlink.Link) error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
}

// AddAddr gives a link an address such as 192.0.2.1/24 or 2001:db8::1/64. It can
// be used at once: duplicate address detection, which takes a second or two
// for IPv6, is skipped.
func AddAddr(link, cidr string) error {
	return with(link, "add address "+cidr, func(l netlink.Link) error {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags |= unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(l, addr)
	})
}

// SetMAC gives a link a hardware address.
func SetMAC(link string, mac net.HardwareAddr) error {
	return with(link, "set address "+mac.String(), func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, mac)
	})
}

// Up brings a link up.
func Up(link string) error { return with(link, "bring up", netlink.LinkSetUp) }

// Down brings a link down.
func Down(link string) error { return with(link, "bring down", netlink.LinkSetDown) }

// Delete removes a link.
func Delete(link string) error { return with(link, "delete", netlink.LinkDel) }

// Rename gives a link another name. Kernels before 6.2 allow it only while the
// link is down.
func Rename(link, name string) error {
	return with(link, "rename to "+name, func(l netlink.Link) error {
		return netlink.LinkSetName(l, name)
	})
}

// with looks a link up and runs do. Its errors name the link and the operation.
func with(link, what string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(link)
	if err == nil {
		err = do(l)
	}
	if err != nil {
		return fmt.Errorf("link %s: %s: %w", link, what, err)
	}
	return nil
}

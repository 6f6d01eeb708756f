// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestTCPBothWays(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	g.pings(10)
	g.tcpToHost(32 << 20)
	g.tcpToGuest(g.ip, 32<<20)
	g.innocent()
	if n := g.counter(dataplane.TxGSO); n == 0 {
		t.Error("no packet from the guest carried a GSO extra")
	}
	if n := g.counter(dataplane.RxGSO); n == 0 {
		t.Error("no packet to the guest carried a GSO extra")
	}
}

func TestBystanderSeesNothingOfAnotherGuestsTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.undisturbed(func() { g.tcpToHost(8 << 20) })
}

// TestTunnel: in a tunnel between host and guest the partial checksums are those of the
// inner packets, which netif cannot express.
func TestTunnel(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	if err := addTunnel(hostIP, g.ip, "10.97.0.1/24"); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel has no vxlan")
	} else {
		w.must(err)
	}
	w.must(g.Do(func() error { return addTunnel(g.ip, hostIP, "10.97.0.2/24") }))
	g.tcpTo("10.97.0.1", 4<<20)
	g.tcpToGuest("10.97.0.2", 4<<20)
	g.innocent()
	s, err := g.Stats(w.ctx, "")
	w.must(err)
	if s.Total.TapDrops != 0 {
		t.Errorf("the frontend could not carry %d packets", s.Total.TapDrops)
	}
}

// addTunnel makes an end of a VXLAN tunnel, with an address inside.
func addTunnel(local, remote, inside string) error {
	const name = "tunnel"
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 7, Port: 4789, SrcAddr: net.ParseIP(local), Group: net.ParseIP(remote),
	}); err != nil {
		return err
	}
	return errors.Join(netns.AddAddr(name, inside), netns.Up(name))
}

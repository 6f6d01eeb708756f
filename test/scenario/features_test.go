// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/netif"
)

// bothWays sends streams in both directions over both versions of IP, and checks that the
// guest counts no violation.
func (g *testGuest) bothWays(n int64) {
	g.w.t.Helper()
	g.pings(3)
	g.tcpToHost(n)
	g.tcpTo(hostIP6, n)
	g.tcpToGuest(g.ip, n)
	g.tcpToGuest(g.ip6, n)
	g.innocent()
}

func TestGuestsThatCanDoLess(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	all := netfront.AllFeatures()
	without := func(f func(*netfront.Features)) func(*netfront.Config) {
		return func(c *netfront.Config) { c.Features = all; f(&c.Features) }
	}
	for _, tt := range []struct {
		name  string
		front func(*netfront.Config)
		gso   bool // some packets to it need segmentation
	}{
		{"everything", func(*netfront.Config) {}, true},
		{"no scatter-gather", without(func(f *netfront.Features) { f.SG = false }), false},
		{"no GSO of IPv4", without(func(f *netfront.Features) { f.GSOTCPv4 = false }), true},
		{"no GSO of IPv6", without(func(f *netfront.Features) { f.GSOTCPv6 = false }), true},
		{"no GSO", without(func(f *netfront.Features) { f.GSOTCPv4, f.GSOTCPv6 = false, false }), false},
		{"no open checksums of IPv4", without(func(f *netfront.Features) { f.NoCsumOffload = true }), true},
		{"no open checksums of IPv6", without(func(f *netfront.Features) { f.IPv6CsumOffload = false }), true},
		{"no open checksums, but GSO", without(func(f *netfront.Features) { f.NoCsumOffload, f.IPv6CsumOffload = true, false }), false},
		{"nothing", func(c *netfront.Config) { c.Features = netfront.Features{RxCopy: true, NoCsumOffload: true} }, false},
		{"no events for rx slots", without(func(f *netfront.Features) { f.RxNotify = false }), true},
		{"one event channel", func(c *netfront.Config) { c.SplitEvents = false }, true},
		{"one event channel and no events for rx slots", func(c *netfront.Config) { c.SplitEvents, c.Features.RxNotify = false, false }, true},
		{"few buffers", func(c *netfront.Config) { c.RxPages, c.TxPages = 20, 20 }, true},
	} {
		w.situation(tt.name, func() {
			g.reconnectWith(tt.front)
			before := g.status().Counters
			g.bothWays(1 << 20)
			after := g.status().Counters
			since := func(c dataplane.Counter) uint64 { return after[c.String()] - before[c.String()] }
			if got := since(dataplane.RxGSO) > 0; got != tt.gso {
				w.t.Errorf("packets to the guest carried a GSO extra: %t, want %t", got, tt.gso)
			}
			if n := since(dataplane.TxGSO); n == 0 {
				w.t.Error("no packet from the guest carried a GSO extra: what it can take is one thing, what it sends another")
			}
		})
	}
}

// TestGuestWithAPlainCard has a frontend without any offload, like that of a boot loader.
func TestGuestWithAPlainCard(t *testing.T) {
	w := newWorld(t)
	g := w.guest(func(c *lab.GuestConfig) {
		c.Front.Plain = true
		c.Front.Front.Features = netfront.Features{RxCopy: true, NoCsumOffload: true}
		c.Front.Front.SplitEvents = false
	})
	g.bothWays(1 << 20)
	for _, c := range []dataplane.Counter{dataplane.TxGSO, dataplane.RxGSO} {
		if n := g.counter(c); n != 0 {
			t.Errorf("%v is %d, want 0", c, n)
		}
	}
}

// TestOneVCPU: a guest with one vcpu is offered one event channel for both rings, and a
// successor serves it with that.
func TestOneVCPU(t *testing.T) {
	w := newWorld(t)
	g := w.guest(func(c *lab.GuestConfig) { c.Domain.VCPUs = 1 })
	check := func() {
		t.Helper()
		if s := g.status(); len(s.Queues) != 1 || s.Ports != 1 {
			t.Errorf("%d queues with %d event channels, want one of each", len(s.Queues), s.Ports)
		}
		g.bothWays(1 << 20)
	}
	check()
	w.Daemon().Kill()
	w.must(w.StartDaemon(w.ctx))
	g.serving()
	check()
	g.reconnectWith(func(*netfront.Config) {})
	check()
}

func TestQueues(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	for _, n := range []int{1, 2, 4, 8} {
		for _, split := range []bool{true, false} {
			w.situation(fmt.Sprintf("%d, split event channels %t", n, split), func() {
				g.reconnectWith(func(c *netfront.Config) { c.Queues, c.SplitEvents = n, split })
				var wg sync.WaitGroup
				errs := make(chan error, 32)
				for i := range 16 {
					wg.Go(func() {
						r, err := g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: 64 << 10, Seed: uint64(i)}})
						errs <- wholeOr(r, 64<<10, err)
						c, err := traffic.DialTCP(w.ctx, g.ip+tcpPort)
						if err == nil {
							r, err = traffic.SendTCP(w.ctx, c, traffic.TCPSend{Bytes: 64 << 10, Seed: uint64(i)})
						}
						errs <- wholeOr(r, 64<<10, err)
					})
				}
				wg.Wait()
				close(errs)
				for err := range errs {
					w.must(err)
				}
				s := g.status()
				if len(s.Queues) != n || s.Ports != n && s.Ports != 2*n {
					w.t.Errorf("%d queues with %d event channels, want %d", len(s.Queues), s.Ports, n)
				}
				busy := func(c dataplane.Counter) (k int) {
					for _, q := range s.Queues {
						if q.Counters[c.String()] > 16 {
							k++
						}
					}
					return k
				}
				if tx, rx := busy(dataplane.TxPackets), busy(dataplane.RxPackets); min(tx, rx) < min(n, 2) {
					w.t.Errorf("of %d queues %d bring packets from the guest and %d to it", n, tx, rx)
				}
				g.innocent()
			})
		}
	}
}

func wholeOr(r traffic.TCPResult, n int64, err error) error {
	if err == nil && (r.Bytes != n || r.Wrong != 0) {
		err = fmt.Errorf("stream of %d bytes: %+v", n, r)
	}
	return err
}

// TestDaemonWithoutOffload: without vnet headers on the TAP the daemon offers no offload. It
// still serves a guest that uses one.
func TestDaemonWithoutOffload(t *testing.T) {
	w := newWorld(t, "--offload=none")
	g := w.guest(queues(2))
	for key, want := range map[string]string{
		"feature-sg": "1", "feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0",
		"feature-no-csum-offload": "1", "feature-ipv6-csum-offload": "0",
	} {
		if got, err := g.Key(w.ctx, guest.KeyArgs{Op: "read-backend", Key: key}); got != want || err != nil {
			t.Errorf("%s is %q, %v, want %q", key, got, err, want)
		}
	}
	g.bothWays(1 << 20)

	p := g.prober()
	payload := packettest.Pattern(3000)
	for _, f := range []packettest.Frame{
		{IPv4: ip4, UDP: udp, Payload: payload[:1000]},
		{IPv4: ip4, TCP: tcp, Payload: payload},
		{Tags: tagged, IPv6: ip6, TCP: tcp, Payload: payload},
	} {
		before := g.counter(dataplane.CsumCompleted)
		b := partial(f).Bytes()
		answers, out := p.send(inSlots(netif.TxCsumBlank, b, 14, 1, 1)...)
		w.answered(each(4, okay), answers)
		w.cameOut(out, f.Bytes())
		g.waitCounter(dataplane.CsumCompleted, before+1)
	}
	for _, tt := range large {
		before := g.counter(dataplane.Segmented)
		spec := tt.frame
		spec.Dst, spec.Payload = [6]byte{2, 0, 0, 0, 0, 2}, payload
		packet := inSlots(netif.TxCsumBlank, partial(spec).Bytes(), 14, 1, 1)
		answers, out := p.send(withExtras(packet, gso(tt.typ, mss))...)
		w.answered(each(4, okay), answers)
		w.segments(out, spec, mss)
		g.waitCounter(dataplane.Segmented, before+1)
	}
	for _, tt := range []struct {
		name string
		ops  []guest.RawOp
		why  dataplane.Counter
		want netif.Status
	}{
		{"checksum of ICMP", inSlots(netif.TxCsumBlank, packettest.Frame{IPv4: ip4, ICMP: &packettest.ICMP{}}.Bytes()), dataplane.DropTxCsum, okay},
		{"GSO of UDP", withExtras(inSlots(netif.TxCsumBlank, partial(packettest.Frame{IPv4: ip4, UDP: udp, Payload: payload}).Bytes()), gso(netif.GSOTCPv4, 999)), dataplane.DropTxGSO, failed},
	} {
		w.situation(tt.name, func() {
			p.expect(tt.ops, each(1, tt.want), drops{tt.why: 1})
		})
	}
	g.innocent()
}

func TestDaemonWithoutIOUring(t *testing.T) {
	w := newWorld(t, "--io-uring=false")
	g := w.guest(queues(2))
	g.bothWays(4 << 20)
	for i, q := range g.status().Queues {
		if q.Uring {
			t.Errorf("queue %d goes through io_uring", i)
		}
	}
	p := g.prober()
	answers, out := p.send(inSlots(0, plainFrame(9000), 100, 4000, 1000)...)
	w.answered(each(4, okay), answers)
	w.cameOut(out, plainFrame(9000))
	before := g.drops()
	answers, _ = p.send(head(moreData, 300, plainFrame(64)), ref("bogus", 0, 0, 100))
	w.answered([]netif.Status{okay, failed}, answers)
	g.dropped(before, drops{dataplane.DropTxGrant: 1})
	g.innocent()
}

const jumbo = 9000

func TestJumboFrames(t *testing.T) {
	w := newWorld(t)
	l, err := netlink.LinkByName(bridge)
	w.must(err)
	w.must(netlink.LinkSetMTU(l, jumbo))
	large := func(c *lab.GuestConfig) { c.Vif.MTU, c.Front.MTU = jumbo, jumbo }
	a, b := w.guest(large), w.guest(large, queues(2))
	for _, g := range []*testGuest{a, b} {
		r, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: 10, Size: jumbo - 28}})
		w.must(err)
		if r.Received != 10 || r.Corrupt != 0 {
			t.Errorf("ping: %+v", r)
		}
		g.bothWays(4 << 20)
	}
	r, err := a.UDPSend(w.ctx, guest.UDPSendArgs{Addr: b.ip + udpPort, UDPSend: traffic.UDPSend{Count: 500, Size: jumbo - 28, Window: 8}})
	w.must(err)
	if r.Received != 500 || r.Corrupt != 0 {
		t.Errorf("packets of one guest to another: %+v", r)
	}
	s, err := b.Stats(w.ctx, "")
	w.must(err)
	if s.Total.RxMulti < 500 {
		t.Errorf("%d packets came in several slots, want 500 at least", s.Total.RxMulti)
	}

	// A guest without scatter-gather receives and sends packets of at most one page.
	w.must(a.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1500)
	}))
	a.reconnectWith(func(c *netfront.Config) { c.Features.SG, c.MTU = false, jumbo })
	if mtu := a.status().MTU; mtu != 1500 {
		t.Errorf("MTU of the interface is %d, want 1500", mtu)
	}
	before := a.drops()
	a.tcpToGuest(a.ip, 1<<20)
	a.dropped(before, drops{})
	a.innocent()
	a.reconnectWith(func(c *netfront.Config) { c.MTU = jumbo })
	if mtu := a.status().MTU; mtu != jumbo {
		t.Errorf("MTU of the interface is %d, want that it was given", mtu)
	}
}

// TestStreamsOverAVLAN: a host sends large packets over a VLAN. A guest cannot take them
// unsegmented, since netfront does not parse headers behind a tag.
func TestStreamsOverAVLAN(t *testing.T) {
	const vlan, hostAddr, guestAddr = 7, "10.97.0.1/24", "10.97.0.2/24"
	addVLAN := func(on, cidr string) error {
		parent, err := netlink.LinkByName(on)
		if err != nil {
			return err
		}
		l := &netlink.Vlan{LinkAttrs: netlink.NewLinkAttrs(), VlanId: vlan}
		l.Name, l.ParentIndex = "tagged", parent.Attrs().Index
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		if err := netns.AddAddr(l.Name, cidr); err != nil {
			return err
		}
		return netns.Up(l.Name)
	}
	w := newWorld(t)
	err := addVLAN(bridge, hostAddr)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no VLANs")
	}
	w.must(err)
	g := w.guest()
	w.must(g.Do(func() error { return addVLAN("eth0", guestAddr) }))

	r, err := g.Ping(w.ctx, guest.PingArgs{Addr: "10.97.0.1", PingOptions: traffic.PingOptions{Count: 5, Size: 1472}})
	w.must(err)
	if r.Received != 5 {
		t.Errorf("ping: %+v", r)
	}
	g.tcpToGuest("10.97.0.2", 16<<20)
	s := g.status()
	if n := s.Counters[dataplane.Segmented.String()]; n == 0 {
		t.Error("no frame had to be segmented; then this shows nothing")
	}
	if diff := cmp.Diff(drops{}, g.drops()); diff != "" {
		t.Errorf("packets dropped (-want +got):\n%s", diff)
	}
	g.innocent()
}

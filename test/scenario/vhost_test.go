// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// TestVhostTraffic: guests with each set of features, one after the other on one device, are
// served: pings, and streams of both IP versions both ways.
func TestVhostTraffic(t *testing.T) {
	const size = 3 << 20
	w := newWorld(t)
	d := w.vhost("web", "--queues", "1")
	_, files := d.held()
	for _, tc := range []struct {
		name  string
		front vhostfront.Config
		// Features that are agreed on, and that are not.
		has, hasNot []string
	}{
		{"linux", vhostfront.Config{}, []string{"mrg_rxbuf", "event_idx", "indirect_desc", "csum", "host_tso4", "guest_tso6"}, []string{"ring_packed", "log_all"}},
		{"packed", vhostfront.Config{Packed: true}, []string{"ring_packed"}, []string{"in_order"}},
		{"packed, in order, regions", vhostfront.Config{Packed: true, InOrder: true, Regions: 3, Slots: true}, []string{"ring_packed", "in_order"}, nil},
		{"packed, bare", vhostfront.Config{Packed: true, NoMergeable: true, NoIndirect: true, NoEventIdx: true}, []string{"ring_packed"}, []string{"event_idx"}},
		{"in order", vhostfront.Config{InOrder: true, Inflight: true}, []string{"in_order"}, nil},
		{"not mergeable", vhostfront.Config{NoMergeable: true}, nil, []string{"mrg_rxbuf"}},
		{"no event index", vhostfront.Config{NoEventIdx: true, NoIndirect: true}, nil, []string{"event_idx", "indirect_desc"}},
		{"no segments", vhostfront.Config{NoTSO: true, NoGuestTSO: true}, []string{"csum", "guest_csum"}, []string{"host_tso4", "guest_tso4"}},
		{"no checksums", vhostfront.Config{NoCsum: true, NoGuestCsum: true}, nil, []string{"csum", "guest_csum"}},
		{"small buffers", vhostfront.Config{NoMergeable: true, NoGuestTSO: true, Regions: 2}, nil, []string{"mrg_rxbuf", "guest_tso4"}},
		{"short rings", vhostfront.Config{Size: 64, RxBuffer: 1536}, nil, nil},
		{"before virtio 1.0", vhostfront.Config{Legacy: true, NoMergeable: true}, nil, []string{"version_1", "mrg_rxbuf"}},
	} {
		w.situation(tc.name, func() {
			tc.front.Strict = true
			g := d.guestAs(0, fronted(func(c *vhostfront.Config) { tc.front.Socket = c.Socket; *c = tc.front }))
			before := d.status()
			for _, f := range tc.has {
				if !slices.Contains(before.Features, f) {
					w.t.Errorf("%s is not among %v", f, before.Features)
				}
			}
			for _, f := range tc.hasNot {
				if slices.Contains(before.Features, f) {
					w.t.Errorf("%s is among %v", f, before.Features)
				}
			}
			g.pings(3)
			g.packets(1000)
			g.tcpTo(hostIP, size)
			g.tcpTo(hostIP6, size)
			g.tcpToGuest(g.ip, size)
			g.tcpToGuest(g.ip6, size)
			g.innocent()
			large := func(direction string, n uint64, want bool) {
				if (n > 0) != want {
					w.t.Errorf("%d large packets %s, want some: %t", n, direction, want)
				}
			}
			s := g.stats().Total
			large("from the guest", s.TxGSO, !tc.front.NoTSO && !tc.front.NoCsum)
			large("to the guest", s.RxGSO, !tc.front.NoGuestTSO && !tc.front.NoGuestCsum)
			w.must(g.Quit(w.ctx))
			d.released(files)
		})
	}
}

// packets sends small packets both ways. Each arrives, once and in order.
func (g *virtGuest) packets(n int) {
	g.w.t.Helper()
	send := traffic.UDPSend{Count: n, Size: 64, Window: 100}
	r, err := g.UDPSend(g.w.ctx, guest.UDPSendArgs{Addr: hostIP + udpPort, UDPSend: send})
	g.w.must(err)
	g.arrived("from the guest", r)
	c, err := traffic.DialUDP(g.w.ctx, g.ip+udpPort, "")
	g.w.must(err)
	r, err = traffic.SendUDP(g.w.ctx, c, send)
	g.w.must(err)
	g.arrived("to the guest", r)
}

func (g *virtGuest) arrived(direction string, r traffic.UDPResult) {
	g.w.t.Helper()
	if r.Received != r.Sent || r.Lost+r.Duplicated+r.Reordered+r.Corrupt != 0 {
		g.w.t.Errorf("packets %s: %+v", direction, r)
	}
}

// TestVhostPairs: with several pairs of queues streams use several of them.
func TestVhostPairs(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "8")
	for i, cfg := range []vhostfront.Config{{Pairs: 2}, {Pairs: 8, Packed: true, InOrder: true}, {Pairs: 8}} {
		g := d.guestAs(i, fronted(func(c *vhostfront.Config) { c.Pairs, c.Packed, c.InOrder = cfg.Pairs, cfg.Packed, cfg.InOrder }))
		var whole []func()
		const flows, size = 10, 1 << 19 // that all take the same of two pairs is unlikely
		for range flows {
			whole = append(whole, g.streamed(size))
			whole = append(whole, w.inBackground(size, func() (traffic.TCPResult, error) {
				return g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: size, Seed: 5}})
			}))
		}
		for _, f := range whole {
			f()
		}
		g.innocent()
		tx, rx := 0, 0
		for _, p := range g.stats().Pairs {
			if p.TxPackets > 5 {
				tx++
			}
			if p.RxPackets > 5 {
				rx++
			}
		}
		if tx < 2 || rx < 2 {
			t.Errorf("of %d pairs %d have sent and %d have received: %+v", cfg.Pairs, tx, rx, g.stats().Pairs)
		}
		if s := d.status(); s.Active != cfg.Pairs || s.Pairs != 8 {
			t.Errorf("%d pairs of %d are enabled, want %d of 8", s.Active, s.Pairs, cfg.Pairs)
		}
		w.must(g.Quit(w.ctx))
	}
}

// TestVhostHashKey: with a key of the host the pair of a packet to the guest follows from its
// hash, whatever pair the guest sends on. UDP is hashed by addresses, so all of it has one pair;
// without a key its flows are spread.
func TestVhostHashKey(t *testing.T) {
	w := newWorld(t)
	const pairs, flows = 4, 64
	key := strings.Repeat("6d5a56da255b0ec2", 5) // the start of Microsoft's example, repeated
	d := w.vhost("web", "--queues", "4", "--hash-key", key)
	g := d.guest(fronted(func(c *vhostfront.Config) { c.Pairs = pairs }))
	if s := d.status(); s.Steering != "hash, in the kernel" {
		t.Errorf("the status says that packets are steered by %q", s.Steering)
	}
	raw, err := hex.DecodeString(key)
	w.must(err)
	hasher, err := toeplitz.New(raw)
	w.must(err)
	from, to := netip.MustParseAddr(hostIP).As4(), netip.MustParseAddr(g.ip).As4()
	want := int(hasher.Hash(append(from[:], to[:]...))%toeplitz.MaxMapping) % pairs

	before := g.stats().Pairs
	for port := range flows {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: to[:], Port: 20000 + port})
		w.must(err)
		_, err = c.Write(make([]byte, 100))
		w.must(errors.Join(err, c.Close()))
	}
	got := func(i int) uint64 { return g.stats().Pairs[i].RxPackets - before[i].RxPackets }
	w.wait("all flows on the pair of their hash", func() bool { return got(want) >= flows })
	for i := range pairs {
		if i != want && got(i) > 8 { // others are the host's own
			t.Errorf("pair %d has received %d packets, all should go to pair %d", i, got(i), want)
		}
	}
	w.whole(g.tcpToGuest(g.ip, 4<<20), 4<<20)
	w.whole(g.tcpToHost(4<<20), 4<<20)
	g.innocent()
}

// TestVhostMTU: a guest is told the MTU by its front end, and the back end too.
func TestVhostMTU(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--mtu", "9000")
	br, err := netlink.LinkByName(bridge)
	w.must(err)
	w.must(netlink.LinkSetMTU(br, 9000))
	g := d.guest(func(c *guest.VirtConfig) { c.MTU = 9000 })
	if s := d.status(); s.MTU != 9000 || s.GuestMTU != 9000 || !slices.Contains(s.Features, "mtu") {
		t.Errorf("MTU %d, of the guest %d, features %v", s.MTU, s.GuestMTU, s.Features)
	}
	r, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: 5, Size: 8900}})
	w.must(err)
	if r.Received != 5 || r.Corrupt != 0 {
		t.Errorf("pings of 8900 bytes: %+v", r)
	}
	g.tcpToHost(4 << 20)
	g.tcpToGuest(g.ip, 4<<20)
	g.innocent()
	if _, err := g.Virt(w.ctx, guest.VirtArgs{Op: "mtu", N: 9001}); err == nil {
		t.Error("an MTU that is larger than that of the interface is accepted")
	}
	g.pings(2)
}

// TestVhostMemoryChanges: while streams run the memory table changes, with tables and with
// single regions.
func TestVhostMemoryChanges(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	for i, cfg := range []vhostfront.Config{{Pairs: 2, Regions: 2}, {Slots: true, Packed: true}} {
		g := d.guestAs(i, fronted(func(c *vhostfront.Config) {
			c.Pairs, c.Regions, c.Slots, c.Packed = cfg.Pairs, cfg.Regions, cfg.Slots, cfg.Packed
		}))
		stop := g.streaming(1 << 20)
		for range 40 {
			g.op(guest.VirtArgs{Op: "swap"})
		}
		if n := stop(); n < 2 {
			t.Errorf("%d streams got through", n)
		}
		g.innocent()
		w.must(g.Quit(w.ctx))
	}
}

// TestVhostDirtyLog: each page that the back end writes is in the log, which the front end
// reads and clears at the same time, and no other page is.
func TestVhostDirtyLog(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	for i, cfg := range []vhostfront.Config{{Regions: 2}, {Packed: true, Pairs: 2}, {NoMergeable: true, InOrder: true}} {
		g := d.guestAs(i, fronted(func(c *vhostfront.Config) {
			c.Regions, c.Packed, c.NoMergeable, c.Pairs, c.InOrder = cfg.Regions, cfg.Packed, cfg.NoMergeable, cfg.Pairs, cfg.InOrder
		}))
		stop := g.streaming(1 << 20)
		g.op(guest.VirtArgs{Op: "log"})
		if !d.status().Logging {
			t.Error("the status says nothing of the log")
		}
		g.tcpToGuest(g.ip, 4<<20)
		for range 10 {
			g.op(guest.VirtArgs{Op: "log-take"})
		}
		g.tcpToGuest(g.ip, 4<<20)
		if n := g.op(guest.VirtArgs{Op: "log-end"}); n < 20 {
			t.Errorf("%d pages are in the log", n)
		}
		stop()
		g.innocent()
		if d.status().Logging {
			t.Error("the status still has the log")
		}
		w.must(g.Quit(w.ctx))
	}
}

// TestVhostSilence: a device whose rings are stopped writes to no memory of the guest and
// notifies it of nothing, while the host sends to it. Then it goes on.
func TestVhostSilence(t *testing.T) {
	for name, packed := range map[string]bool{"split": false, "packed": true} {
		t.Run(name, func(t *testing.T) {
			_, _, g := vhostTest(t, nil, fronted(func(c *vhostfront.Config) { c.Packed = packed }))
			stop := g.flooded()
			for range 3 {
				g.op(guest.VirtArgs{Op: "quiet", Time: silence})
			}
			stop()
			g.waitUp()
			g.tcpToGuest(g.ip, 1<<20)
			g.tcpToHost(1 << 20)
			g.innocent()
			for _, op := range []string{"restart", "reset"} {
				g.op(guest.VirtArgs{Op: op})
				g.waitUp()
				g.tcpToGuest(g.ip, 1<<20)
				g.tcpToHost(1 << 20)
				g.innocent()
			}
		})
	}
}

// TestVhostDisabledRings: a ring that is started and disabled takes the guest's packets and
// discards them, and gives the guest nothing. Enabled again it serves.
func TestVhostDisabledRings(t *testing.T) {
	w, d, g := vhostTest(t, []string{"--queues", "1"})
	const rx, tx = 0, 1
	ping := func(what string, want int) {
		t.Helper()
		r, err := g.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: 2, Timeout: 100 * time.Millisecond}})
		w.must(err)
		if r.Received != want {
			t.Errorf("%s: %d of 2 pings came back, want %d", what, r.Received, want)
		}
	}
	ping("both enabled", 2)
	g.op(guest.VirtArgs{Op: "enable", N: tx, Off: true})
	before := g.stats().Total
	ping("no tx", 0)
	g.op(guest.VirtArgs{Op: "settle"}) // the packets are taken nevertheless
	if after := g.stats().Total; after.TxDone <= before.TxDone {
		t.Error("a disabled ring keeps the guest's packets")
	}
	g.op(guest.VirtArgs{Op: "enable", N: tx})
	d.waitStatus("the device to be connected", func(s *vhostnet.Status) bool { return s.State == vhostnet.Connected })
	g.waitUp()
	ping("tx again", 2)
	g.op(guest.VirtArgs{Op: "enable", N: rx, Off: true})
	before = g.stats().Total
	ping("no rx", 0)
	if after := g.stats().Total; after.RxPackets != before.RxPackets {
		t.Errorf("a disabled ring was given %d packets", after.RxPackets-before.RxPackets)
	}
	g.op(guest.VirtArgs{Op: "enable", N: rx})
	g.waitUp()
	g.pings(2)
	g.tcpToGuest(g.ip, 1<<20)
	g.innocent()
}

// TestVhostStall: a guest that posts no buffers loses packets and then the carrier, and gets
// both back when it posts some.
func TestVhostStall(t *testing.T) {
	_, d, g := vhostTest(t, []string{"--queues", "1", "--rx-drain", "200ms", "--rx-stall", "500ms"})
	stop := g.flooded()
	g.op(guest.VirtArgs{Op: "buffers", N: 0})
	s := d.waitStatus("the carrier to go", func(s *vhostnet.Status) bool { return s.State == vhostnet.Stalled && !s.Carrier })
	if !strings.Contains(s.Waits, "guest") {
		t.Errorf("it waits for %q", s.Waits)
	}
	stop()
	if n := d.counter(dataplane.DropRxStalled); n == 0 {
		t.Error("no packet is counted as dropped")
	}
	for _, name := range []string{s.Interface, bridge} {
		d.w.wait("the kernel to notice that "+name+" has no carrier", func() bool {
			l, err := netlink.LinkByName(name)
			return err == nil && l.Attrs().OperState != netlink.OperUp
		})
	}
	g.op(guest.VirtArgs{Op: "buffers", N: 256})
	g.waitUp()
	g.pings(3)
	g.tcpToGuest(g.ip, 1<<20)
	g.tcpToHost(1 << 20)
	g.innocent()
}

// TestVhostLimit: packets from the guest are limited, those to it are not.
func TestVhostLimit(t *testing.T) {
	_, d, g := vhostTest(t, []string{"--rate", "4MB/s"})
	const perSecond = 4e6
	g.tcpToHost(1 << 20) // uses up the burst
	begin, from := time.Now(), d.counter(dataplane.TxBytes)
	g.tcpToHost(4 << 20)
	took := time.Since(begin)
	got := float64(d.counter(dataplane.TxBytes)-from) / took.Seconds()
	t.Logf("%.0f bytes per second", got)
	if got > 1.15*perSecond || got < 0.6*perSecond {
		t.Errorf("the guest sent %.0f bytes per second, the limit is %.0f", got, perSecond)
	}
	g.tcpToGuest(g.ip, 8<<20)
	g.innocent()
	if s := d.status(); s.Rate != "200000 B/50ms" {
		t.Errorf("the status has the rate %q", s.Rate)
	}
}

// TestVhostAnnounces: SEND_RARP announces the guest's address on the host's network.
func TestVhostAnnounces(t *testing.T) {
	w, d, g := vhostTest(t, nil)
	c := w.cable(d.status().Interface, func(f func() error) error { return f() })
	g.op(guest.VirtArgs{Op: "rarp"})
	mac := []byte{0, 0x16, 0x3e, 0, 0, 1}
	b := c.raw(func(b []byte) bool { return len(b) >= 42 && b[12] == 0x80 && b[13] == 0x35 })
	if !slices.Equal(b[6:12], mac) || !slices.Equal(b[22:28], mac) || !slices.Equal(b[:6], []byte{255, 255, 255, 255, 255, 255}) {
		t.Errorf("the announcement is % x", b)
	}
}

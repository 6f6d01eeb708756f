// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// fewBuffers is the number of rx buffers of a guest with few.
const fewBuffers = 40

func withFewBuffers() option { return front(func(c *netfront.Config) { c.RxPages = fewBuffers }) }

// stingy is a guest with few rx buffers, which decides itself when to post them.
type stingy struct {
	*prober
	host, nic *cable
	next      uint32 // number of the next frame sent to it
}

// stingy takes the guest off the bridge, so that only the test sends packets to it.
func (g *testGuest) stingy() *stingy {
	g.w.t.Helper()
	p := g.prober()
	ifname := g.status().Interface
	g.w.must(netns.Sysctl("net/ipv6/conf/"+ifname+"/disable_ipv6", "1"))
	l, err := netlink.LinkByName(ifname)
	g.w.must(err)
	g.w.must(netlink.LinkSetNoMaster(l))
	return &stingy{prober: p, host: p.c, nic: g.inside()}
}

// well checks that the guest works after it is back on the bridge.
func (s *stingy) well() {
	s.g.w.t.Helper()
	s.g.w.must(netns.Attach(s.g.status().Interface, bridge))
	s.g.well()
	s.g.tcpToHost(1 << 20)
	s.g.tcpToGuest(s.g.ip, 1<<20)
	s.g.innocent()
}

// starve makes the guest post no further buffers, and uses up all posted ones but left.
func (s *stingy) starve(left int) {
	s.g.w.t.Helper()
	s.raw(guest.RawOp{Op: "rx-target", Value: 0})
	pending := func() (n int) {
		for _, q := range s.g.status().Queues {
			n += int(q.Rx.Pending())
		}
		return n
	}
	n := pending() - left
	s.send(n)
	s.arrive(n)
	s.g.w.wait(fmt.Sprintf("%d buffers to be left", left), func() bool { return pending() == left })
}

// feed makes the guest post its buffers again.
func (s *stingy) feed() {
	s.g.w.t.Helper()
	s.raw(guest.RawOp{Op: "rx-target", Value: fewBuffers})
}

// send sends n frames to the guest, with a number in each.
func (s *stingy) send(n int) {
	s.g.w.t.Helper()
	for range n {
		s.host.send(tap.VnetHdr{}, numbered(s.next))
		s.next++
	}
}

func numbered(n uint32) []byte {
	return packettest.Frame{EtherType: typeTest, Payload: binary.BigEndian.AppendUint32(nil, n), PadTo: 60}.Bytes()
}

// arrive checks that the next n frames arrive, in order and whole.
func (s *stingy) arrive(n int) {
	s.g.w.t.Helper()
	first := s.next - uint32(n)
	for i := range uint32(n) {
		if got := s.nic.next().frame; !cmp.Equal(got, numbered(first+i)) {
			s.g.w.t.Fatalf("frame %d of %d is % x", i, n, clip(got))
		}
	}
}

// held waits until packets wait for the guest.
func (s *stingy) held() vif.QueueStatus {
	s.g.w.t.Helper()
	st := s.g.waitStatus("packets to wait", func(s *vif.Status) bool { return len(s.Queues) > 0 && s.Queues[0].Held > 0 })
	return st.Queues[0]
}

// sendLarge sends a packet that needs two slots although its data fits one: GSO needs an
// extra slot.
func (s *stingy) sendLarge() {
	s.g.w.t.Helper()
	f := partial(packettest.Frame{IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(2 * mss)}).Bytes()
	s.host.send(tap.VnetHdr{Flags: tap.VnetNeedsCsum, GSOType: tap.VnetGSOTCPv4, GSOSize: mss, HdrLen: 66, CsumStart: 34, CsumOffset: 16}, f)
}

// TestOneOfFourQueuesStalls: one stalled queue makes the vif stalled, since flows that are
// steered to it do not arrive.
func TestOneOfFourQueuesStalls(t *testing.T) {
	w := newWorld(t, "--rx-stall=200ms", "--rx-drain=1h")
	g := w.guest(withFewBuffers(), queues(4))
	s := g.stingy()
	s.raw(guest.RawOp{Op: "rx-target", Value: 0})
	// A flow always goes to the same queue. Find one that goes to this queue.
	held := false
	for port := uint16(1000); port < 1064 && !held; port++ {
		for range 2 * fewBuffers {
			s.host.send(tap.VnetHdr{}, packettest.Frame{IPv4: ip4, UDP: &packettest.UDP{SrcPort: port}}.Bytes())
		}
		held = g.status().Queues[0].Held > 0
	}
	if !held {
		t.Fatal("no flow goes to queue 0")
	}
	st := g.waitStatus("queue 0 to stall", func(s *vif.Status) bool { return s.Stalled && !s.Carrier })
	for i, q := range st.Queues {
		if q.Stalled != (i == 0) {
			t.Errorf("queue %d is stalled: %t", i, q.Stalled)
		}
	}
	s.feed()
	g.waitStatus("queue 0 to go on", func(s *vif.Status) bool { return !s.Stalled && s.Carrier && s.Queues[0].Held == 0 })
	s.well()
}

// TestPacketsThatAreNotTakenAreDropped: packets that the guest does not take are dropped
// after a time, in netbackd and in the TAP. Later ones arrive.
func TestPacketsThatAreNotTakenAreDropped(t *testing.T) {
	w := newWorld(t, "--rx-drain=500ms", "--rx-stall=1h")
	g := w.guest(withFewBuffers())
	s := g.stingy()
	s.starve(0)
	before := g.drops()
	s.send(200)
	g.dropped(before, drops{dataplane.DropRxStalled: 200})
	if q := g.status().Queues[0]; q.Held != 0 || q.HeldBytes != 0 {
		t.Errorf("%d packets in %d bytes are still held", q.Held, q.HeldBytes)
	}
	if st := g.status(); st.Stalled || !st.Carrier {
		t.Errorf("stalled %t, carrier %t", st.Stalled, st.Carrier)
	}
	s.feed()
	s.send(20)
	s.arrive(20)
	s.well()
}

// TestOneSlotIsFreeAndTwoAreNeeded: a guest with one free slot is stalled if a packet needs
// two. The backlog is bounded, and no other guest suffers (XSA-392).
func TestOneSlotIsFreeAndTwoAreNeeded(t *testing.T) {
	w := newWorld(t, "--rx-stall=300ms", "--rx-drain=1h")
	g := w.guest(withFewBuffers())
	s := g.stingy()
	w.undisturbed(func() {
		s.starve(1)
		s.sendLarge()
		if q := s.held(); q.Rx.Pending() != 1 {
			t.Errorf("%d slots are free, want 1", q.Rx.Pending())
		}
		before, start := w.process(w.Daemon().PID()), time.Now()
		// Small packets would fit, but must not overtake. The host's queue for
		// the guest is bounded as well and drops most of them.
		for time.Since(start) < time.Second {
			for range 1000 {
				s.sendLarge()
				s.send(1)
			}
			for _, q := range g.status().Queues {
				if q.HeldBytes > 512<<10 {
					t.Fatalf("%d bytes are held", q.HeldBytes)
				}
			}
		}
		st := g.waitStatus("the stall", func(s *vif.Status) bool { return s.Stalled && !s.Carrier })
		if n := st.Queues[0].Rx.Pending(); n != 1 {
			t.Errorf("%d slots are free, want 1", n)
		}
		if after := w.process(w.Daemon().PID()); after.rss-before.rss > 32<<10 {
			t.Errorf("the daemon has grown from %d to %d KiB", before.rss, after.rss)
		}
		s.feed()
		g.waitStatus("the guest to take what waited", func(s *vif.Status) bool { return !s.Stalled && s.Carrier && s.Queues[0].Held == 0 })
	})
	s.well()
}

// TestFloodOfPacketsThatNeedTwoSlots is the same with a flood of packets of a page and a
// half.
func TestFloodOfPacketsThatNeedTwoSlots(t *testing.T) {
	w := newWorld(t, "--rx-stall=300ms", "--rx-drain=500ms")
	g := w.guest(withFewBuffers(), func(c *lab.GuestConfig) { c.Vif.MTU, c.Front.MTU = jumbo, jumbo })
	s := g.stingy()
	s.starve(1)
	f := plainFrame(6000)
	before := w.process(w.Daemon().PID())
	for range 20000 {
		s.host.send(tap.VnetHdr{}, f)
	}
	for _, q := range g.status().Queues {
		if q.HeldBytes > 512<<10 {
			t.Errorf("%d bytes are held", q.HeldBytes)
		}
	}
	g.waitStatus("the stall", func(s *vif.Status) bool { return s.Stalled && !s.Carrier })
	g.waitStatus("all to be dropped", func(s *vif.Status) bool {
		return s.Queues[0].Held == 0 && s.Counters[dataplane.DropRxStalled.String()] > 0
	})
	if after := w.process(w.Daemon().PID()); after.rss-before.rss > 32<<10 {
		t.Errorf("the daemon has grown from %d to %d KiB", before.rss, after.rss)
	}
	s.feed()
	g.waitStatus("the guest to be served", func(s *vif.Status) bool { return !s.Stalled && s.Carrier })
	s.well()
}

// TestGuestDiesInTheMiddleOfTraffic: a guest that dies under traffic leaves nothing behind,
// and no other guest notices.
func TestGuestDiesInTheMiddleOfTraffic(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		var base process
		for i, tt := range []struct {
			name string
			die  func(g *testGuest) error
			gone bool // before its devices are removed
		}{
			{"its processes are killed", func(g *testGuest) error { return g.Kill() }, false},
			{"it crashes", func(g *testGuest) error { return w.Hypervisor().Shutdown(g.Domid) }, false},
			{"it stops in the middle of everything", func(g *testGuest) error { return w.Hypervisor().Pause(g.Domid) }, false},
			{"Xen destroys it", func(g *testGuest) error { return w.Hypervisor().Destroy(g.Domid) }, true},
		} {
			w.situation(tt.name, func() {
				g := w.guest(queues(2))
				up := g.pressing(2, 5e6)
				host := g.cable()
				w.wait("traffic both ways", func() bool {
					for range 64 {
						host.send(tap.VnetHdr{}, plainFrame(1000))
					}
					s := g.status()
					return s.Counters[dataplane.TxPackets.String()] > 1000 && s.Counters[dataplane.RxPackets.String()] > 1000
				})
				w.must(tt.die(g))
				for range 512 {
					if host.try(tap.VnetHdr{}, plainFrame(1000)) != nil {
						break // the vif is gone already
					}
				}
				var err error
				if tt.gone {
					_, err = w.Detach(w.ctx, g.Domid, g.Devid)
				} else {
					_, err = w.Destroy(w.ctx, g.Domid)
				}
				w.must(err)
				w.must(g.Stop())
				up()
				w.domainGone(g.Domid)
				w.vifGone(g.Domid, g.Devid)
				if i == 0 { // files that the daemon opens once
					base = w.process(w.Daemon().PID())
				}
			})
		}
		w.wait("the daemon to let go of what it held", func() bool {
			now := w.process(w.Daemon().PID())
			return now.fds <= base.fds && now.maps <= base.maps+24 // the Go runtime maps the stacks of its threads
		})
	})
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

const xdpHeadroom = 256 // XDP_PACKET_HEADROOM of Linux

// setHeadroom has the guest ask for headroom as Linux does, and checks that later packets
// have it.
func (g *testGuest) setHeadroom(n int) {
	g.w.t.Helper()
	g.w.must(g.SetXDPHeadroom(g.w.ctx, "", uint16(n)))
	g.headroom(n)
}

// headroom checks the headroom of packets. After a change to 0 the frontend may still have to
// take packets that were published with headroom.
func (g *testGuest) headroom(n int) {
	g.w.t.Helper()
	g.waitStatus(fmt.Sprintf("%d bytes of headroom", n), func(s *vif.Status) bool { return s.Headroom == n })
	if n == 0 {
		g.w.wait("the end of packets with headroom", func() bool { return g.withHeadroom() == 0 })
		return
	}
	if got := g.withHeadroom(); got < 3 {
		g.w.t.Errorf("%d packets with headroom of at least 3, with %d bytes", got, n)
	}
}

// withHeadroom returns the number of packets with headroom that the frontend takes during
// three pings.
func (g *testGuest) withHeadroom() uint64 {
	g.w.t.Helper()
	before := g.stats().RxXDP
	g.pings(3)
	return g.stats().RxXDP - before
}

// stats returns the frontend's counters.
func (g *testGuest) stats() netfront.Stats {
	g.w.t.Helper()
	s, err := g.Stats(g.w.ctx, "")
	g.w.must(err)
	return s.Total
}

// TestXDPHeadroomUnderTraffic: a guest attaches and detaches XDP programs under TCP streams
// both ways, on two queues. Its frontend checks the offset of each packet.
func TestXDPHeadroomUnderTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), front(func(c *netfront.Config) { c.Strict = true }))
	to, from := g.streamed(32<<20), g.streaming(16<<20)
	for range 3 {
		g.setHeadroom(xdpHeadroom)
		g.setHeadroom(2 * xdpHeadroom)
		g.setHeadroom(0)
	}
	to()
	from()
	g.setHeadroom(xdpHeadroom)
	gso := g.counter(dataplane.RxGSO)
	g.w.whole(g.tcpToGuest(g.ip, 8<<20), 8<<20)
	g.w.whole(g.tcpToGuest(g.ip6, 1<<20), 1<<20)
	if n := g.counter(dataplane.RxGSO) - gso; n != 0 {
		t.Errorf("%d packets to be segmented by a program that cannot", n)
	}
	if n := g.counter(dataplane.RxXDPSplit); n != 0 {
		t.Errorf("%d packets in several slots", n)
	}
	g.innocent()
}

// TestXDPHeadroomInStaticGrants is the same with static grants.
func TestXDPHeadroomInStaticGrants(t *testing.T) {
	w := newWorld(t, "--static-grants=1100")
	g := w.guest(front(func(c *netfront.Config) { c.Strict, c.Control = true, true }))
	_, err := g.StaticGrants(w.ctx, "", 0)
	w.must(err)
	g.setHeadroom(xdpHeadroom)
	ops := g.counter(dataplane.GrantOps)
	g.w.whole(g.tcpToGuest(g.ip, 4<<20), 4<<20)
	if n := g.counter(dataplane.GrantOps) - ops; n != 0 {
		t.Errorf("%d grant operations", n)
	}
	g.setHeadroom(0)
	g.innocent()
}

// TestXDPHeadroomOverAKill: the headroom of a guest survives a restart of the daemon during
// a stream.
func TestXDPHeadroomOverAKill(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	g.setHeadroom(xdpHeadroom)
	whole := g.streamed(32 << 20)
	for range 2 {
		seen := g.counter(dataplane.RxBytes)
		g.waitCounter(dataplane.RxBytes, seen+1<<20)
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	whole()
	g.headroom(xdpHeadroom)

	// A guest that attaches its program while no daemon runs waits for the next one.
	g.setHeadroom(0)
	w.Daemon().Kill()
	w.must(w.Store().Write(w.ctx, w.BackPath(g.Domid, g.Devid)+"/state", "4")) // as before the first request
	attached := make(chan error)
	go func() { attached <- g.SetXDPHeadroom(w.ctx, "", xdpHeadroom) }()
	w.wait("the guest to ask", func() bool { return w.read(w.FrontPath(g.Domid, g.Devid)+"/state") == "7" })
	w.must(w.StartDaemon(w.ctx))
	w.must(<-attached)
	g.headroom(xdpHeadroom)

	// If our node has the last answer, the guest does not wait.
	w.Daemon().Kill()
	w.must(g.SetXDPHeadroom(w.ctx, "", 0))
	w.must(w.StartDaemon(w.ctx))
	g.serving()
	g.headroom(0)
	g.innocentAfterKill()
}

// TestXDPHeadroomOverASuspension: a guest that was saved and restored still has its
// program, and asks for headroom with its new rings.
func TestXDPHeadroomOverASuspension(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2))
	g.setHeadroom(xdpHeadroom)
	_, err := g.Suspend(w.ctx, guest.ConnectArgs{})
	w.must(err)
	g.serving()
	g.headroom(xdpHeadroom)
	w.must(g.Disconnect(w.ctx, ""))
	g.waitState(xenbus.Closed)
	g.reconnect()
	g.headroom(xdpHeadroom)
	g.innocent()
}

// TestXDPHeadroomIsNotMissed: Linux writes its state before the key, possibly much earlier.
func TestXDPHeadroomIsNotMissed(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	f.connect()
	f.state(xenbus.Reconfiguring)
	w.wait("the daemon to see it", func() bool { return f.status().Frontend == xenbus.Reconfiguring })
	w.must(w.Store().Write(w.ctx, f.dir()+"/xdp-headroom", "256"))
	f.waitBack(xenbus.Reconfigured)
	w.wait("headroom", func() bool { return f.status().Headroom == 256 })
	f.state(xenbus.Connected)
	// From now on the frontend does not wait, and the daemon may see only Connected.
	for _, n := range []string{"0", "256", "0"} {
		f.state(xenbus.Reconfiguring)
		w.must(w.Store().Write(w.ctx, f.dir()+"/xdp-headroom", n))
		f.state(xenbus.Connected)
		w.wait(n+" bytes of headroom", func() bool { return fmt.Sprint(f.status().Headroom) == n })
	}
	f.connected()
	f.close()
}

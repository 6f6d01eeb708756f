// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// group returns the i-th multicast address of a test.
func group(i int) [6]byte { return [6]byte{0x01, 0x00, 0x5e, 0x7f, byte(i >> 8), byte(i)} }

// mcaster sends edits of a guest's multicast list, and checks which frames pass.
type mcaster struct {
	*prober
	host, nic *cable
}

func (g *testGuest) mcaster() *mcaster {
	g.w.t.Helper()
	p := g.prober()
	return &mcaster{p, p.c, g.inside()}
}

// ask sends an edit of the list, as an extra of a request without data.
func (m *mcaster) ask(extras ...netif.ExtraInfo) netif.Status {
	m.g.w.t.Helper()
	answers, out := m.send(withExtras([]guest.RawOp{ref("bogus", 0, 0xffff, 0xffff)}, extras...)...)
	m.g.w.cameOut(out)
	return answers[0]
}

func (m *mcaster) add(i int) netif.Status { return m.ask(netif.NewMcast(true, group(i))) }
func (m *mcaster) del(i int) netif.Status { return m.ask(netif.NewMcast(false, group(i))) }

// passes checks which of the frames to these addresses arrive.
func (m *mcaster) passes(want map[[6]byte]bool) {
	m.g.w.t.Helper()
	before := m.g.counter(dataplane.DropRxMcast)
	filtered := uint64(0)
	for dst, pass := range want {
		m.host.send(tap.VnetHdr{}, packettest.Frame{Dst: dst, EtherType: typeTest, Payload: make([]byte, 50)}.Bytes())
		if !pass {
			filtered++
		}
	}
	got := map[[6]byte]bool{}
	for dst := range want {
		got[dst] = false
	}
	for _, s := range m.host.mark(m.nic) {
		got[[6]byte(s.frame)] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.g.w.t.Errorf("what passes, by address (-want +got):\n%s", diff)
	}
	m.g.waitCounter(dataplane.DropRxMcast, before+filtered)
}

var unicast = [6]byte{2, 0, 0, 0, 0, 2}

func TestMulticastJoinedByTheGuestsKernelArrives(t *testing.T) {
	w := newWorld(t)
	g := w.guest(features(func(f *netfront.Features) { f.MulticastControl = true }))
	send := func(addr string) {
		c, err := traffic.DialUDP(w.ctx, addr, bridge)
		w.must(err)
		_, err = traffic.SendUDP(w.ctx, c, traffic.UDPSend{Count: 20, Size: 100, NoReport: true})
		w.must(err)
	}
	const joined, other = "239.1.2.3:7000", "239.1.2.4:7000"
	before := g.counter(dataplane.DropRxMcast)
	send(joined)
	g.waitCounter(dataplane.DropRxMcast, before+20)
	s, err := g.Join(w.ctx, guest.JoinArgs{Group: joined})
	w.must(err)
	send(other)
	g.waitCounter(dataplane.DropRxMcast, before+40)
	send(joined)
	w.wait("20 packets to the group", func() bool {
		r, err := g.UDPResults(w.ctx, s)
		w.must(err)
		return len(r) == 1 && r[0].Received == 20 && r[0].Corrupt == 0
	})
	// IPv6 works, too, which needs multicast to find a neighbour.
	r, err := traffic.DialTCP(w.ctx, join(g.ip6, tcpPort))
	w.must(err)
	_ = r.Close()
	g.innocent()
}

// TestMulticastFilterTurnedOnAndOffWhileConnected: a guest may turn the filter on and off
// while it is connected. The list stays.
func TestMulticastFilterTurnedOnAndOffWhileConnected(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	m := g.mcaster()
	w.answered(each(1, okay), []netif.Status{m.add(1)})
	m.passes(map[[6]byte]bool{group(1): true, group(2): true, broadcast: true})
	set := func(value string, want bool) {
		w.must(w.Store().Write(w.ctx, w.FrontPath(g.Domid, g.Devid)+"/request-multicast-control", value))
		g.waitStatus(fmt.Sprintf("the filter to be on: %t", want), func(s *vif.Status) bool { return slices.Contains(s.Features, "multicast-control") == want })
	}
	for range 3 {
		set("1", true)
		m.passes(map[[6]byte]bool{group(1): true, group(2): false, broadcast: true, unicast: true})
		set("0", false)
		m.passes(map[[6]byte]bool{group(1): true, group(2): true, broadcast: true, unicast: true})
	}
	g.innocent()
}

// TestMulticastListOfManyQueues: the list belongs to the vif, not to a queue.
func TestMulticastListOfManyQueues(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(4), features(func(f *netfront.Features) { f.MulticastControl = true }))
	m := g.mcaster()
	for q := range 4 {
		m.queue = q
		w.answered(each(1, okay), []netif.Status{m.add(q)})
	}
	m.queue = 0
	w.answered(each(1, okay), []netif.Status{m.del(3)})
	before := g.counter(dataplane.DropRxMcast)
	// Enough flows for each queue to have some.
	for i := range 64 {
		for a := range 5 {
			m.host.send(tap.VnetHdr{}, packettest.Frame{Dst: group(a), IPv4: ip4, UDP: &packettest.UDP{SrcPort: uint16(1000 + i)}}.Bytes())
		}
	}
	g.waitCounter(dataplane.DropRxMcast, before+2*64)
	got := map[[6]byte]int{}
	for range 3 * 64 {
		s := m.nic.next()
		if binary.BigEndian.Uint16(s.frame[12:]) == packettest.TypeIPv4 {
			got[[6]byte(s.frame)]++
		}
	}
	if diff := cmp.Diff(map[[6]byte]int{group(0): 64, group(1): 64, group(2): 64}, got); diff != "" {
		t.Errorf("frames that passed (-want +got):\n%s", diff)
	}
	rx := 0
	for _, q := range g.status().Queues {
		if q.Counters[dataplane.RxPackets.String()] > 0 {
			rx++
		}
	}
	if rx < 2 {
		t.Errorf("%d queues brought packets; then this shows little", rx)
	}
	g.innocent()
}

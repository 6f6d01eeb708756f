// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/pkg/tap"
)

// withoutSegmentation is a guest whose card segments nothing, and completes checksums.
func withoutSegmentation(c *lab.GuestConfig) {
	c.Front.Plain = true
	c.Front.Front.Features = netfront.Features{RxCopy: true, RxNotify: true, SG: true, NoCsumOffload: true}
}

// large returns the number of packets from the other end that wait here and are to be
// segmented, by their types, and the size in bytes of the largest packet.
func (c *cable) large() (types map[uint8]int, largest int) {
	c.w.t.Helper()
	types = map[uint8]int{}
	b := make([]byte, vnetLen+1<<17)
	for {
		n, from, err := unix.Recvfrom(c.fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return types, largest
		case err != nil:
			c.w.t.Fatal(err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if _, typ := tap.VnetKind(b); typ != tap.VnetGSONone {
			types[typ]++
		}
		largest = max(largest, n-vnetLen)
	}
}

// TestCoalescing: streams of a guest that sends packets of its MTU arrive whole, and in few
// packets.
func TestCoalescing(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		on   bool
	}{{"by default", nil, true}, {"switched off", []string{"--coalesce=false"}, false}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.args...)
			g := w.guest(withoutSegmentation)
			c := g.cable()
			g.bothWays(8 << 20)
			types, largest := c.large()
			if on := types[tap.VnetGSOTCPv4] > 0 && types[tap.VnetGSOTCPv6] > 0 && largest > 20000; on != tt.on {
				t.Errorf("large packets by type %v, the largest has %d bytes; want some: %v", types, largest, tt.on)
			}
			merged, packets := g.counter(dataplane.TxCoalesced), g.counter(dataplane.TxPackets)
			if on := merged > packets/2; on != tt.on {
				t.Errorf("%d packets of %d were merged, to %d", merged, packets, g.counter(dataplane.TxMerged))
			}
			if n := g.counter(dataplane.TxGSO); n != 0 {
				t.Errorf("the guest has sent %d packets to be segmented", n)
			}
		})
	}
}

// TestCoalescingThroughRestarts: packets that are merged are answered only when they are
// written, so a stream survives daemons that are killed.
func TestCoalescingThroughRestarts(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withoutSegmentation)
	whole := g.streaming(24 << 20)
	for range 3 {
		g.waitCounter(dataplane.TxCoalesced, 100)
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	whole()
	g.innocentAfterKill()
}

// TestCoalescingToAGuest: what one guest without segmentation offload sends to another one
// is segmented again on its way.
func TestCoalescingToAGuest(t *testing.T) {
	w := newWorld(t)
	g, other := w.guest(withoutSegmentation), w.guest(withoutSegmentation)
	g.pings(1)
	other.pings(1)
	g.tcpTo(other.ip, 8<<20)
	g.tcpTo(other.ip6, 8<<20)
	if n := g.counter(dataplane.TxCoalesced); n == 0 {
		t.Error("no packets were merged")
	}
	if n := other.counter(dataplane.RxGSO); n != 0 {
		t.Errorf("%d packets to be segmented reached a guest that takes none", n)
	}
	g.innocent()
	other.innocent()
}

// TestVhostCoalescing: the same for a driver of virtio without segmentation.
func TestVhostCoalescing(t *testing.T) {
	for name, on := range map[string]bool{"--coalesce=true": true, "--coalesce=false": false} {
		t.Run(name, func(t *testing.T) {
			w, d, g := vhostTest(t, []string{name}, fronted(func(c *vhostfront.Config) { c.NoTSO = true }))
			g.tcpTo(hostIP, 8<<20)
			g.tcpTo(hostIP6, 8<<20)
			merged, packets := d.counter(dataplane.TxCoalesced), d.counter(dataplane.TxPackets)
			if got := merged > packets/2; got != on {
				w.t.Errorf("%d packets of %d were merged", merged, packets)
			}
			g.innocent()
		})
	}
}

// TestCoalescingAndXDP: while an XDP program is attached to the interface it sees the
// packets that the guest sends.
func TestCoalescingAndXDP(t *testing.T) {
	w := newWorld(t)
	g := w.guest(withoutSegmentation)
	merged := func() (more uint64) {
		before := g.counter(dataplane.TxCoalesced)
		g.tcpToHost(1 << 20)
		return g.counter(dataplane.TxCoalesced) - before
	}
	if merged() == 0 {
		t.Fatal("no packets were merged")
	}
	x, err := guest.AttachXDP(g.status().Interface, "pass", "")
	w.must(err)
	w.wait("merging to be paused", func() bool {
		g.tcpToHost(1 << 20)
		return w.logged("coalescing paused") > 0
	})
	if n := merged(); n != 0 {
		t.Errorf("%d packets were merged", n)
	}
	g.reconnect()
	if n := merged(); n != 0 {
		t.Errorf("%d packets were merged on a new connection", n)
	}
	w.must(x.Close())
	w.wait("merging to go on", func() bool {
		g.tcpToHost(1 << 20)
		return w.logged("coalescing goes on") > 0
	})
	if merged() == 0 {
		t.Error("no packets were merged afterwards")
	}
	g.innocent()
}

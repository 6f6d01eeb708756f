// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// TestVirtNoAllocation runs whole turns, from the guest's kick to its notification, through
// every path that a packet of a virtqueue can take, and counts allocations.
func TestVirtNoAllocation(t *testing.T) {
	if raced {
		t.Skip("the race detector makes a system call allocate")
	}
	open := partial(tcp(4, 20000))
	cases := []struct {
		name   string
		lacks  uint64
		buffer []int
		limit  bool
		tx     []vsent
		rx     []hostFrame
		counts Counter
	}{
		{name: "small packets", tx: []vsent{{frame: udp(18, 1)}, {frame: udp(18, 1), alone: true}, {frame: udp(1400, 1)}}, counts: TxPackets},
		{name: "large packets", tx: []vsent{{frame: udp(9000, 1)}, {frame: udp(3000, 1), alone: true}}, counts: TxPackets},
		{name: "GSO", tx: []vsent{{vnet: vnetOf(open, 1448), frame: open.Bytes(), alone: true}}, counts: TxGSO},
		{name: "packets that are dropped", tx: []vsent{{frame: udp(1, 1)[:10]}, {vnet: vnetOf(open, 7), frame: open.Bytes()}}, counts: DropTxShort},
		{name: "a rate", limit: true, tx: []vsent{{frame: udp(18, 1)}}, counts: TxPackets},
		{name: "packets to the guest", rx: []hostFrame{{Frame: udp(18, 1)}, {Frame: udp(1400, 1)}, {Frame: udp(18, 1)}}, counts: RxPackets},
		{name: "GSO to the guest", rx: []hostFrame{{vnetOf(open, 1448), open.Bytes()}, {vnetOf(open, 1448), open.Bytes()}}, counts: RxGSO},
		{name: "large buffers", buffer: []int{65562}, rx: []hostFrame{{vnetOf(open, 1448), open.Bytes()}, {Frame: udp(18, 1)}}, counts: RxGSO},
		{name: "a checksum to finish", lacks: virtGuestCsum, rx: []hostFrame{{vnetOf(open, 0), open.Bytes()}}, counts: CsumCompleted},
		{name: "segments to cut", lacks: virtGuestTSO4, rx: []hostFrame{{vnetOf(open, 1448), open.Bytes()}}, counts: Segmented},
		{name: "buffers that are too small", lacks: virtMrgRxbuf, buffer: []int{1000}, rx: []hostFrame{{Frame: udp(1400, 1)}}, counts: DropRxSize},
	}
	formats := []vOptions{{features: vModern}, {features: vModern, packed: true, indirect: true}, {features: vModern, grants: true}}
	wide := tap.Offload{Csum: true, TSO4: true}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		all := o.features
		for _, tt := range cases {
			o.features, o.buffer, o.offload = all&^tt.lacks, tt.buffer, &wide
			if tt.limit {
				o.cfg.Limiter = new(Limiter)
				o.cfg.Limiter.Set(1<<40, 1)
			}
			b := newVbed(t, m, o)
			g := b.guest()
			var sends [][]byte
			for _, r := range tt.rx {
				hdr := make([]byte, tap.VnetHdrLen)
				r.Vnet.Encode(hdr)
				sends = append(sends, append(hdr[:packetHdrLen], r.Frame...))
			}
			const runs = 20
			// The test's guest allocates, so its work is done before.
			work := func() {
				g.tx.wake()
				for _, s := range sends {
					_, _ = unix.Write(b.host.fd, s)
				}
				b.settle()
				for {
					if _, err := unix.Read(b.host.fd, b.host.buf); err != nil {
						break
					}
				}
			}
			g.post(-1)
			for range 3 {
				g.fill(tt.tx)
				work()
				g.sent()
				g.received()
				g.post(-1)
			}
			var allocs uint64
			for range runs {
				g.fill(tt.tx)
				allocs += mallocs(work)
				g.sent()
				g.received()
				g.post(-1)
			}
			if allocs >= runs { // now and then the runtime itself allocates
				t.Errorf("%s: %d allocations in %d turns", tt.name, allocs, runs)
			}
			if b.stat(tt.counts) < runs {
				t.Errorf("%s: did not happen: %v", tt.name, b.stats(Traffic, Drop))
			}
			b.disconnect()
		}
	})
}

// mallocs counts the allocations of a call.
func mallocs(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// fill adds packets four times each.
func (g *vguest) fill(packets []vsent) {
	for range 4 {
		for _, p := range packets {
			g.put(p)
		}
	}
	g.tx.d.Publish()
}

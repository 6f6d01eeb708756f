// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
)

// burst is the traffic of a guest without segmentation offload: size segments of one flow,
// then of another.
type burst struct {
	name  string
	proto int
	size  int
	full  bool // complete checksums
	mixed bool // two flows, packet by packet
	large bool // packets of an MTU of 9000 bytes
	frame []byte
	h     offload.Headers
	flow  uint32
}

// run returns the number of packets per run and batch.
func (b *burst) run() int {
	if b.large {
		return 28
	}
	return 88
}

// payload returns the bytes of payload of a packet.
func (b *burst) payload() int {
	switch {
	case b.large:
		return 8948
	case b.proto == packettest.ProtoUDP:
		return 1472
	}
	return 1448
}

func bursts() (l []*burst) {
	for _, n := range []int{44, 8, 2, 1} {
		l = append(l, &burst{name: "TCP", proto: packettest.ProtoTCP, size: n})
	}
	return append(l,
		&burst{name: "TCP with complete checksums", proto: packettest.ProtoTCP, size: 44, full: true},
		&burst{name: "TCP with complete checksums", proto: packettest.ProtoTCP, size: 1, full: true},
		&burst{name: "two flows of TCP packet by packet", proto: packettest.ProtoTCP, size: 44, mixed: true},
		&burst{name: "TCP of 9000 bytes", proto: packettest.ProtoTCP, size: 7, large: true},
		&burst{name: "UDP", proto: packettest.ProtoUDP, size: 44},
		&burst{name: "UDP", proto: packettest.ProtoUDP, size: 8},
	)
}

// title returns the name of the group.
func (b *burst) title() string {
	return fmt.Sprintf("guest to host, %s in bursts of %d", b.name, b.size)
}

// next makes frame number i of a batch.
func (b *burst) next(i int) []byte {
	if b.frame == nil {
		f := stream(b.proto, 4, 1, b.payload(), 1)[0]
		if f.TCP != nil {
			f.TCP.Flags = packettest.ACK
		}
		b.frame = partial(f).Bytes()
		b.h, _ = offload.Parse(b.frame, len(b.frame))
	}
	at, flow := i%b.size, b.flow
	if b.mixed {
		at, flow = i/2, b.flow+uint32(i%2)
	} else if at == b.size-1 {
		b.flow++
	}
	f := b.frame
	ip, l4 := f[b.h.L3:b.h.L4], f[b.h.L4:]
	binary.BigEndian.PutUint16(ip[4:], uint16(at))
	binary.BigEndian.PutUint16(ip[10:], 0)
	_ = offload.Complete(0, 10, ip)
	binary.BigEndian.PutUint32(l4, 0x04000400+flow*7919) // ports
	offset := uint16(6)
	if b.proto == packettest.ProtoTCP {
		binary.BigEndian.PutUint32(l4[4:], uint32(at*b.payload()))
		offset = 16
	}
	offload.WritePseudo(f, b.h, len(f))
	if b.full {
		_ = offload.Complete(b.h.L4, offset, f)
	}
	return f
}

// coalesceLane is a lane that merges packets, or does not.
type coalesceLane struct {
	*lane
	what Coalesce
}

// putBursts puts n packets into the tx ring.
func (l *coalesceLane) putBursts(b *burst, n int) {
	for i := range n {
		frame := b.next(i)
		off, flags := i%16*64, netif.TxFlags(0)
		if !b.full {
			flags = netif.TxCsumBlank | netif.TxDataValidated
		}
		for rest := frame; len(rest) > 0; off = 0 {
			if l.f.nextTx == lanePages {
				l.f.nextTx = 0
			}
			ref, page := l.f.txPage()
			size := copy(page[off:], rest)
			r := netif.TxRequest{Gref: ref, Offset: uint16(off), ID: uint16(i), Size: uint16(size)}
			if len(rest) == len(frame) {
				r.Size, r.Flags = uint16(len(frame)), flags
			}
			if rest = rest[size:]; len(rest) > 0 {
				r.Flags |= netif.TxMoreData
			}
			l.f.tx.Put(r)
		}
	}
	l.f.tx.Push()
}

// run makes one run.
func (l *coalesceLane) run(b *burst, overhead time.Duration) (took time.Duration, err error) {
	before := l.stat(TxPackets)
	byDefault := l.queue().coalescer.what
	l.queue().coalescer.what = l.what
	// Only the last one is timed. The ones before bring the worker's memory into the caches,
	// for a row without coalescing as for the one with it, which comes next.
	const batches = 3
	for range batches {
		l.takeTx()
		l.putBursts(b, b.run())
		took = l.work(overhead)
	}
	l.queue().coalescer.what = byDefault
	if n := l.stat(TxPackets) - before; n != batches*uint64(b.run()) {
		return 0, fmt.Errorf("%d packets of %d reached the TAP: %v", n, batches*b.run(), l.stats(Drop))
	}
	return took, nil
}

// Rows of the lanes that merge packets and of those that do not.
func coalesceRow(l *lane, what Coalesce) string {
	if what == CoalesceOff {
		return l.name + ", without coalescing"
	}
	return l.name + ", coalescing"
}

// measureCoalesce measures the merging of packets against a write for each of them.
func measureCoalesce(rep *bench.Report, lim bench.Limits, only string, lanes []*lane, c *bench.Child, overhead time.Duration) error {
	for _, b := range bursts() {
		if !strings.Contains(b.title(), only) {
			continue
		}
		// The peer's frames have all checksums, so that they do not take other ways.
		whole := stream(b.proto, 4, 1, b.payload(), 1)[0].Bytes()
		peer := benchFrame{name: b.title(), frame: whole, run: b.run(), batches: []int{b.run()}}
		if err := c.Load(peer.withHeader()); err != nil {
			return err
		}
		g := bench.Group{Name: b.title(), Packets: b.run(), Peers: []bench.Peer{{
			Name: "write of each packet", Run: func() (time.Duration, error) {
				return peerRun(c, bench.OpWrite, &peer, func(int) error { return nil })
			},
		}}}
		for _, l := range lanes {
			for _, what := range []Coalesce{CoalesceOff, CoalesceAll} {
				x := &coalesceLane{l, what}
				g.Peers = append(g.Peers, bench.Peer{Name: coalesceRow(l, what), Run: func() (time.Duration, error) {
					return x.run(b, overhead)
				}})
			}
		}
		res, err := g.Measure(lim)
		if err != nil {
			return fmt.Errorf("%s: %w", b.title(), err)
		}
		rep.Results = append(rep.Results, res)
		coalesceGoals(rep, &res, b, lanes)
	}
	return nil
}

// coalesceGoals compares the figures of a group with the goals.
func coalesceGoals(rep *bench.Report, r *bench.Result, b *burst, lanes []*lane) {
	bar := map[int]float64{44: 3.5, 8: 2.2, 2: 1.25}[b.size]
	for _, l := range lanes {
		on, off := r.Figure(coalesceRow(l, CoalesceAll)).Median, r.Figure(coalesceRow(l, CoalesceOff)).Median
		switch {
		case b.size == 1:
			rep.AtLeast("P7", fmt.Sprintf("%s, %s: coalescing against without", b.title(), l.name), off/on, 0.98, r.Void)
		case b.mixed || b.full || b.large:
		case strings.HasPrefix(l.name, "netbackd, static grants"):
			rep.AtLeast("P7", fmt.Sprintf("%s, %s against a write for each", b.title(), l.name), r.Figures[0].Median/on, bar, r.Void)
		}
	}
}

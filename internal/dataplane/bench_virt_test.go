// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// vlane is a worker with one pair of virtqueues, and the guest of that pair.
type vlane struct {
	vbed
	name string
	g    *vguest
	hist map[int][2]int
	held []virtqueue.Buffer // of a packet from the guest
	hdr  [tap.VnetHdrLen]byte
}

// vlanePages is the number of pages that a lane's guest uses each way, as those of a vif.
const vlanePages = lanePages

// newVlane makes a lane whose guest has its rings at number i of the memory of guest, and
// its data in the same pages as the others.
func newVlane(name string, d *tap.Device, uring bool, o vOptions, guest *vguest, i int) *vlane {
	o.features, o.size = vModern, 256
	l := &vlane{name: name, hist: map[int][2]int{}, vbed: vbed{bed: bed{tb: benchTB{}, tap: d}}}
	l.newWorker(uring)
	l.w.clock = time.Now
	l.w.reads.compared = false
	g := &vguest{tb: l.tb, o: o, base: vBase, mem: guest.mem, back: guest.back, memory: guest.memory, ringsAt: vRingsOf(i)}
	if g.o.packed {
		g.o.features |= virtRingPacked
	}
	g.rx, g.tx = g.newRing(0), g.newRing(1)
	l.g, l.guests = g, []*vguest{g}
	l.conn = newVirtConn(VirtConfig{VnetHdr: true, Coalesce: CoalesceAll, Pairs: []VirtPair{{d.Queue(0)}}})
	l.queue().worker.Store(l.w)
	must(l.tb, l.w.attach(l.queue()))
	for _, r := range []*vring{&g.rx, &g.tx} {
		must(l.tb, l.w.startRing(l.queue(), r.set, g.memory, nil))
		r.wake()
	}
	l.work(0)
	return l
}

// vRingsOf is where the rings of lane i are.
func vRingsOf(i int) int { return vLaneRings + i*2*vRingAt }

// vLaneRings is behind all buffers.
const vLaneRings = 0xe00000

// work does what lane.work does.
func (l *vlane) work(overhead time.Duration) time.Duration {
	return (&lane{bed: l.bed}).work(overhead)
}

// putTx puts n packets into the tx ring: small ones in one piece with their vnet header, as
// Linux does, others in pages behind a piece with the headers.
func (l *vlane) putTx(b *benchFrame, n int) {
	g := l.g
	b.vnet.Encode(l.hdr[:])
	const page, first = 4096, 12 + 66
	for range n {
		g.nextTx = (g.nextTx + 1) % vlanePages
		at := vData + g.nextTx*page + g.nextTx%16*64
		l.held = l.held[:0]
		put := func(at int, parts ...[]byte) {
			size := 0
			for _, p := range parts {
				size += copy(g.mem[at+size:], p)
			}
			l.held = append(l.held, virtqueue.Buffer{Addr: g.base + uint64(at), Len: uint32(size)})
		}
		if len(b.frame) <= page {
			put(at, l.hdr[:], b.frame)
		} else {
			put(at, l.hdr[:], b.frame[:first-12])
			for rest := b.frame[first-12:]; len(rest) > 0; {
				g.nextTx = (g.nextTx + 1) % vlanePages
				m := min(len(rest), page)
				put(vData+g.nextTx*page, rest[:m])
				rest = rest[m:]
			}
		}
		l.chain(&g.tx)
	}
	g.tx.d.Publish()
	g.tx.d.Arm()
}

// chain adds l.held to a ring, as an indirect table if it has several pieces.
func (l *vlane) chain(r *vring) {
	var ok bool
	if len(l.held) > 1 {
		at := vTables + r.next%256*vTable
		_, ok = r.d.AddIndirect(l.g.mem[at:at+vTable], l.g.base+uint64(at), l.held...)
	} else {
		_, ok = r.d.Add(l.held...)
	}
	if r.next++; !ok {
		panic("the ring is full")
	}
}

// takeAll takes all used chains of a ring.
func takeAll(r *vring) (n int) {
	for {
		if _, _, ok := r.d.Poll(); !ok {
			return n
		}
		n++
	}
}

// repost posts buffers of size bytes, all that the ring takes.
func (l *vlane) repost(size int) {
	g := l.g
	takeAll(&g.rx)
	for {
		l.held = append(l.held[:0], virtqueue.Buffer{
			Addr: g.base + vPosted + uint64(g.rx.next%vlanePages)*4096, Len: uint32(size), Write: true,
		})
		if _, ok := g.rx.d.Add(l.held...); !ok {
			break
		}
		g.rx.next++
	}
	g.rx.d.Publish()
	g.rx.d.Arm()
}

// txRun makes one run of packets from the guest, as lane.txRun does.
func (l *vlane) txRun(b *benchFrame, batch int, overhead time.Duration) (took time.Duration, err error) {
	before := l.stat(TxPackets)
	for done := -b.warm(); done < b.run; done += batch {
		takeAll(&l.g.tx)
		l.putTx(b, batch)
		if t := l.work(overhead); done >= 0 {
			took += t
		}
		eventCount(l.g.tx.call)
	}
	if n := l.stat(TxPackets) - before; n != uint64(b.warm()+b.run) {
		return 0, fmt.Errorf("%d packets of %d reached the TAP: %v", n, b.warm()+b.run, l.stats(Drop))
	}
	return took, nil
}

// rxRun makes one run of packets to the guest, as lane.rxRun does.
func (l *vlane) rxRun(b *benchFrame, h *filler, batch int, overhead time.Duration) (took time.Duration, err error) {
	before := l.stat(RxPackets)
	q := l.queue()
	q.reader.run.expected, q.reader.run.previous = l.hist[batch][0], l.hist[batch][1]
	defer func() { l.hist[batch] = [2]int{q.reader.run.expected, q.reader.run.previous} }()
	size := 1536
	if len(b.frame) > smallPacket {
		size = 4096 // as Linux's buffers grow
	}
	for done := -b.warm(); done < b.run; done += batch {
		l.repost(size)
		if err := h.fill(b, batch); err != nil {
			return 0, err
		}
		q.tapIn.ready = true
		if t := l.work(overhead); done >= 0 {
			took += t
		}
		eventCount(l.g.rx.call)
	}
	if n := l.stat(RxPackets) - before; n != uint64(b.warm()+b.run) {
		return 0, fmt.Errorf("%d packets of %d reached the guest: %v", n, b.warm()+b.run, l.stats(Drop))
	}
	return took, nil
}

// virtFrames returns the packets of the rows of virtqueues.
func virtFrames() []benchFrame {
	frames := benchFrames()
	frames[0].batches, frames[2].batches = []int{128, 32, 1}, []int{8, 1}
	return []benchFrame{frames[0], frames[2]}
}

// measureVirt measures virtqueues beside a vif whose pages are static grants. Their first
// peer is the bare call.
func measureVirt(rep *bench.Report, lim bench.Limits, only string, d *tap.Device, h *filler, c *bench.Child, vif *lane, overhead time.Duration) error {
	lim.Until = time.Now().Add(20 * time.Second)
	guest := newVguest(benchTB{}, vOptions{})
	lanes := []*vlane{
		newVlane("virtqueue, split, system calls", d, false, vOptions{}, guest, 0),
		newVlane("virtqueue, packed, system calls", d, false, vOptions{packed: true}, guest, 1),
	}
	if iouring.Supported() == nil {
		lanes = append(lanes, newVlane("virtqueue, split, io_uring", d, true, vOptions{}, guest, 2))
	}
	for _, dir := range []string{"guest to host", "host to guest"} {
		for _, b := range virtFrames() {
			name := "virtqueues, " + dir + ", " + b.name
			if !strings.Contains(name, only) {
				continue
			}
			if err := c.Load(b.withHeader()); err != nil {
				return err
			}
			g := bench.Group{Name: name, Packets: b.run}
			tx := dir == "guest to host"
			op, bare := bench.OpRead, "read"
			if tx {
				op, bare = bench.OpWrite, "write"
			}
			g.Peers = append(g.Peers, bench.Peer{Name: bare, Run: func() (time.Duration, error) {
				return peerRun(c, op, &b, func(n int) error {
					if tx {
						return nil
					}
					return h.fill(&b, n)
				})
			}})
			for _, batch := range b.batches {
				g.Peers = append(g.Peers, bench.Peer{Name: vif.row(batch), Run: func() (time.Duration, error) {
					if tx {
						return vif.txRun(&b, batch, overhead)
					}
					return vif.rxRun(&b, h, batch, overhead)
				}})
				for _, l := range lanes {
					g.Peers = append(g.Peers, bench.Peer{Name: fmt.Sprintf("%s, batch %d", l.name, batch), Run: func() (time.Duration, error) {
						if tx {
							return l.txRun(&b, batch, overhead)
						}
						return l.rxRun(&b, h, batch, overhead)
					}})
				}
			}
			res, err := g.Measure(lim)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			rep.Results = append(rep.Results, res)
		}
	}
	return nil
}

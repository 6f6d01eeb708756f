// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// stream returns n segments of a TCP connection, or datagrams of a UDP flow, of size bytes
// each, as a guest without segmentation offload sends them.
func stream(proto, ipv, n, size int, port uint16) (frames []packettest.Frame) {
	for i := range n {
		f := tcp(ipv, size)
		f.TCP.Seq, f.TCP.Flags, f.TCP.SrcPort = uint32(1000+i*size), packettest.ACK, port
		if i == n-1 {
			f.TCP.Flags |= packettest.PSH
		}
		if proto == packettest.ProtoUDP {
			f.TCP, f.UDP = nil, &packettest.UDP{SrcPort: port}
		}
		if ipv == 4 {
			f.IPv4.ID = uint16(500 + i)
		}
		f.Payload = bytes.Clone(f.Payload)
		f.Payload[0] = byte(i)
		frames = append(frames, f)
	}
	return frames
}

// wires returns the finished frames that a frame at the host stands for.
func wires(t *testing.T, f hostFrame) (out [][]byte) {
	t.Helper()
	b, v := bytes.Clone(f.Frame), f.Vnet
	switch {
	case v.GSOType == tap.VnetGSONone && v.Flags&tap.VnetNeedsCsum == 0:
		return [][]byte{b}
	case v.GSOType == tap.VnetGSONone:
		must(t, offload.Complete(v.CsumStart, v.CsumOffset, b))
		return [][]byte{b}
	case v.GSOType == tap.VnetGSOUDP:
		return datagrams(t, b, int(v.GSOSize))
	}
	var s offload.Segmenter
	must(t, s.Init(b, int(v.GSOSize)))
	for range s.Left() {
		seg := make([]byte, s.MaxLen())
		n, err := s.Next(seg)
		must(t, err)
		out = append(out, seg[:n])
	}
	return out
}

// datagrams cuts a packet as the kernel's __udp_gso_segment does.
func datagrams(t *testing.T, b []byte, size int) (out [][]byte) {
	t.Helper()
	h, err := offload.Parse(b, len(b))
	must(t, err)
	l3, l4, end := int(h.L3), int(h.L4), int(h.End)
	for i, rest := 0, b[end:]; len(rest) > 0; i++ {
		n := min(size, len(rest))
		d := append(bytes.Clone(b[:end]), rest[:n]...)
		rest = rest[n:]
		if h.IPv == 4 {
			binary.BigEndian.PutUint16(d[l3+2:], uint16(len(d)-l3))
			binary.BigEndian.PutUint16(d[l3+4:], binary.BigEndian.Uint16(d[l3+4:])+uint16(i))
			binary.BigEndian.PutUint16(d[l3+10:], 0)
			must(t, offload.Complete(0, 10, d[l3:l4]))
		} else {
			binary.BigEndian.PutUint16(d[l3+4:], uint16(len(d)-l4))
		}
		binary.BigEndian.PutUint16(d[l4+4:], uint16(len(d)-l4))
		offload.WritePseudo(d, h, len(d))
		must(t, offload.Complete(h.L4, 6, d))
		out = append(out, d)
	}
	return out
}

// finished returns the frames with complete checksums.
func finished(frames []packettest.Frame) (out [][]byte) {
	for _, f := range frames {
		f.Partial = false
		out = append(out, f.Bytes())
	}
	return out
}

// coalesceCase is a batch from the guest, and the number of frames that the host gets.
type coalesceCase struct {
	name   string
	frames []packettest.Frame
	want   int
	merged int  // packets that are part of larger ones
	open   bool // only with partial checksums: the packets are scattered
}

func coalesceCases() (l []coalesceCase) {
	for _, ipv := range []int{4, 6} {
		for _, proto := range []int{packettest.ProtoTCP, packettest.ProtoUDP} {
			for _, n := range []int{2, 3, 8, 44} {
				l = append(l, coalesceCase{name: fmt.Sprintf("IPv%d, protocol %d, %d packets", ipv, proto, n), frames: stream(proto, ipv, n, 1400, 7), want: 1, merged: n})
			}
		}
	}
	var interleaved, two, small []packettest.Frame
	a, b := stream(packettest.ProtoTCP, 4, 10, 1400, 1), stream(packettest.ProtoTCP, 4, 10, 1400, 2)
	for i := range a {
		interleaved = append(interleaved, a[i], b[i])
	}
	two = append(append(two, a...), b...)
	small = stream(packettest.ProtoTCP, 6, 80, 100, 1)
	short := stream(packettest.ProtoTCP, 4, 4, 1400, 1)
	short[1].Payload = short[1].Payload[:100]
	short[2].TCP.Seq -= 1300
	short[3].TCP.Seq -= 1300
	for _, tags := range [][]packettest.Tag{{vlan}, {qinq, vlan}} {
		for _, ipv := range []int{4, 6} {
			frames := stream(packettest.ProtoTCP, ipv, 20, 1400, 7)
			for i := range frames {
				frames[i].Tags = tags
			}
			l = append(l, coalesceCase{name: fmt.Sprintf("IPv%d behind %d tags", ipv, len(tags)), frames: frames, want: 1, merged: 20})
		}
	}
	for _, size := range []int{1950, 3000, 9000, 20000} {
		for _, ipv := range []int{4, 6} {
			n := 64000/size + 1
			frames := stream(packettest.ProtoTCP, ipv, n, size, 7)
			frames[n-1].Payload = frames[n-1].Payload[:100]
			l = append(l, coalesceCase{name: fmt.Sprintf("IPv%d, packets of %d bytes", ipv, size), frames: frames, want: 1, merged: n, open: size > smallPacket})
		}
	}
	return append(l,
		coalesceCase{name: "one packet", frames: a[:1], want: 1, merged: 0},
		coalesceCase{name: "two flows", frames: two, want: 2, merged: 20},
		coalesceCase{name: "interleaved flows", frames: interleaved, want: 2, merged: 20},
		coalesceCase{name: "64 packets and 16", frames: small, want: 2, merged: 80},
		coalesceCase{name: "more than 64 KiB", frames: stream(packettest.ProtoTCP, 4, 60, 1448, 1), want: 2, merged: 60},
		coalesceCase{name: "a short one in between", frames: short, want: 2, merged: 4},
	)
}

// TestCoalesce sends bursts of a guest without segmentation offload. The host gets few
// packets, which stand for exactly those that were sent.
func TestCoalesce(t *testing.T) {
	modes := []mode{{true, true}, {true, false}}
	inModes(t, modes, func(t *testing.T, m mode) {
		for _, all := range []bool{false, true} { // static grants
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			if all {
				f.allStatic()
			}
			sent, bytes := 0, 0
			for _, tt := range coalesceCases() {
				for _, open := range []bool{false, true} {
					what := fmt.Sprintf("%s, partial checksums %v, static grants %v", tt.name, open, all)
					tt := tt
					b.queue().coalescer.gate = [1 << gateBits]gate{}
					if tt.open && !open { // merged only if they are in one piece
						tt.want, tt.merged = 0, -1
					}
					want, total := putStream(f, tt.frames, open)
					bytes += total
					before := b.stat(TxCoalesced)
					f.push()
					b.settle()
					if diff := gocmp.Diff(want, f.answers()); diff != "" {
						t.Errorf("%s: answers (-want +got):\n%s", what, diff)
					}
					checkWires(t, what, b.host.received(), tt)
					if n := b.stat(TxCoalesced) - before; tt.merged >= 0 && n != uint64(tt.merged) {
						t.Errorf("%s: %d packets were merged, want %d", what, n, tt.merged)
					}
					sent += len(tt.frames)
				}
			}
			if p, n := b.stat(TxPackets), b.stat(TxBytes); p != uint64(sent) || n != uint64(bytes) {
				t.Errorf("%d packets and %d bytes counted, want %d and %d", p, n, sent, bytes)
			}
			if d := b.stats(Drop); len(d) > 0 {
				t.Errorf("drops: %v", d)
			}
			b.disconnect()
		}
	})
}

func checkWires(t *testing.T, what string, frames []hostFrame, tt coalesceCase) {
	t.Helper()
	if tt.want != 0 && len(frames) != tt.want {
		t.Errorf("%s: %d frames at the host, want %d", what, len(frames), tt.want)
	}
	var got [][]byte
	for _, f := range frames {
		got = append(got, wires(t, f)...)
	}
	if diff := diffFrames(byFlow(finished(tt.frames)), byFlow(got)); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

// byFlow puts frames of one flow together. Their order does not change.
func byFlow(frames [][]byte) [][]byte {
	port := func(b []byte) uint16 {
		h, err := offload.Parse(b, len(b))
		if err != nil {
			return 0
		}
		return binary.BigEndian.Uint16(b[h.L4:])
	}
	slices.SortStableFunc(frames, func(a, b []byte) int { return cmp.Compare(port(a), port(b)) })
	return frames
}

// TestVirtCoalesce does the same with virtqueues.
func TestVirtCoalesce(t *testing.T) {
	inFormats(t, []mode{{true, true}, {true, false}}, vFew, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		for _, tt := range coalesceCases() {
			for _, open := range []bool{false, true} {
				what := fmt.Sprintf("%s, partial checksums %v", tt.name, open)
				tt := tt
				b.queue().coalescer.gate = [1 << gateBits]gate{}
				if tt.open && !open { // merged only if they are in one piece
					tt.want = 0
				}
				var packets []vsent
				for _, p := range tt.frames {
					p.Partial = open
					s := vsent{frame: p.Bytes()}
					if open {
						s.vnet = vnetOf(p, 0)
					}
					packets = append(packets, s)
				}
				g.send(packets...)
				b.settle()
				if n := g.sent(); n != len(packets) {
					t.Errorf("%s: %d chains came back, want %d", what, n, len(packets))
				}
				checkWires(t, what, b.host.received(), tt)
			}
		}
		if d := b.stats(Drop); len(d) > 0 || b.breach() != nil {
			t.Errorf("drops: %v, %v", d, b.breach())
		}
	})
}

// TestVirtCoalesceCut: packets that were merged are not returned to the ring when the segments
// of a turn are used up.
func TestVirtCoalesceCut(t *testing.T) {
	inFormats(t, []mode{{true, true}, {true, false}}, vFew, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		b.queue().mostSegs = 20
		large := partial(tcp(4, 17*1000))
		packets := []vsent{{frame: large.Bytes(), vnet: vnetOf(large, 1000)}}
		frames := slices.Insert(stream(packettest.ProtoUDP, 4, 11, 500, 1), 8, stream(packettest.ProtoUDP, 4, 1, 500, 2)...)
		for _, p := range frames {
			p.Partial = true
			packets = append(packets, vsent{frame: p.Bytes(), vnet: vnetOf(p, 0)})
		}
		g.send(packets...)
		b.settle()
		if n := g.sent(); n != len(packets) {
			t.Errorf("%d chains came back, want %d", n, len(packets))
		}
		n := 0
		for _, f := range b.host.received() {
			n += len(wires(t, f))
		}
		if want := 17 + 12; n != want {
			t.Errorf("%d packets at the host, want %d", n, want)
		}
		if n := b.stat(TxPackets); n != uint64(len(packets)) {
			t.Errorf("%d packets were counted, want %d", n, len(packets))
		}
	})
}

// putStream puts packets into the tx ring, as partial or complete ones.
func putStream(f *front, frames []packettest.Frame, open bool) (want []answer, total int) {
	for _, p := range frames {
		p.Partial = open
		flags := netif.TxFlags(0)
		if open {
			flags = netif.TxCsumBlank | netif.TxDataValidated
		}
		frame := p.Bytes()
		total += len(frame)
		want = append(want, f.put(packet{frame: frame, flags: flags})...)
	}
	return want, total
}

// TestCoalesceFailures: if the TAP does not take a merged packet, each of its packets is
// counted as dropped, and answered as it would be alone.
func TestCoalesceFailures(t *testing.T) {
	inModes(t, []mode{{true, true}, {true, false}}, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, ownTAP: true})
		f := b.front()
		must(t, netns.Down(ownName))
		var want []answer
		for i := range 8 {
			w, _ := putStream(f, stream(packettest.ProtoTCP, 4+i%2*2, 3, 1000, uint16(i)), i < 4)
			want = append(append(want, w...), f.put(packet{frame: udp(100, uint16(i))})...)
		}
		f.push()
		b.settle()
		if diff := gocmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff(map[string]uint64{"tx_tap_down": 32}, b.stats(Drop)); diff != "" {
			t.Errorf("drops (-want +got):\n%s", diff)
		}
		if b.stat(TxPackets) != 0 || b.stat(TxBytes) != 0 || b.stat(TxMerged) != 8 {
			t.Errorf("counted: %v", b.stats(Traffic))
		}
	})
}

// TestCoalesceRefused: a TAP that does not take datagrams for segmentation gets no more of
// them.
func TestCoalesceRefused(t *testing.T) {
	b := newBed(t, mode{vnet: true}, setup{cfg: full})
	q, batch := b.queue(), &b.w.tx
	for _, tt := range []struct {
		gso  uint8
		e    unix.Errno
		want Coalesce
	}{
		{tap.VnetGSOTCPv6, unix.EINVAL, CoalesceAll},
		{tap.VnetGSOUDP, unix.EIO, CoalesceAll},
		{tap.VnetGSOUDP, unix.EINVAL, CoalesceTCP},
	} {
		batch.reset(unlimited)
		batch.pkts[0] = txPacket{at: headroom, more: 1, next: 1}
		tap.VnetHdr{GSOType: tt.gso}.Encode(b.w.txMem.mem[headroom-tap.VnetHdrLen:])
		b.w.out.begin(q, batch, 1)
		b.w.out.doneMerged(batch, 0, tt.e)
		if q.coalescer.what != tt.want {
			t.Errorf("type %d, %v: %d, want %d", tt.gso, tt.e, q.coalescer.what, tt.want)
		}
	}
}

// TestCoalesceKeepsOrder: the packets of a flow stay in order, and what is of no flow that
// can be told keeps its place among all.
func TestCoalesceKeepsOrder(t *testing.T) {
	inModes(t, []mode{{true, true}, {true, false}}, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		r := rand.New(rand.NewPCG(5, 6))
		for round := range 300 {
			if round == 150 {
				f.allStatic()
			}
			type flow struct {
				frames []packettest.Frame
				at     int
			}
			var flows []*flow
			for i := range 1 + r.IntN(20) {
				proto := packettest.ProtoTCP
				if r.IntN(3) == 0 {
					proto = packettest.ProtoUDP
				}
				size := 8 + r.IntN(700)
				if r.IntN(5) == 0 {
					size = 1500 + r.IntN(9000)
				}
				flows = append(flows, &flow{frames: stream(proto, 4+r.IntN(2)*2, 1+r.IntN(20), size, uint16(1000+i))})
			}
			var sent [][]byte
			var marks []int // places of packets that are of no flow
			for slots := 0; slots < 200 && len(sent) < 100 && len(flows) > 0; {
				if r.IntN(30) == 0 {
					marks = append(marks, len(sent))
					f.put(packet{frame: arp()})
					sent = append(sent, arp())
					continue
				}
				k := r.IntN(len(flows))
				x := flows[k]
				p := x.frames[x.at]
				if x.at++; x.at == len(x.frames) {
					flows = slices.Delete(flows, k, k+1)
				}
				if r.IntN(20) == 0 && p.TCP != nil {
					p.TCP.Flags |= 1 << r.IntN(8)
				}
				want, _ := putStream(f, []packettest.Frame{p}, r.IntN(2) == 0)
				slots += len(want)
				p.Partial = false
				sent = append(sent, p.Bytes())
			}
			f.push()
			b.settle()
			f.answers()
			var got [][]byte
			for _, h := range b.host.received() {
				got = append(got, wires(t, h)...)
			}
			if len(got) != len(sent) {
				t.Fatalf("round %d: %d frames at the host, want %d", round, len(got), len(sent))
			}
			from := 0
			for _, end := range append(marks, len(sent)) {
				if diff := diffFrames(byFlow(sent[from:end]), byFlow(got[from:end])); diff != "" {
					t.Fatalf("round %d: %s", round, diff)
				}
				if from = end; end < len(sent) {
					if !bytes.Equal(got[end], arp()) {
						t.Fatalf("round %d: the packet that is of no flow is not in its place", round)
					}
					from++
				}
			}
		}
		if b.stat(TxCoalesced) < 2000 {
			t.Errorf("%d packets were merged: too few to prove anything", b.stat(TxCoalesced))
		}
	})
}

// TestCoalesceGate: a flow that cannot be merged is let pass, and is tried again.
func TestCoalesceGate(t *testing.T) {
	var g gate
	tries := 0
	for range 1000 {
		if g.open() {
			tries++
			g.missed()
		}
	}
	if tries < 5 || tries > gateMisses+1000/gatePause+1 {
		t.Errorf("%d tries of 1000", tries)
	}
	var c coalescer
	tries = 0
	for range 1000 {
		if c.looks() {
			tries++
			c.looked(0)
		}
	}
	if tries < 1000/vainBatches || tries > 1000/vainBatches+2*vainBatches {
		t.Errorf("%d batches of 1000 were looked at", tries)
	}
	for range 2 * vainBatches {
		if c.looks() {
			c.looked(2)
		}
	}
	for range 100 {
		if !c.looks() {
			t.Fatal("a batch was not looked at although others were merged")
		}
		c.looked(1)
	}
}

// TestCoalesceGateOpens: a connection whose packets could not be merged is merged when they
// can.
func TestCoalesceGateOpens(t *testing.T) {
	b := newBed(t, mode{vnet: true}, setup{cfg: full})
	f := b.front()
	bad := stream(packettest.ProtoTCP, 4, 100, 500, 9)
	for i := range bad {
		bad[i].TCP.Flags |= packettest.PSH
	}
	good := stream(packettest.ProtoTCP, 4, 100, 500, 9)
	run := func(frames []packettest.Frame) {
		putStream(f, frames, true)
		f.push()
		b.settle()
		f.answers()
		b.host.drain()
	}
	for range 20 {
		run(bad)
	}
	if b.stat(TxCoalesced) != 0 {
		t.Fatal("segments with PSH were merged")
	}
	for range 10 + vainBatches {
		run(good)
	}
	if n := b.stat(TxCoalesced); n < 8*100 {
		t.Errorf("%d packets of %d were merged", n, (10+vainBatches)*100)
	}
}

// TestCoalesceAccounts: merging changes neither the bytes that the rate limit is charged
// with, nor the segments of a turn, nor what the counters say of packets.
func TestCoalesceAccounts(t *testing.T) {
	type account struct {
		Charged  float64
		Turns    int
		Counters map[string]uint64
	}
	run := func(what Coalesce) (a account) {
		cfg := full
		cfg.Coalesce, cfg.Limiter = what, new(Limiter)
		cfg.Limiter.Set(1<<20, time.Hour)
		b := newBed(t, mode{vnet: true}, setup{cfg: cfg})
		f := b.front()
		before := cfg.Limiter.tokens
		_, total := putStream(f, stream(packettest.ProtoTCP, 4, 100, 1448, 1), true)
		f.push()
		b.settle()
		a.Charged = before - cfg.Limiter.tokens
		if a.Charged != float64(total) {
			t.Errorf("charged with %v bytes, want %d", a.Charged, total)
		}
		putStream(f, stream(packettest.ProtoTCP, 4, 100, 1448, 1), true)
		f.push()
		b.w.tally = tally{}
		_, err := b.w.txPass(b.queue())
		must(t, err)
		a.Turns = b.queue().turnSegs
		b.settle()
		a.Counters = b.stats(Traffic, Drop)
		a.Counters["host_segments"] = b.stat(HostSegments)
		delete(a.Counters, TxMerged.String())
		delete(a.Counters, TxCoalesced.String())
		return a
	}
	if diff := gocmp.Diff(run(CoalesceOff), run(CoalesceAll)); diff != "" {
		t.Errorf("accounts (-alone +merged):\n%s", diff)
	}
}

// TestCoalesceNoAllocation sends bursts through whole turns.
func TestCoalesceNoAllocation(t *testing.T) {
	inModes(t, []mode{{true, true}, {true, false}}, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		var puts []netif.TxRequest
		for i, p := range stream(packettest.ProtoTCP, 4, 100, 1400, 1) {
			p.Partial = i%2 == 0
			for _, r := range f.requests(packet{frame: p.Bytes()}) {
				if r.Size = uint16(len(p.Bytes())); p.Partial {
					r.Flags |= netif.TxCsumBlank
				}
				puts = append(puts, r)
			}
		}
		cycle := func() {
			for _, r := range puts {
				f.tx.Put(r)
			}
			f.push()
			b.settle()
			n, _ := f.tx.Responses()
			f.tx.Take(n)
			for {
				if _, err := unix.Read(b.host.fd, b.host.buf); err != nil {
					break
				}
			}
		}
		cycle()
		if n := testing.AllocsPerRun(20, cycle); n != 0 {
			t.Errorf("%v allocations", n)
		}
		if n := b.stat(TxCoalesced); n < 2000 {
			t.Errorf("%d packets were merged", n)
		}
	})
}

// TestCoalescePause: the owner is told that packets are merged, and can pause that.
func TestCoalescePause(t *testing.T) {
	b := newBed(t, mode{vnet: true}, setup{cfg: full})
	f := b.front()
	told := 0
	run := func(merged, notices int) {
		t.Helper()
		before := b.stat(TxCoalesced)
		putStream(f, stream(packettest.ProtoTCP, 4, 10, 500, 9), true)
		f.push()
		b.settle()
		f.answers()
		b.host.drain()
		if n := b.stat(TxCoalesced) - before; n != uint64(merged) {
			t.Errorf("%d packets were merged, want %d", n, merged)
		}
		told += notices
		if want := slices.Repeat([]Notice{{Kind: Coalescing}}, told); !slices.Equal(b.notices, want) {
			t.Errorf("notices %v, want %v", b.notices, want)
		}
	}
	run(10, 1)
	run(10, 0)
	b.pass(coalescingEvery)
	run(10, 1)
	b.queue().coalescer.paused = true
	run(0, 0)
	b.pass(pausedEvery)
	run(0, 1)
	run(0, 0)
	b.queue().coalescer.paused = false
	run(10, 0)
}

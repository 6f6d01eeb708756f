// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	merged int // packets that are part of larger ones
}

func coalesceCases() (l []coalesceCase) {
	for _, ipv := range []int{4, 6} {
		for _, proto := range []int{packettest.ProtoTCP, packettest.ProtoUDP} {
			for _, n := range []int{2, 3, 8, 44} {
				l = append(l, coalesceCase{fmt.Sprintf("IPv%d, protocol %d, %d packets", ipv, proto, n), stream(proto, ipv, n, 1400, 7), 1, n})
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
	return append(l,
		coalesceCase{"one packet", a[:1], 1, 0},
		coalesceCase{"two flows", two, 2, 20},
		coalesceCase{"interleaved flows", interleaved, 20, 0},
		coalesceCase{"64 packets and 16", small, 2, 80},
		coalesceCase{"more than 64 KiB", stream(packettest.ProtoTCP, 4, 60, 1448, 1), 2, 60},
		coalesceCase{"a short one in between", short, 2, 4},
	)
}

// TestCoalesce sends bursts of a guest without segmentation offload. The host gets few
// packets, which stand for exactly those that were sent.
func TestCoalesce(t *testing.T) {
	modes := []mode{{true, true}, {true, false}}
	inModes(t, modes, func(t *testing.T, m mode) {
		for _, all := range []bool{false, true} { // static grants
			cfg := full
			cfg.Coalesce = CoalesceAll
			b := newBed(t, m, setup{cfg: cfg})
			f := b.front()
			if all {
				f.allStatic()
			}
			sent, bytes := 0, 0
			for _, tt := range coalesceCases() {
				for _, open := range []bool{false, true} {
					what := fmt.Sprintf("%s, partial checksums %v, static grants %v", tt.name, open, all)
					var want []answer
					for _, p := range tt.frames {
						p.Partial = open
						flags := netif.TxFlags(0)
						if open {
							flags = netif.TxCsumBlank | netif.TxDataValidated
						}
						frame := p.Bytes()
						bytes += len(frame)
						want = append(want, f.put(packet{frame: frame, flags: flags})...)
					}
					before := b.stat(TxCoalesced)
					f.push()
					b.settle()
					if diff := cmp.Diff(want, f.answers()); diff != "" {
						t.Errorf("%s: answers (-want +got):\n%s", what, diff)
					}
					checkWires(t, what, b.host.received(), tt)
					if n := b.stat(TxCoalesced) - before; n != uint64(tt.merged) {
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
	if len(frames) != tt.want {
		t.Errorf("%s: %d frames at the host, want %d", what, len(frames), tt.want)
	}
	var got [][]byte
	for _, f := range frames {
		got = append(got, wires(t, f)...)
	}
	if diff := diffFrames(finished(tt.frames), got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

// TestVirtCoalesce does the same with virtqueues.
func TestVirtCoalesce(t *testing.T) {
	inFormats(t, []mode{{true, true}, {true, false}}, vFew, func(t *testing.T, m mode, o vOptions) {
		o.cfg.Coalesce = CoalesceAll
		b := newVbed(t, m, o)
		g := b.guest()
		for _, tt := range coalesceCases() {
			for _, open := range []bool{false, true} {
				what := fmt.Sprintf("%s, partial checksums %v", tt.name, open)
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

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// gsoFrames returns frames of all kinds that can be segmented.
func gsoFrames() map[string]packettest.Frame {
	all := uint8(packettest.CWR | packettest.ECE | packettest.PSH | packettest.FIN | packettest.ACK)
	stamps := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	return map[string]packettest.Frame{
		"IPv4": {
			IPv4: &packettest.IPv4{ID: 100, DF: true, TOS: 2},
			TCP:  &packettest.TCP{Seq: 1000, Ack: 5, Window: 77, Flags: packettest.ACK | packettest.PSH},
		},
		"IPv6": {
			IPv6: &packettest.IPv6{FlowLabel: 0xabcde, TrafficClass: 2},
			TCP:  &packettest.TCP{Seq: 1000, Ack: 5, Window: 77, Flags: packettest.ACK | packettest.PSH},
		},
		"numbers that wrap": {
			IPv4: &packettest.IPv4{ID: 0xfffe},
			TCP:  &packettest.TCP{Seq: 0xfffffff0, Flags: packettest.ACK},
		},
		"all flags, options": {
			IPv4: &packettest.IPv4{ID: 9, Options: []byte{1, 1, 1, 1, 1}},
			TCP:  &packettest.TCP{Seq: 1, Flags: all, Options: stamps, Urgent: 3},
		},
		"one tag": {
			Tags: qTag,
			IPv4: &packettest.IPv4{ID: 8},
			TCP:  &packettest.TCP{Seq: 7, Flags: packettest.ACK, Options: stamps},
		},
		"two tags, extension headers": {
			Tags: qTags,
			IPv6: ip6ext(packettest.Options(packettest.ProtoHopByHop, 8), packettest.Options(packettest.ProtoDest, 16)),
			TCP:  &packettest.TCP{Seq: 7, Flags: all},
		},
	}
}

// segments cuts a frame and gives every segment a slice of its own.
func segments(t *testing.T, frame []byte, mss int) [][]byte {
	t.Helper()
	var s Segmenter
	if err := s.Init(frame, mss); err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for range s.Left() {
		buf := make([]byte, s.MaxLen())
		n, err := s.Next(buf)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, buf[:n])
	}
	if _, err := s.Next(make([]byte, 2000)); err != io.EOF {
		t.Fatalf("after the last segment: error %v, want EOF", err)
	}
	return out
}

// TestSegments: every segment equals a frame that is built with a part of the payload.
func TestSegments(t *testing.T) {
	for name, f := range gsoFrames() {
		for _, size := range []struct{ payload, mss int }{
			{4000, 1448}, {2896, 1448}, {100, 1}, {100, 7}, {1449, 1448}, {100, 100}, {99, 100}, {0, 1448},
			{5, 0xffff}, {20000, 536},
		} {
			t.Run(fmt.Sprintf("%s/%d by %d", name, size.payload, size.mss), func(t *testing.T) {
				f.Payload = packettest.Pattern(size.payload)
				f.Partial = true
				frame := f.Bytes()
				before := bytes.Clone(frame)
				got := segments(t, frame, size.mss)
				if !bytes.Equal(frame, before) {
					t.Error("the frame was changed")
				}

				want := built(f, size.mss)
				if len(got) != len(want) {
					t.Fatalf("%d segments, want %d", len(got), len(want))
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("segment %d (-want +got):\n%s", i, cmp.Diff(want[i], got[i]))
					}
				}
			})
		}
	}
}

// built returns the segments of f, each built as a frame of its own.
func built(f packettest.Frame, mss int) [][]byte {
	var out [][]byte
	rest := f.Payload
	f.Partial = false
	tcp := *f.TCP
	flags := tcp.Flags
	for i := 0; ; i++ {
		n := min(mss, len(rest))
		f.Payload = rest[:n]
		rest = rest[n:]
		tcp.Flags = flags
		if i > 0 {
			tcp.Flags &^= packettest.CWR
		}
		if len(rest) > 0 {
			tcp.Flags &^= packettest.FIN | packettest.PSH
		}
		f.TCP = &tcp
		out = append(out, f.Bytes())
		if len(rest) == 0 {
			return out
		}
		tcp.Seq += uint32(n)
		if f.IPv4 != nil {
			ip := *f.IPv4
			ip.ID++
			f.IPv4 = &ip
		}
	}
}

func TestNextWithAShortBuffer(t *testing.T) {
	f := gsoFrames()["IPv4"]
	f.Payload = packettest.Pattern(250)
	f.Partial = true
	frame := f.Bytes()
	want := segments(t, frame, 100)
	var s Segmenter
	if err := s.Init(frame, 100); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if _, err := s.Next(make([]byte, len(w)-1)); err != io.ErrShortBuffer {
			t.Errorf("error %v, want %v", err, io.ErrShortBuffer)
		}
		buf := make([]byte, len(w))
		if n, err := s.Next(buf); err != nil || !bytes.Equal(buf[:n], w) {
			t.Errorf("got %x, %v, want %x", buf[:n], err, w)
		}
	}
	if _, err := s.Next(make([]byte, 200)); err != io.EOF {
		t.Errorf("after the last segment: error %v, want %v", err, io.EOF)
	}
}

func TestZeroSegmenterIsDone(t *testing.T) {
	var s Segmenter
	if n, err := s.Next(nil); n != 0 || err != io.EOF || s.Left() != 0 {
		t.Errorf("%d bytes, error %v, %d left", n, err, s.Left())
	}
}

func TestSegmenterRefuses(t *testing.T) {
	data := packettest.Pattern(3000)
	tooLong4 := packettest.Frame{IPv4: ip4, TCP: tcp, Payload: make([]byte, 65535-40)}.Bytes()
	tooLong6 := packettest.Frame{IPv6: ip6, TCP: tcp, Payload: make([]byte, 65535-20)}.Bytes()
	tests := map[string]struct {
		frame []byte
		mss   int
		want  error
	}{
		"nothing":             {nil, 1000, ErrTruncated},
		"ARP":                 {packettest.Frame{EtherType: packettest.TypeARP}.Bytes(), 1000, ErrGSOMismatch},
		"UDP":                 {packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}.Bytes(), 1000, ErrGSOMismatch},
		"fragment":            {packettest.Frame{IPv4: &packettest.IPv4{MF: true}, TCP: tcp, Payload: data}.Bytes(), 1000, ErrFragment},
		"atomic fragment":     {packettest.Frame{IPv6: ip6ext(packettest.Fragment(0, false, 1)), TCP: tcp}.Bytes(), 1000, ErrFragment},
		"authenticated":       {packettest.Frame{IPv6: ip6ext(packettest.Auth(16)), TCP: tcp}.Bytes(), 1000, ErrGSOMismatch},
		"MSS of 0":            {packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}.Bytes(), 0, ErrGSOSize},
		"MSS below 0":         {packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}.Bytes(), -5, ErrGSOSize},
		"TCP header cut off":  {packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes()[:50], 1000, ErrTruncated},
		"longest IPv4 packet": {tooLong4, 1000, nil},
		"IPv4 packet too long": {
			append(bytes.Clone(tooLong4), 0), 1000, ErrTooLong,
		},
		"longest IPv6 packet": {tooLong6, 1000, nil},
		"IPv6 packet too long": {
			append(bytes.Clone(tooLong6), 0), 1000, ErrTooLong,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var s Segmenter
			if err := s.Init(tt.frame, tt.mss); err != tt.want {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if tt.want != nil && s.Left() != 0 {
				t.Errorf("%d segments of what was refused", s.Left())
			}
		})
	}
}

// FuzzSegment: the segments of a frame join to the frame again, and all checksums are
// right if the frame's partial one was.
func FuzzSegment(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(1))
		f.Add(s, uint16(13))
	}
	fuzzloop.Fuzz(f, func(t *testing.T, frame []byte, mss uint16) {
		h, err := Parse(frame, len(frame))
		if err == nil {
			WritePseudo(frame, h, len(frame))
		}
		var s Segmenter
		if s.Init(frame, int(mss)) != nil {
			return
		}
		want := frame[h.End:]
		if n := max(1, (len(want)+int(mss)-1)/int(mss)); s.Left() != n {
			t.Errorf("%d segments announced, want %d", s.Left(), n)
		}
		seq := binary.BigEndian.Uint32(frame[h.L4+tcpSeq:])
		var got []byte
		buf := make([]byte, s.MaxLen())
		for s.Left() > 0 {
			n, err := s.Next(buf)
			if err != nil {
				t.Fatal(err)
			}
			p, err := packettest.Verify(buf[:n])
			if err != nil && refusedByGopacket(frame, h) {
				return
			}
			if err != nil {
				t.Fatalf("segment %x: %v", buf[:n], err)
			}
			if p.Seq != seq || len(p.Payload) > int(mss) {
				t.Fatalf("segment with sequence number %d, %d bytes", p.Seq, len(p.Payload))
			}
			if !bytes.Equal(buf[:12], frame[:12]) {
				t.Fatal("addresses changed")
			}
			got = append(got, p.Payload...)
			seq += uint32(len(p.Payload))
		}
		if !bytes.Equal(got, want) {
			t.Errorf("put together: %x, want %x", got, want)
		}
	})
}

// refusedByGopacket reports whether gopacket refuses the headers of a frame, whose options are
// not this package's subject, even if the length in the IP header is right.
func refusedByGopacket(frame []byte, h Headers) bool {
	frame = bytes.Clone(frame)
	l3 := int(h.L3)
	if h.IPv == 4 {
		binary.BigEndian.PutUint16(frame[l3+2:], uint16(len(frame)-l3))
	} else {
		binary.BigEndian.PutUint16(frame[l3+4:], uint16(len(frame)-l3-40))
	}
	_, err := packettest.Decode(frame)
	return err != nil
}

func TestNothingAllocates(t *testing.T) {
	f := gsoFrames()["IPv4"]
	f.Payload = packettest.Pattern(9000)
	f.Partial = true
	frame := f.Bytes()
	bad := packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp}.Bytes()
	buf := make([]byte, 2000)
	pieces := [][]byte{frame[:100], frame[100:4000], frame[4000:]}
	_ = CompleteSCTP(34, frame) // the kind of CPU is found out once
	n := testing.AllocsPerRun(100, func() {
		h, err := Parse(frame, len(frame))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := PlanTx(TxMeta{GSOType: netif.GSOTCPv4, GSOSize: 1448}, h, len(frame)); err != nil {
			t.Fatal(err)
		}
		v := tap.VnetHdr{GSOType: tap.VnetGSOTCPv4, GSOSize: 1448}
		if _, err := PlanRx(v, h, len(frame), bare); err != nil {
			t.Fatal(err)
		}
		WritePseudo(frame, h, len(frame))
		var s Segmenter
		if err := s.Init(frame, 1448); err != nil {
			t.Fatal(err)
		}
		for s.Left() > 0 {
			if _, err := s.Next(buf); err != nil {
				t.Fatal(err)
			}
		}
		if Complete(34, 16, frame) != nil || Complete(34, 16, pieces...) != nil || CompleteSCTP(34, pieces...) != nil {
			t.Fatal("not completed")
		}
		h, _ = Parse(bad, len(bad))
		_, err = PlanTx(TxMeta{CsumBlank: true}, h, len(bad))
		if e, ok := err.(Error); !ok || e != ErrFragment {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSegment(b *testing.B) {
	for _, bb := range []struct{ payload, mss int }{{65160, 1448}, {2896, 1448}, {65160, 8948}} {
		b.Run(fmt.Sprintf("%d-by-%d", bb.payload, bb.mss), func(b *testing.B) {
			f := gsoFrames()["IPv4"]
			f.Payload = packettest.Pattern(bb.payload)
			f.Partial = true
			frame := f.Bytes()
			buf := make([]byte, 9100)
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				var s Segmenter
				if err := s.Init(frame, bb.mss); err != nil {
					b.Fatal(err)
				}
				for s.Left() > 0 {
					if _, err := s.Next(buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

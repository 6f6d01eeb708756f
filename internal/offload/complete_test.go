// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
)

func TestComplete(t *testing.T) {
	data := packettest.Pattern(333)
	tests := map[string]struct {
		frame      packettest.Frame
		start, off uint16
	}{
		"TCP over IPv4":        {packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}, 34, 16},
		"TCP over IPv6":        {packettest.Frame{IPv6: ip6, TCP: tcp, Payload: data}, 54, 16},
		"UDP over IPv4":        {packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, 34, 6},
		"UDP without payload":  {packettest.Frame{IPv6: ip6, UDP: udp}, 54, 6},
		"behind tags":          {packettest.Frame{Tags: qTags, IPv4: ip4, TCP: tcp, Payload: data}, 42, 16},
		"extension headers":    {packettest.Frame{IPv6: ip6ext(packettest.Options(0, 8)), TCP: tcp}, 62, 16},
		"padded to 60 bytes":   {packettest.Frame{IPv4: ip4, UDP: udp, Payload: data[:3], PadTo: 60}, 34, 6},
		"UDP checksum of zero": {packettest.Frame{IPv4: ip4, UDP: udp, Payload: []byte{0xdf, 0x60}}, 34, 6},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := tt.frame.Bytes()
			tt.frame.Partial = true
			got := tt.frame.Bytes()
			if bytes.Equal(got, want) {
				t.Fatal("the checksum is not partial")
			}
			if err := Complete(tt.start, tt.off, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
			if _, err := packettest.Verify(got); err != nil {
				t.Errorf("does not verify: %v", err)
			}
			if name == "UDP checksum of zero" && (got[40] != 0xff || got[41] != 0xff) {
				t.Errorf("checksum is %x, want ffff", got[40:42])
			}
		})
	}
}

func TestCompleteInPiecesIsCompleteInOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frame := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "frame")
		start := rapid.Uint16Range(0, 310).Draw(t, "start")
		off := rapid.Uint16Range(0, 310).Draw(t, "offset")
		sctp := rapid.Bool().Draw(t, "SCTP")
		finish := func(frame ...[]byte) error {
			if sctp {
				return CompleteSCTP(start, frame...)
			}
			return Complete(start, off, frame...)
		}
		whole, cutUp, before := bytes.Clone(frame), bytes.Clone(frame), bytes.Clone(frame)
		err, perr := finish(whole), finish(cut(t, cutUp)...)
		need := int(start) + int(off) + 2
		if sctp {
			need = int(start) + 12
		}
		if fits := need <= len(frame); (err == nil) != fits || err != perr {
			t.Fatalf("errors %v and %v, fits: %v", err, perr, fits)
		}
		if !bytes.Equal(whole, cutUp) {
			t.Fatalf("whole  %x\npieces %x", whole, cutUp)
		}
		if err != nil && !bytes.Equal(whole, before) {
			t.Fatal("failed and changed the frame")
		}
	})
}

func TestCompleteBeyondTheFrame(t *testing.T) {
	frame := make([]byte, 60)
	for _, at := range [][2]uint16{{59, 0}, {34, 25}, {60, 0}, {0xffff, 0xffff}, {0, 59}, {61, 0}} {
		if err := Complete(at[0], at[1], frame); err != ErrCsumRange {
			t.Errorf("at %d+%d: error %v, want %v", at[0], at[1], err, ErrCsumRange)
		}
	}
	if err := Complete(0, 0); err != ErrCsumRange {
		t.Errorf("of nothing: error %v, want %v", err, ErrCsumRange)
	}
	if err := CompleteSCTP(49, frame); err != ErrCsumRange {
		t.Errorf("SCTP header cut off: error %v, want %v", err, ErrCsumRange)
	}
}

func TestCompleteSCTP(t *testing.T) {
	frame := packettest.Frame{IPv4: ip4, SCTP: &packettest.SCTP{Tag: 5}, Payload: packettest.Pattern(52)}.Bytes()
	want := bytes.Clone(frame)
	copy(frame[34+8:], "junk")
	if err := CompleteSCTP(34, frame); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(frame, want) {
		t.Errorf("got  %x\nwant %x", frame, want)
	}
}

func TestWritePseudo(t *testing.T) {
	for name, f := range map[string]packettest.Frame{
		"TCP over IPv4": {IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(40000)},
		"TCP over IPv6": {IPv6: ip6, TCP: tcp, Payload: packettest.Pattern(65000)},
		"UDP over IPv4": {Tags: qTag, IPv4: ip4, UDP: udp, Payload: packettest.Pattern(9)},
		"UDP over IPv6": {IPv6: ip6ext(packettest.Options(60, 8)), UDP: udp},
	} {
		t.Run(name, func(t *testing.T) {
			got := f.Bytes()
			f.Partial = true
			want := f.Bytes()
			h, err := Parse(got, len(got))
			if err != nil {
				t.Fatal(err)
			}
			// Only the headers are there; the rest is in other pages.
			WritePseudo(got[:h.End], h, len(got))
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got[:h.End], want[:h.End])
			}
		})
	}
}

func TestWritePseudoOfOtherPackets(t *testing.T) {
	for _, f := range []packettest.Frame{
		{EtherType: packettest.TypeARP, Payload: make([]byte, 28)},
		{IPv4: &packettest.IPv4{MF: true}, TCP: tcp},
		{IPv4: ip4, SCTP: &packettest.SCTP{}},
	} {
		got := f.Bytes()
		h, err := Parse(got, len(got))
		if err != nil {
			t.Fatal(err)
		}
		WritePseudo(got, h, len(got))
		if want := f.Bytes(); !bytes.Equal(got, want) {
			t.Errorf("got  %x\nwant %x", got, want)
		}
	}
}

func BenchmarkComplete(b *testing.B) {
	for name, f := range map[string]packettest.Frame{
		"tcp1460": {IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(1460)},
		"udp64":   {IPv4: ip4, UDP: udp, Payload: packettest.Pattern(22)},
	} {
		frame := f.Bytes()
		h, err := Parse(frame, len(frame))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if err := Complete(h.L4, h.csumOffset(), frame); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

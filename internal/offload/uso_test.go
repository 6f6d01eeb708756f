// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

func TestPlanUSO(t *testing.T) {
	data := packettest.Pattern(3000)
	for _, tt := range []struct {
		name  string
		frame packettest.Frame
		size  uint16
		want  tap.VnetHdr
		err   error
	}{
		{"IPv4", packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, 1400,
			tap.VnetHdr{Flags: 1, GSOType: 5, HdrLen: 42, GSOSize: 1400, CsumStart: 34, CsumOffset: 6}, nil},
		{"IPv6 behind a tag", packettest.Frame{Tags: qTag, IPv6: ip6, UDP: udp, Payload: data}, 8,
			tap.VnetHdr{Flags: 1, GSOType: 5, HdrLen: 66, GSOSize: 8, CsumStart: 58, CsumOffset: 6}, nil},
		{"one datagram", packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, 3000,
			tap.VnetHdr{Flags: 1, HdrLen: 42, CsumStart: 34, CsumOffset: 6}, nil},
		{"TCP", packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}, 1400, tap.VnetHdr{}, ErrGSOMismatch},
		{"not IP", packettest.Frame{EtherType: packettest.TypeARP, Payload: data}, 1400, tap.VnetHdr{}, ErrGSOMismatch},
		{"a fragment", packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp, Payload: data}, 1400, tap.VnetHdr{}, ErrFragment},
		{"authenticated", packettest.Frame{IPv6: ip6ext(packettest.Auth(16)), UDP: udp, Payload: data}, 1400, tap.VnetHdr{}, ErrGSOMismatch},
		{"size of 7", packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, 7, tap.VnetHdr{}, ErrGSOSize},
		{"size of 0xffff", packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, 0xffff, tap.VnetHdr{}, ErrGSOSize},
	} {
		b := tt.frame.Bytes()
		h, err := Parse(b, len(b))
		if err != nil {
			t.Fatal(err)
		}
		got, err := PlanUSO(h, len(b), tt.size)
		if err != tt.err {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := PlanUSO(Headers{L4: 34, End: 42, Proto: protoUDP}, 40, 1400); err != ErrTruncated {
		t.Errorf("a packet that ends early: error %v", err)
	}
}

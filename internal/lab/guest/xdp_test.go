// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/packettest"
)

// TestXDPPrograms runs each program on some frames.
func TestXDPPrograms(t *testing.T) {
	const redirect = 4
	udp := packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(100)}.Bytes()
	udp6 := packettest.Frame{IPv6: &packettest.IPv6{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(100)}.Bytes()
	junk := slices.Repeat([]byte{0xff}, 60)
	ping := slices.Clone(udp)
	ping[23], ping[34], ping[35] = 1, 8, 0 // ICMP, echo
	ping[36], ping[37] = 0xf9, 0x12        // a checksum whose update has a carry
	answer := slices.Concat(ping[6:12], ping[0:6], ping[12:26], ping[30:34], ping[26:30], ping[34:])
	answer[34], answer[36], answer[37] = 0, 0x01, 0x13
	for _, tt := range []struct {
		program string
		frame   []byte
		verdict uint32
		out     []byte // nil: unchanged
	}{
		{"pass", junk, xdpPass, nil},
		{"drop", ping, xdpDrop, nil},
		{"ip", udp, xdpPass, nil},
		{"ip", udp6, xdpDrop, nil},
		{"ip", junk, xdpDrop, nil},
		{"echo", ping, xdpTX, answer},
		{"echo", udp, xdpPass, nil},
		{"echo", ping[:41], xdpPass, nil},
		{"redirect", ping, redirect, nil},
		{"redirect", junk, xdpPass, nil},
	} {
		p, err := newXDP(tt.program, "lo")
		if err != nil {
			t.Skip(err) // without the right to
		}
		verdict, out, err := p.Test(tt.frame)
		if err != nil {
			t.Fatal(err)
		}
		if tt.out == nil {
			tt.out = tt.frame
		}
		if verdict != tt.verdict || !bytes.Equal(out, tt.out) {
			t.Errorf("%s: verdict %d, want %d; % x, want % x", tt.program, verdict, tt.verdict, out, tt.out)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := AttachXDP("lo", "mine", ""); err == nil {
		t.Error("a program that there is not is attached")
	}
	if _, err := AttachXDP("no-such-card", "pass", ""); err == nil {
		t.Error("a card that there is not has a program")
	}
}

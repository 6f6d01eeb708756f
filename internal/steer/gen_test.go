// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"net/netip"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// wanted computes the queue with the toeplitz package alone.
func wanted(c *Config, frame []byte) Choice {
	var want Choice
	var tuple toeplitz.Tuple
	if tuple.Extract(frame, c.Types) {
		want.Hashed, want.Type = true, tuple.Type()
		if c.Hasher != nil {
			want.Hash = c.Hasher.Hash(tuple.Input())
		}
	}
	want.Queue = c.Mapping.Queue(want.Hash)
	return want
}

// failer is implemented by *testing.T, *testing.B and *rapid.T.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hasher(t failer, key []byte) *toeplitz.Hasher {
	t.Helper()
	h, err := toeplitz.New(key)
	must(t, err)
	return h
}

// mapping makes a mapping with a table of queue numbers, or without one.
func mapping(t failer, queues int, entries ...uint32) toeplitz.Mapping {
	t.Helper()
	m := toeplitz.NewMapping(queues)
	must(t, m.SetSize(uint32(len(entries))))
	must(t, m.Set(0, entries))
	return m
}

// rssKey is the key of Microsoft's verification suite for RSS.
var rssKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// drawConfig draws a configuration for up to this many queues. Most have everything that
// hashing needs.
func drawConfig(t *rapid.T, queues int) *Config {
	c := &Config{Types: toeplitz.Types(rapid.SampledFrom([]uint32{15, 15, 15, 15, 5, 10, 1, 2, 4, 8, 3, 12, 0, 0xfffffff0, 0xffffffff}).Draw(t, "types"))}
	if rapid.IntRange(0, 9).Draw(t, "hasher") > 0 {
		n := rapid.SampledFrom([]int{toeplitz.MaxKey, toeplitz.MaxKey, 0, 1, 16, 39}).Draw(t, "key length")
		c.Hasher = hasher(t, rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "key"))
	}
	if rapid.IntRange(0, 9).Draw(t, "mapping") == 0 {
		return c
	}
	n := rapid.IntRange(1, queues).Draw(t, "queues")
	size := rapid.SampledFrom([]int{0, 0, 1, 2, 3, 64, 127, 128}).Draw(t, "size")
	entry := rapid.Uint32Range(0, uint32(n-1))
	c.Mapping = mapping(t, n, rapid.SliceOfN(entry, size, size).Draw(t, "entries")...)
	return c
}

func drawAddr(n int) *rapid.Generator[netip.Addr] {
	return rapid.Map(rapid.SliceOfN(rapid.Byte(), n, n), func(b []byte) netip.Addr {
		a, _ := netip.AddrFromSlice(b)
		return a
	})
}

// drawFrame draws a frame with all headers that matter here. Half of the frames have
// changed bytes, are cut, or are longer than their headers say. A bridge accepts the
// Ethernet header. The frame has at least 14 bytes and at most MTU 1500 and two tags.
func drawFrame(t *rapid.T) []byte {
	f := packettest.Frame{Payload: make([]byte, rapid.IntRange(0, 40).Draw(t, "payload"))}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 3}).Draw(t, "tags") {
		f.Tags = append(f.Tags, packettest.Tag{
			TPID: rapid.SampledFrom([]uint16{packettest.TypeVLAN, packettest.TypeQinQ, 0x9100}).Draw(t, "tpid"),
			TCI:  rapid.Uint16().Draw(t, "tci"),
		})
	}
	src, dst := rapid.Uint16().Draw(t, "src port"), rapid.Uint16().Draw(t, "dst port")
	switch rapid.IntRange(0, 7).Draw(t, "transport") {
	case 0:
		f.UDP = &packettest.UDP{SrcPort: src, DstPort: dst}
	case 1:
		f.ICMP = &packettest.ICMP{Type: 8}
	case 2: // unchanged
	default:
		f.TCP = &packettest.TCP{SrcPort: src, DstPort: dst}
	}
	switch rapid.IntRange(0, 8).Draw(t, "network") {
	case 0:
		f.EtherType = rapid.SampledFrom([]uint16{packettest.TypeARP, packettest.TypeIPv4, packettest.TypeIPv6, 46, 0}).Draw(t, "ethertype")
		f.Payload = rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "garbage")
	case 1, 2, 3, 4:
		f.IPv4 = &packettest.IPv4{
			Src: drawAddr(4).Draw(t, "src"), Dst: drawAddr(4).Draw(t, "dst"),
			DF: rapid.Bool().Draw(t, "df"), MF: rapid.IntRange(0, 4).Draw(t, "mf") == 0,
			Offset:  8 * rapid.SampledFrom([]int{0, 0, 0, 0, 1, 8191}).Draw(t, "fragment"),
			Options: make([]byte, rapid.SampledFrom([]int{0, 0, 0, 4, 40}).Draw(t, "options")),
		}
	default:
		f.IPv6 = &packettest.IPv6{Src: drawAddr(16).Draw(t, "src"), Dst: drawAddr(16).Draw(t, "dst")}
		for range rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 7, 8, 9}).Draw(t, "extensions") {
			kind := rapid.SampledFrom([]uint8{
				packettest.ProtoHopByHop, packettest.ProtoRouting, packettest.ProtoDest,
				packettest.ProtoHopByHop, packettest.ProtoRouting, packettest.ProtoDest,
				packettest.ProtoFragment, packettest.ProtoAuth,
			}).Draw(t, "kind")
			switch kind {
			case packettest.ProtoFragment:
				f.IPv6.Ext = append(f.IPv6.Ext, packettest.Fragment(8*rapid.IntRange(0, 2).Draw(t, "fragment"), rapid.Bool().Draw(t, "more"), 1))
			case packettest.ProtoAuth:
				f.IPv6.Ext = append(f.IPv6.Ext, packettest.Auth(24))
			default:
				f.IPv6.Ext = append(f.IPv6.Ext, packettest.Options(kind, 8*rapid.SampledFrom([]int{1, 1, 2, 17}).Draw(t, "length")))
			}
		}
	}
	b := f.Bytes()
	switch rapid.IntRange(0, 5).Draw(t, "damage") {
	case 0:
		b = b[:rapid.IntRange(14, max(14, min(len(b), 90))).Draw(t, "cut")]
	case 1:
		at := rapid.IntRange(12, len(b)-1).Draw(t, "bent at")
		b[at] ^= rapid.Byte().Draw(t, "bent")
	case 2:
		b = append(b, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "trailer")...)
	}
	return b[:min(len(b), 1500+14)]
}

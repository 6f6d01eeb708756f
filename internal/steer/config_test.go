// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// situations returns named frames and configurations. The tests of the program steer
// them, too.
func situations(t *testing.T) []situation {
	// The hashes are those of Microsoft's suite. Modulo 13 all differ, from each
	// other and from 0.
	const v4TCP, v4, v6TCP, v6 = 0x51ccc178, 0x323e8fc2, 0x40207d3d, 0x2cc18cd5
	entries := make([]uint32, 13)
	entries[v4TCP%13], entries[v4%13], entries[v6TCP%13], entries[v6%13] = 1, 2, 3, 2
	all := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: mapping(t, 4, entries...)}
	with := func(change func(*Config)) *Config {
		c := *all
		change(&c)
		return &c
	}
	tcp, udp := &packettest.TCP{SrcPort: 2794, DstPort: 1766}, &packettest.UDP{}
	four := &packettest.IPv4{Src: ip("66.9.149.187"), Dst: ip("161.142.100.80")}
	six := &packettest.IPv6{Src: ip("3ffe:2501:200:1fff::7"), Dst: ip("3ffe:2501:200:3::1")}
	tcp4 := packettest.Frame{IPv4: four, TCP: tcp}.Bytes()
	tcp6 := packettest.Frame{IPv6: six, TCP: tcp}.Bytes()
	return []situation{
		{"IPv4 TCP", all, tcp4, Choice{1, v4TCP, toeplitz.IPv4TCP, true}},
		{"IPv4 UDP", all, packettest.Frame{IPv4: four, UDP: udp}.Bytes(), Choice{2, v4, toeplitz.IPv4, true}},
		{"IPv6 TCP", all, tcp6, Choice{3, v6TCP, toeplitz.IPv6TCP, true}},
		{"IPv6 UDP", all, packettest.Frame{IPv6: six, UDP: udp}.Bytes(), Choice{2, v6, toeplitz.IPv6, true}},
		{"IPv4 fragment", all, packettest.Frame{IPv4: &packettest.IPv4{Src: four.Src, Dst: four.Dst, MF: true}, TCP: tcp}.Bytes(), Choice{2, v4, toeplitz.IPv4, true}},
		{"IPv4 options", all, packettest.Frame{IPv4: &packettest.IPv4{Src: four.Src, Dst: four.Dst, Options: make([]byte, 40)}, TCP: tcp}.Bytes(), Choice{1, v4TCP, toeplitz.IPv4TCP, true}},
		{"two tags", all, packettest.Frame{Tags: []packettest.Tag{{TPID: packettest.TypeQinQ}, {TCI: 3}}, IPv4: four, TCP: tcp}.Bytes(), Choice{1, v4TCP, toeplitz.IPv4TCP, true}},
		{"three tags", all, packettest.Frame{Tags: make([]packettest.Tag, 3), IPv4: four, TCP: tcp}.Bytes(), Choice{}},
		{"ARP", all, packettest.Frame{EtherType: packettest.TypeARP, Payload: make([]byte, 28)}.Bytes(), Choice{}},
		{"no hash goes where hash 0 goes", with(func(c *Config) { c.Mapping = mapping(t, 4, 3, 0, 0) }), packettest.Frame{EtherType: packettest.TypeARP}.Bytes(), Choice{Queue: 3}},
		{"only TCP types, not TCP", with(func(c *Config) { c.Types = 1<<toeplitz.IPv4TCP | 1<<toeplitz.IPv6TCP }), packettest.Frame{IPv4: four, UDP: udp}.Bytes(), Choice{}},
		{"only address types, TCP", with(func(c *Config) { c.Types = 1<<toeplitz.IPv4 | 1<<toeplitz.IPv6 }), tcp6, Choice{2, v6, toeplitz.IPv6, true}},
		{"no types", with(func(c *Config) { c.Types = 0 }), tcp4, Choice{}},
		{"empty key", with(func(c *Config) { c.Hasher = nil }), tcp4, Choice{0, 0, toeplitz.IPv4TCP, true}},
		{"no table", with(func(c *Config) { c.Mapping = toeplitz.NewMapping(3) }), tcp4, Choice{v4TCP % 3, v4TCP, toeplitz.IPv4TCP, true}},
		{"table of a size that is no power of two", with(func(c *Config) { c.Mapping = mapping(t, 200, 7, 100, 199) }), tcp4, Choice{[]int{7, 100, 199}[v4TCP%3], v4TCP, toeplitz.IPv4TCP, true}},
		{"nothing configured", new(Config), tcp4, Choice{}},
	}
}

type situation struct {
	name   string
	config *Config
	frame  []byte
	want   Choice
}

func TestChooseInEachSituation(t *testing.T) {
	for _, s := range situations(t) {
		t.Run(s.name, func(t *testing.T) {
			if diff := cmp.Diff(s.want, s.config.Choose(s.frame)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestChooseIsToeplitz(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t, 1<<16)
		frame := drawFrame(t)
		frame = frame[:rapid.IntRange(0, len(frame)).Draw(t, "cut to")]
		if diff := cmp.Diff(wanted(c, frame), c.Choose(frame)); diff != "" {
			t.Fatalf("%x (-want +got)\n%s", frame, diff)
		}
	})
}

func TestChooseAllocatesNothing(t *testing.T) {
	c := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: mapping(t, 4, 0, 1, 2, 3)}
	frames := [][]byte{
		packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}}.Bytes(),
		packettest.Frame{IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}}.Bytes(),
	}
	queues := make([]int, 2)
	if n := testing.AllocsPerRun(100, func() {
		for i, frame := range frames {
			queues[i] = c.Choose(frame).Queue
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func benchFrames() map[string][]byte {
	return map[string][]byte{
		"ipv4+tcp": packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}}.Bytes(),
		"ipv4+udp": packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}}.Bytes(),
		"ipv6+tcp": packettest.Frame{IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}}.Bytes(),
		"arp":      packettest.Frame{EtherType: packettest.TypeARP, PadTo: 60}.Bytes(),
	}
}

func BenchmarkChoose(b *testing.B) {
	c := &Config{Types: toeplitz.AllTypes, Hasher: hasher(b, rssKey), Mapping: mapping(b, 4, 0, 1, 2, 3)}
	for name, frame := range benchFrames() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c.Choose(frame)
			}
		})
	}
}

func ExampleConfig_Choose() {
	hasher, err := toeplitz.New(rssKey)
	if err != nil {
		panic(err)
	}
	mapping := toeplitz.NewMapping(4)
	config := &Config{Types: toeplitz.AllTypes, Hasher: hasher, Mapping: mapping}

	frame, err := hex.DecodeString("0200000000020200000000010800" +
		"450000280000400040060000" + "420995bb" + "a18e6450" +
		"0aea06e6" + "00000000000000005010ffff00000000")
	if err != nil {
		panic(err)
	}
	choice := config.Choose(frame)
	fmt.Printf("queue %d, %s %08x\n", choice.Queue, choice.Type, choice.Hash)
	// Output: queue 0, ipv4+tcp 51ccc178
}

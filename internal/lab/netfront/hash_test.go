// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
)

// msKey is the key of Microsoft's verification suite for receive side scaling.
const msKey = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"

func hashKey(t testing.TB) []byte {
	t.Helper()
	k, err := hex.DecodeString(msKey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// flow returns a frame of a flow.
func flow(proto, from, to string) []byte {
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	f := packettest.Frame{Payload: packettest.Pattern(20)}
	if a.Addr().Is4() {
		f.IPv4 = &packettest.IPv4{Src: a.Addr(), Dst: b.Addr()}
	} else {
		f.IPv6 = &packettest.IPv6{Src: a.Addr(), Dst: b.Addr()}
	}
	switch proto {
	case "tcp":
		f.TCP = &packettest.TCP{SrcPort: a.Port(), DstPort: b.Port(), Flags: packettest.ACK}
	case "udp":
		f.UDP = &packettest.UDP{SrcPort: a.Port(), DstPort: b.Port()}
	case "fragment":
		f.IPv4.MF = true
		f.TCP = &packettest.TCP{SrcPort: a.Port(), DstPort: b.Port(), Flags: packettest.ACK}
	}
	return f.Bytes()
}

// TestHashOfPackets checks Microsoft's test vectors.
func TestHashOfPackets(t *testing.T) {
	const (
		from4, to4 = "66.9.149.187:2794", "161.142.100.80:1766"
		from6, to6 = "[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766"
	)
	type result struct {
		Type uint8
		Hash uint32
		OK   bool
	}
	for _, c := range []struct {
		name  string
		frame []byte
		types uint32
		want  result
	}{
		{"TCP over IPv4", flow("tcp", from4, to4), 15, result{netif.HashIPv4TCP, 0x51ccc178, true}},
		{"TCP over IPv4, addresses only", flow("tcp", from4, to4), 5, result{netif.HashIPv4, 0x323e8fc2, true}},
		{"UDP over IPv4", flow("udp", from4, to4), 15, result{netif.HashIPv4, 0x323e8fc2, true}},
		{"UDP over IPv4, TCP only", flow("udp", from4, to4), 10, result{}},
		{"a fragment", flow("fragment", from4, to4), 15, result{netif.HashIPv4, 0x323e8fc2, true}},
		{"TCP over IPv6", flow("tcp", from6, to6), 15, result{netif.HashIPv6TCP, 0x40207d3d, true}},
		{"UDP over IPv6", flow("udp", from6, to6), 15, result{netif.HashIPv6, 0x2cc18cd5, true}},
		{"IPv6, but IPv4 only", flow("udp", from6, to6), 3, result{}},
		{"no types", flow("tcp", from4, to4), 0, result{}},
		{"no IP", packettest.Frame{EtherType: 0x88b5, Payload: make([]byte, 60)}.Bytes(), 15, result{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := Hash{Types: c.types, Key: hashKey(t)}
			hd := findHeaders(c.frame)
			var got result
			got.Type, got.Hash, got.OK = h.of(&hd, c.frame)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestJudgeOfHashes: the queue checks hashes from the backend's confirmation on.
func TestJudgeOfHashes(t *testing.T) {
	frame := flow("tcp", "66.9.149.187:2794", "161.142.100.80:1766")
	good := netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: netif.HashAlgorithmToeplitz, Value: 0x51ccc178}
	for _, c := range []struct {
		name    string
		hash    *Hash
		extras  []netif.ExtraInfo
		want    map[Rule]uint64
		astray  uint64
		earlier bool // the packet was published before the hash was confirmed
	}{
		{name: "the right hash", hash: &Hash{Types: 15, Key: hashKey(t)}, extras: []netif.ExtraInfo{netif.NewHash(good)}, want: map[Rule]uint64{}},
		{name: "the right hash, on another queue than the table says", hash: &Hash{Types: 15, Key: hashKey(t), Mapping: []uint32{1}},
			extras: []netif.ExtraInfo{netif.NewHash(good)}, want: map[Rule]uint64{}, astray: 1},
		{name: "another value", hash: &Hash{Types: 15, Key: hashKey(t)}, want: one(RuleHash),
			extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{Type: netif.HashIPv4TCP, Algorithm: netif.HashAlgorithmToeplitz, Value: 0x51ccc179})}},
		{name: "another type", hash: &Hash{Types: 15, Key: hashKey(t)}, want: one(RuleHash),
			extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{Type: netif.HashIPv4, Algorithm: netif.HashAlgorithmToeplitz, Value: 0x323e8fc2})}},
		{name: "none", hash: &Hash{Types: 15, Key: hashKey(t)}, want: one(RuleHash)},
		{name: "one, although hashing is off", hash: &Hash{}, extras: []netif.ExtraInfo{netif.NewHash(good)}, want: one(RuleHash)},
		{name: "none, before hashing was on", hash: &Hash{Types: 15, Key: hashKey(t)}, want: map[Rule]uint64{}, earlier: true},
		{name: "nothing is known", extras: []netif.ExtraInfo{netif.NewHash(good)}, want: map[Rule]uint64{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := strictConfig()
			cfg.Control = true
			q, b := newPair(t, cfg, false)
			q.rules.hash = true
			q.Post()
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			if !c.earlier {
				q.ExpectHash(c.hash, 2)
			}
			b.commitRx(b.putRx(frame, netif.RxDataValidated, c.extras...))
			if c.earlier {
				q.ExpectHash(c.hash, 2)
			}
			var p Packet
			if ok, err := q.Recv(&p); !ok || err != nil {
				t.Fatalf("%v, %v", ok, err)
			}
			if diff := cmp.Diff(c.want, broken(q)); diff != "" {
				t.Errorf("rules broken (-want +got):\n%s\n%v", diff, q.Violations())
			}
			if n := q.Stats().RxAstray; n != c.astray {
				t.Errorf("%d packets astray, want %d", n, c.astray)
			}
		})
	}
}

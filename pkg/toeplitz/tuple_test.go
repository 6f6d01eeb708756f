// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
)

const (
	onlyIPv4    = Types(1 << IPv4)
	onlyIPv4TCP = Types(1 << IPv4TCP)
	onlyIPv6    = Types(1 << IPv6)
	onlyIPv6TCP = Types(1 << IPv6TCP)
	onlyTCP     = onlyIPv4TCP | onlyIPv6TCP
	onlyIP      = onlyIPv4 | onlyIPv6
)

// Inputs of frames with the addresses and ports that packettest puts in.
const (
	v4    = "c0000201c0000202"
	v4tcp = v4 + "9c4001bb"
	v6    = "20010db800000000000000000000000120010db8000000000000000000000002"
	v6tcp = v6 + "9c4001bb"
)

// extract is the tuple as text: type and input, or "none".
func extract(frame []byte, enabled Types) string {
	var tuple Tuple
	if !tuple.Extract(frame, enabled) {
		return "none"
	}
	return tuple.Type().String() + " " + hex.EncodeToString(tuple.Input())
}

func TestTypeOfEachPacket(t *testing.T) {
	tcp, udp := &packettest.TCP{}, &packettest.UDP{}
	ext := func(e ...packettest.Ext) *packettest.IPv6 { return &packettest.IPv6{Ext: e} }
	opt := packettest.Options
	many := func(n int) *packettest.IPv6 {
		return ext(slices.Repeat([]packettest.Ext{opt(packettest.ProtoDest, 8)}, n)...)
	}
	gso := packettest.Frame{IPv4: &packettest.IPv4{}, TCP: tcp}.Bytes()
	gso[16], gso[17] = 0, 0 // total length

	for _, tt := range []struct {
		name    string
		frame   []byte
		all     string // with all types enabled
		onlyIP  string // with both address types
		onlyTCP string // with both TCP types
	}{
		{"IPv4 TCP", packettest.Frame{IPv4: &packettest.IPv4{}, TCP: tcp}.Bytes(), "ipv4+tcp " + v4tcp, "ipv4 " + v4, "ipv4+tcp " + v4tcp},
		{"IPv4 UDP", packettest.Frame{IPv4: &packettest.IPv4{}, UDP: udp}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},
		{"IPv4 SCTP", packettest.Frame{IPv4: &packettest.IPv4{}, SCTP: &packettest.SCTP{}}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},
		{"IPv4 ICMP", packettest.Frame{IPv4: &packettest.IPv4{}, ICMP: &packettest.ICMP{}}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},
		{"IPv4 with options", packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 40)}, TCP: tcp}.Bytes(), "ipv4+tcp " + v4tcp, "ipv4 " + v4, "ipv4+tcp " + v4tcp},
		{"IPv4 not to be fragmented", packettest.Frame{IPv4: &packettest.IPv4{DF: true}, TCP: tcp}.Bytes(), "ipv4+tcp " + v4tcp, "ipv4 " + v4, "ipv4+tcp " + v4tcp},
		{"IPv4 first fragment", packettest.Frame{IPv4: &packettest.IPv4{MF: true}, TCP: tcp}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},
		{"IPv4 last fragment", packettest.Frame{IPv4: &packettest.IPv4{Offset: 1480, Proto: packettest.ProtoTCP}, Payload: make([]byte, 100)}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},
		{"IPv4 GSO without a length", gso, "ipv4+tcp " + v4tcp, "ipv4 " + v4, "ipv4+tcp " + v4tcp},
		{"IPv4 tunnel", packettest.Frame{IPv4: &packettest.IPv4{Proto: 4}, Payload: packettest.Frame{IPv4: &packettest.IPv4{Src: netip.MustParseAddr("10.0.0.1")}, TCP: tcp}.Bytes()[14:]}.Bytes(), "ipv4 " + v4, "ipv4 " + v4, "none"},

		{"IPv6 TCP", packettest.Frame{IPv6: ext(), TCP: tcp}.Bytes(), "ipv6+tcp " + v6tcp, "ipv6 " + v6, "ipv6+tcp " + v6tcp},
		{"IPv6 UDP", packettest.Frame{IPv6: ext(), UDP: udp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 ICMP", packettest.Frame{IPv6: ext(), ICMP: &packettest.ICMP{}}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 nothing", packettest.Frame{IPv6: ext()}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 options", packettest.Frame{IPv6: ext(opt(packettest.ProtoHopByHop, 16), opt(packettest.ProtoRouting, 24), opt(packettest.ProtoDest, 8)), TCP: tcp}.Bytes(), "ipv6+tcp " + v6tcp, "ipv6 " + v6, "ipv6+tcp " + v6tcp},
		{"IPv6 options before UDP", packettest.Frame{IPv6: ext(opt(packettest.ProtoHopByHop, 16)), UDP: udp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 longest options", packettest.Frame{IPv6: ext(opt(packettest.ProtoDest, 2048)), TCP: tcp}.Bytes(), "ipv6+tcp " + v6tcp, "ipv6 " + v6, "ipv6+tcp " + v6tcp},
		{"IPv6 first fragment", packettest.Frame{IPv6: ext(packettest.Fragment(0, true, 1)), TCP: tcp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 last fragment", packettest.Frame{IPv6: ext(packettest.Fragment(1448, false, 1)), TCP: tcp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 only fragment", packettest.Frame{IPv6: ext(packettest.Fragment(0, false, 1)), TCP: tcp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 authenticated", packettest.Frame{IPv6: ext(packettest.Auth(24)), TCP: tcp}.Bytes(), "ipv6 " + v6, "ipv6 " + v6, "none"},
		{"IPv6 most headers", packettest.Frame{IPv6: many(maxExtensions), TCP: tcp}.Bytes(), "ipv6+tcp " + v6tcp, "ipv6 " + v6, "ipv6+tcp " + v6tcp},
		{"IPv6 too many headers", packettest.Frame{IPv6: many(maxExtensions + 1), TCP: tcp}.Bytes(), "none", "ipv6 " + v6, "none"},

		{"tagged", packettest.Frame{Tags: []packettest.Tag{{TCI: 5}}, IPv4: &packettest.IPv4{}, TCP: tcp}.Bytes(), "ipv4+tcp " + v4tcp, "ipv4 " + v4, "ipv4+tcp " + v4tcp},
		{"tagged twice", packettest.Frame{Tags: []packettest.Tag{{TPID: packettest.TypeQinQ}, {TCI: 5}}, IPv6: ext(), TCP: tcp}.Bytes(), "ipv6+tcp " + v6tcp, "ipv6 " + v6, "ipv6+tcp " + v6tcp},
		{"tagged thrice", packettest.Frame{Tags: make([]packettest.Tag, 3), IPv4: &packettest.IPv4{}, TCP: tcp}.Bytes(), "none", "none", "none"},

		{"ARP", packettest.Frame{EtherType: packettest.TypeARP, Payload: make([]byte, 46)}.Bytes(), "none", "none", "none"},
		{"802.3 length", packettest.Frame{EtherType: 46, Payload: make([]byte, 46)}.Bytes(), "none", "none", "none"},
		{"IPv4 in an IPv6 frame", packettest.Frame{EtherType: packettest.TypeIPv6, Payload: gso[14:]}.Bytes(), "none", "none", "none"},
		{"IPv4 header too short", packettest.Frame{EtherType: packettest.TypeIPv4, Payload: append([]byte{0x44}, gso[15:]...)}.Bytes(), "none", "none", "none"},
		{"empty", nil, "none", "none", "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := []string{extract(tt.frame, AllTypes), extract(tt.frame, onlyIP), extract(tt.frame, onlyTCP), extract(tt.frame, 0)}
			want := []string{tt.all, tt.onlyIP, tt.onlyTCP, "none"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("all types, only addresses, only TCP, none (-want +got)\n%s", diff)
			}
		})
	}
}

// TestFamiliesAreApart: a type does nothing for the other family.
func TestFamiliesAreApart(t *testing.T) {
	four := packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}}.Bytes()
	six := packettest.Frame{IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}}.Bytes()
	if got := extract(four, onlyIPv6|onlyIPv6TCP); got != "none" {
		t.Errorf("IPv4 with the types of IPv6: %s", got)
	}
	if got := extract(six, onlyIPv4|onlyIPv4TCP); got != "none" {
		t.Errorf("IPv6 with the types of IPv4: %s", got)
	}
	if got := extract(four, 0xfffffff0); got != "none" {
		t.Errorf("types that there are not: %s", got)
	}
}

// TestCutFrames cuts frames everywhere. They keep their tuple as long as all is
// there that makes it, and have none after.
func TestCutFrames(t *testing.T) {
	for _, tt := range []struct {
		name          string
		frame         []byte
		l4            int // where the ports start
		addressesFrom int // the shortest frame that has an address hash
		want, address string
	}{
		{"IPv4", packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 8)}, TCP: &packettest.TCP{}}.Bytes(), 42, 42, "ipv4+tcp " + v4tcp, "ipv4 " + v4},
		{"IPv6", packettest.Frame{Tags: make([]packettest.Tag, 1), IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}}, TCP: &packettest.TCP{}}.Bytes(), 74, 58, "ipv6+tcp " + v6tcp, "ipv6 " + v6},
	} {
		for n := range len(tt.frame) + 1 {
			want, address := "none", "none"
			if n >= tt.l4+4 {
				want = tt.want
			}
			if n >= tt.addressesFrom {
				address = tt.address
			}
			if got := extract(tt.frame[:n:n], AllTypes); got != want {
				t.Errorf("%s cut to %d bytes: %s, want %s", tt.name, n, got, want)
			}
			if got := extract(tt.frame[:n:n], onlyIP); got != address {
				t.Errorf("%s cut to %d bytes, addresses: %s, want %s", tt.name, n, got, address)
			}
		}
	}
}

func TestTupleForgetsTheFrameBefore(t *testing.T) {
	var tuple Tuple
	if len(tuple.Input()) != 0 {
		t.Error("a new tuple has an input")
	}
	frame := packettest.Frame{IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}}.Bytes()
	if !tuple.Extract(frame, AllTypes) || tuple.Extract(frame[:20], AllTypes) {
		t.Fatal("extract")
	}
	if n := len(tuple.Input()); n != 0 {
		t.Errorf("%d bytes of input are left after a frame without a hash", n)
	}
	if !tuple.Extract(frame, AllTypes) {
		t.Fatal("extract")
	}
	clear(frame)
	if got := hex.EncodeToString(tuple.Input()); got != v6tcp {
		t.Errorf("the input changed with the frame: %s", got)
	}
}

// TestMicrosoftVectorsAsFrames goes the whole way.
func TestMicrosoftVectorsAsFrames(t *testing.T) {
	h := hasher(t, rssKey, haveAssembly)
	for _, v := range rssVectors {
		src, dst := netip.MustParseAddrPort(v.src), netip.MustParseAddrPort(v.dst)
		frame := packettest.Frame{TCP: &packettest.TCP{SrcPort: src.Port(), DstPort: dst.Port()}}
		if src.Addr().Is4() {
			frame.IPv4 = &packettest.IPv4{Src: src.Addr(), Dst: dst.Addr()}
		} else {
			frame.IPv6 = &packettest.IPv6{Src: src.Addr(), Dst: dst.Addr()}
		}
		for types, want := range map[Types]uint32{AllTypes: v.tcp, onlyTCP: v.tcp, onlyIP: v.addresses} {
			var tuple Tuple
			if !tuple.Extract(frame.Bytes(), types) {
				t.Fatalf("%s to %s: no hash", src, dst)
			}
			if got := h.Hash(tuple.Input()); got != want {
				t.Errorf("%s to %s as %s: %08x, want %08x", src, dst, tuple.Type(), got, want)
			}
		}
	}
}

// TestTupleIsWhatTheFrameWasMadeOf builds frames with everything that is skipped.
func TestTupleIsWhatTheFrameWasMadeOf(t *testing.T) {
	address := func(n int) *rapid.Generator[netip.Addr] {
		return rapid.Map(rapid.SliceOfN(rapid.Byte(), n, n), func(b []byte) netip.Addr {
			a, _ := netip.AddrFromSlice(b)
			return a
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		f := packettest.Frame{
			Tags:    make([]packettest.Tag, rapid.IntRange(0, maxVLANTags).Draw(t, "tags")),
			Payload: make([]byte, rapid.IntRange(0, 100).Draw(t, "payload")),
		}
		isTCP := rapid.Bool().Draw(t, "tcp")
		var ports []byte
		src := rapid.Uint16Range(1, 65535).Draw(t, "src port")
		dst := rapid.Uint16Range(1, 65535).Draw(t, "dst port")
		if isTCP {
			f.TCP = &packettest.TCP{SrcPort: src, DstPort: dst}
			ports = []byte{byte(src >> 8), byte(src), byte(dst >> 8), byte(dst)}
		} else {
			f.UDP = &packettest.UDP{SrcPort: src, DstPort: dst}
		}
		var addresses []byte
		var typ Type
		fragment := false
		if rapid.Bool().Draw(t, "IPv4") {
			ip := &packettest.IPv4{
				Src: address(4).Draw(t, "src"), Dst: address(4).Draw(t, "dst"),
				Options: make([]byte, rapid.IntRange(0, 40).Draw(t, "options")),
				DF:      rapid.Bool().Draw(t, "df"),
				MF:      rapid.Bool().Draw(t, "mf"),
				Offset:  8 * rapid.SampledFrom([]int{0, 0, 0, 1, 8191}).Draw(t, "offset"),
			}
			fragment = ip.MF || ip.Offset != 0
			f.IPv4, typ = ip, IPv4
			addresses = append(ip.Src.AsSlice(), ip.Dst.AsSlice()...)
		} else {
			ip := &packettest.IPv6{Src: address(16).Draw(t, "src"), Dst: address(16).Draw(t, "dst")}
			for range rapid.IntRange(0, 4).Draw(t, "extensions") {
				kind := rapid.SampledFrom([]uint8{packettest.ProtoHopByHop, packettest.ProtoRouting, packettest.ProtoDest, packettest.ProtoFragment}).Draw(t, "kind")
				if kind == packettest.ProtoFragment {
					fragment = true
					ip.Ext = append(ip.Ext, packettest.Fragment(8*rapid.IntRange(0, 100).Draw(t, "offset"), rapid.Bool().Draw(t, "more"), 1))
					continue
				}
				ip.Ext = append(ip.Ext, packettest.Options(kind, 8*rapid.IntRange(1, 20).Draw(t, "length")))
			}
			f.IPv6, typ = ip, IPv6
			addresses = append(ip.Src.AsSlice(), ip.Dst.AsSlice()...)
		}
		enabled := Types(rapid.Uint32Range(0, 15).Draw(t, "enabled"))

		want := "none"
		switch tcpType := typ + 1; {
		case isTCP && !fragment && enabled.Has(tcpType):
			want = tcpType.String() + " " + hex.EncodeToString(append(addresses, ports...))
		case enabled.Has(typ):
			want = typ.String() + " " + hex.EncodeToString(addresses)
		}
		if got := extract(f.Bytes(), enabled); got != want {
			t.Fatalf("types %04b: %s, want %s", enabled, got, want)
		}
	})
}

func TestTypeNames(t *testing.T) {
	var names []string
	for typ := range Type(5) {
		names = append(names, typ.String())
	}
	if got, want := strings.Join(names, " "), "ipv4 ipv4+tcp ipv6 ipv6+tcp unknown(4)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if AllTypes != 15 {
		t.Errorf("all types are %#x, want 0xf", uint32(AllTypes))
	}
}

func TestExtractAllocatesNothing(t *testing.T) {
	frame := packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}}, TCP: &packettest.TCP{}}.Bytes()
	h := hasher(t, rssKey, haveAssembly)
	m := NewMapping(4)
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		var tuple Tuple
		if tuple.Extract(frame, AllTypes) {
			sum += m.Queue(h.Hash(tuple.Input()))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzTuple has the frame end where memory does: reading beyond is a crash.
func FuzzTuple(f *testing.F) {
	f.Add(packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 4)}, TCP: &packettest.TCP{}}.Bytes(), uint32(15))
	f.Add(packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}}, TCP: &packettest.TCP{}}.Bytes(), uint32(15))
	f.Add(packettest.Frame{Tags: make([]packettest.Tag, 2), IPv4: &packettest.IPv4{MF: true}, UDP: &packettest.UDP{}}.Bytes(), uint32(1))
	f.Add(packettest.Frame{EtherType: packettest.TypeARP}.Bytes(), uint32(3))
	const room = 1 << 16
	mem, err := unix.Mmap(-1, 0, room+unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		f.Fatal(err)
	}
	if err := unix.Mprotect(mem[room:], unix.PROT_NONE); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			f.Error(err)
		}
	})
	h := hasher(f, rssKey, haveAssembly)
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte, enabled uint32) {
		if len(data) > room {
			return
		}
		frame := mem[room-len(data) : room : room]
		copy(frame, data)
		var tuple Tuple
		if !tuple.Extract(frame, Types(enabled)) {
			if len(tuple.Input()) != 0 {
				t.Fatal("no hash, but an input")
			}
			return
		}
		typ, in := tuple.Type(), tuple.Input()
		if typ > IPv6TCP || !Types(enabled).Has(typ) {
			t.Fatalf("%s of types %#x", typ, enabled)
		}
		if want := []int{8, 12, 32, 36}[typ]; len(in) != want {
			t.Fatalf("%s has %d bytes, want %d", typ, len(in), want)
		}
		addresses := len(in) &^ 7
		if !bytes.Contains(data, in[:addresses]) || !bytes.Contains(data, in[addresses:]) {
			t.Fatalf("%x is not from the frame", in)
		}
		if got, want := h.Hash(in), bitwise(rssKey, in); got != want {
			t.Fatalf("hash %08x, want %08x", got, want)
		}

		p, err := packettest.Decode(data)
		if err != nil || len(p.Tags) > maxVLANTags {
			return // stricter than it takes to hash
		}
		want := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
		if typ == IPv4TCP || typ == IPv6TCP {
			if p.Proto != packettest.ProtoTCP || p.Fragment {
				t.Fatalf("%s of protocol %d, fragment: %v", typ, p.Proto, p.Fragment)
			}
			want = append(want, byte(p.SrcPort>>8), byte(p.SrcPort), byte(p.DstPort>>8), byte(p.DstPort))
		}
		if diff := cmp.Diff(want, in); diff != "" {
			t.Fatalf("input (-want +got)\n%s", diff)
		}
	})
}

func BenchmarkExtract(b *testing.B) {
	for name, frame := range map[string]packettest.Frame{
		"ipv4+tcp": {IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}},
		"ipv6+tcp": {IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}},
	} {
		b.Run(name, func(b *testing.B) {
			bytes := frame.Bytes()
			var tuple Tuple
			for b.Loop() {
				tuple.Extract(bytes, AllTypes)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// bitwise is the algorithm as netif.h describes it, and the reference here: a
// window that moves over the key bit by bit, and a byte of key that follows it in.
func bitwise(key, input []byte) (hash uint32) {
	var window uint64
	for i := range 8 {
		if i < len(key) {
			window |= uint64(key[i]) << (56 - 8*i)
		}
	}
	for i, b := range input {
		for bit := range 8 {
			if b&(0x80>>bit) != 0 {
				hash ^= uint32(window >> 32)
			}
			window <<= 1
		}
		if i+8 < len(key) {
			window |= uint64(key[i+8])
		}
	}
	return hash
}

// implementations are those that this machine can run.
func implementations() map[string]bool {
	all := map[string]bool{"portable": false}
	if haveAssembly {
		all["assembly"] = true
	}
	return all
}

func hasher(t testing.TB, key []byte, assembly bool) *Hasher {
	t.Helper()
	h, err := newHasher(key, assembly)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// rssKey is the key of Microsoft's verification suite for RSS.
var rssKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// rssVectors is the suite itself. It lists the destination first; the input has
// the source first.
var rssVectors = []struct {
	dst, src       string
	addresses, tcp uint32
}{
	{"161.142.100.80:1766", "66.9.149.187:2794", 0x323e8fc2, 0x51ccc178},
	{"65.69.140.83:4739", "199.92.111.2:14230", 0xd718262a, 0xc626b0ea},
	{"12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0a5de, 0x5c2b394a},
	{"209.142.163.6:2217", "38.27.205.30:48228", 0x82989176, 0xafc7327f},
	{"202.188.127.2:1303", "153.39.163.191:44251", 0x5d1809c5, 0x10e828a2},
	{"[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc18cd5, 0x40207d3d},
	{"[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c461c, 0xdde51bbf},
	{"[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", 0x4b61e985, 0x02d1feef},
}

// input puts addresses, and ports if wanted, in the order given.
func input(first, second netip.AddrPort, ports bool) []byte {
	in := append(first.Addr().AsSlice(), second.Addr().AsSlice()...)
	if ports {
		for _, p := range []netip.AddrPort{first, second} {
			in = append(in, byte(p.Port()>>8), byte(p.Port()))
		}
	}
	return in
}

func TestMicrosoftVectors(t *testing.T) {
	for name, assembly := range implementations() {
		h := hasher(t, rssKey, assembly)
		for _, v := range rssVectors {
			src, dst := netip.MustParseAddrPort(v.src), netip.MustParseAddrPort(v.dst)
			if got := h.Hash(input(src, dst, false)); got != v.addresses {
				t.Errorf("%s: %s to %s: %08x, want %08x", name, src, dst, got, v.addresses)
			}
			if got := h.Hash(input(src, dst, true)); got != v.tcp {
				t.Errorf("%s: %s to %s with ports: %08x, want %08x", name, src, dst, got, v.tcp)
			}
			if bitwise(rssKey, input(src, dst, true)) != v.tcp {
				t.Errorf("the reference itself is wrong for %s to %s", src, dst)
			}
		}
	}
}

// TestSwappedAddresses: the hashes that come of reading the suite's table the wrong
// way round.
func TestSwappedAddresses(t *testing.T) {
	v := rssVectors[5]
	src, dst := netip.MustParseAddrPort(v.src), netip.MustParseAddrPort(v.dst)
	for name, assembly := range implementations() {
		h := hasher(t, rssKey, assembly)
		if got := h.Hash(input(dst, src, false)); got != 0xbf3b2ab5 {
			t.Errorf("%s: swapped addresses: %08x, want bf3b2ab5", name, got)
		}
		in := append(input(dst, src, false), input(src, dst, true)[32:]...)
		if got := h.Hash(in); got != 0xd3dadb5d {
			t.Errorf("%s: swapped addresses, ports in place: %08x, want d3dadb5d", name, got)
		}
	}
}

func TestHashIsTheReference(t *testing.T) {
	for name, assembly := range implementations() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				key := rapid.SliceOfN(rapid.Byte(), 0, MaxKey).Draw(t, "key")
				in := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "input")
				h, err := newHasher(key, assembly)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := h.Hash(in), bitwise(key, in); got != want {
					t.Fatalf("%08x, want %08x", got, want)
				}
			})
		})
	}
}

// TestEveryBitAlone: each bit of each length of input, for many keys. With
// linearity this is the whole function.
func TestEveryBitAlone(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, assembly := range implementations() {
		for range 20 {
			key := make([]byte, random.IntN(MaxKey+1))
			for i := range key {
				key[i] = byte(random.Uint32())
			}
			h := hasher(t, key, assembly)
			for n := 1; n <= MaxKey+3; n++ {
				in := make([]byte, n)
				for bit := range n * 8 {
					in[bit/8] = 0x80 >> (bit % 8)
					if got, want := h.Hash(in), bitwise(key, in); got != want {
						t.Fatalf("%s: key %x, bit %d of %d bytes: %08x, want %08x", name, key, bit, n, got, want)
					}
					in[bit/8] = 0
				}
			}
		}
	}
}

func TestHashIsLinear(t *testing.T) {
	for name, assembly := range implementations() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				h, err := newHasher(rapid.SliceOfN(rapid.Byte(), 0, MaxKey).Draw(t, "key"), assembly)
				if err != nil {
					t.Fatal(err)
				}
				n := rapid.IntRange(0, MaxInput).Draw(t, "length")
				a := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "a")
				b := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "b")
				sum := make([]byte, n)
				for i := range sum {
					sum[i] = a[i] ^ b[i]
				}
				if h.Hash(sum) != h.Hash(a)^h.Hash(b) {
					t.Fatalf("H(a^b) = %08x, H(a)^H(b) = %08x", h.Hash(sum), h.Hash(a)^h.Hash(b))
				}
				if got := h.Hash(make([]byte, n)); got != 0 {
					t.Fatalf("H(0) = %08x", got)
				}
				if got, want := h.Hash(append(bytes.Clone(a), 0, 0, 0)), h.Hash(a); got != want {
					t.Fatalf("with zeros behind: %08x, want %08x", got, want)
				}
			})
		})
	}
}

func TestKeys(t *testing.T) {
	in := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for name, assembly := range implementations() {
		for _, key := range [][]byte{nil, {}, make([]byte, 3), make([]byte, MaxKey)} {
			if got := hasher(t, key, assembly).Hash(in); got != 0 {
				t.Errorf("%s: key of %d zeros: %08x, want 0", name, len(key), got)
			}
		}
		short := hasher(t, rssKey[:7], assembly)
		extended := [MaxKey]byte{}
		copy(extended[:], rssKey[:7])
		if short.Key() != extended {
			t.Errorf("%s: key %x, want %x", name, short.Key(), extended)
		}
		if got, want := short.Hash(in), hasher(t, extended[:], assembly).Hash(in); got != want {
			t.Errorf("%s: short key %08x, extended with zeros %08x", name, got, want)
		}
		if _, err := newHasher(make([]byte, MaxKey+1), assembly); !errors.Is(err, ErrKeySize) {
			t.Errorf("%s: key of %d bytes: %v, want ErrKeySize", name, MaxKey+1, err)
		}
	}
	key := bytes.Clone(rssKey)
	h, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	before := h.Hash(in)
	clear(key)
	if h.Hash(in) != before {
		t.Error("the hasher goes on with memory of the caller's")
	}
}

// TestHashStaysInsideTheInput has the input end where memory does.
func TestHashStaysInsideTheInput(t *testing.T) {
	page := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mprotect(mem[page:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for i := range page {
		mem[i] = byte(i*7 + 1)
	}
	for _, assembly := range implementations() {
		h := hasher(t, rssKey, assembly)
		for n := range MaxKey + 1 {
			in := mem[page-n : page]
			if got, want := h.Hash(in), bitwise(rssKey, in); got != want {
				t.Errorf("%d bytes: %08x, want %08x", n, got, want)
			}
		}
	}
}

func TestByteTableIsTheHash(t *testing.T) {
	for name, assembly := range implementations() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				h, err := newHasher(rapid.SliceOfN(rapid.Byte(), 0, MaxKey).Draw(t, "key"), assembly)
				if err != nil {
					t.Fatal(err)
				}
				in := rapid.SliceOfN(rapid.Byte(), 0, MaxInput).Draw(t, "input")
				table := h.ByteTable()
				sum := uint32(0)
				for i, b := range in {
					sum ^= table[i][b]
				}
				clear(table[0][:]) // it is the caller's
				if want := h.Hash(in); sum != want {
					t.Fatalf("%08x, want %08x", sum, want)
				}
			})
		})
	}
}

func TestHashAllocatesNothing(t *testing.T) {
	in := make([]byte, MaxInput)
	for name, assembly := range implementations() {
		h := hasher(t, rssKey, assembly)
		if n := testing.AllocsPerRun(100, func() { h.Hash(in) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzHash(f *testing.F) {
	f.Add(rssKey, []byte{66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6})
	f.Add([]byte{}, []byte{1})
	f.Add([]byte{0x80}, make([]byte, 41))
	fuzzloop.Fuzz(f, func(t *testing.T, key, in []byte) {
		for name, assembly := range implementations() {
			h, err := newHasher(key, assembly)
			if err != nil {
				if len(key) <= MaxKey {
					t.Fatal(err)
				}
				return
			}
			if got, want := h.Hash(in), bitwise(key, in); got != want {
				t.Fatalf("%s: key %x input %x: %08x, want %08x", name, key, in, got, want)
			}
		}
	})
}

// BenchmarkHash hashes ever other inputs, as traffic does: with always the same, the
// processor would learn the bits of it, which flatters the reference.
func BenchmarkHash(b *testing.B) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{12, 36} {
		var inputs [1024][]byte
		for i := range inputs {
			inputs[i] = make([]byte, n)
			for j := range inputs[i] {
				inputs[i][j] = byte(random.Uint32())
			}
		}
		for name, assembly := range implementations() {
			b.Run(fmt.Sprintf("%s/%dB", name, n), func(b *testing.B) {
				h := hasher(b, rssKey, assembly)
				for i := 0; b.Loop(); i++ {
					h.Hash(inputs[i%len(inputs)])
				}
			})
		}
		b.Run(fmt.Sprintf("bitwise/%dB", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				bitwise(rssKey, inputs[i%len(inputs)])
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for name, assembly := range implementations() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				hasher(b, rssKey, assembly)
			}
		})
	}
}

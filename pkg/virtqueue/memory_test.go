// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestNewMemoryRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		regions []Region
		want    error
	}{
		{"no region", nil, nil},
		{"neighbours", []Region{{Addr: 0x2000, Size: 0x1000}, {Addr: 0x1000, Size: 0x1000}}, nil},
		{"the last byte of all", []Region{{Addr: math.MaxUint64, Size: 1}}, nil},
		{"no bytes", []Region{{Addr: 0x1000}}, ErrRegionSize},
		{"wraps", []Region{{Addr: math.MaxUint64, Size: 2}}, ErrRegionSize},
		{"less memory", []Region{{Size: 2, Mem: make([]byte, 1)}}, ErrRegionMem},
		{"overlap", []Region{{Addr: 0x1fff, Size: 1}, {Addr: 0x1000, Size: 0x1000}}, ErrRegionOverlap},
		{"the same twice", []Region{{Addr: 1, Size: 1}, {Addr: 1, Size: 1}}, ErrRegionOverlap},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := NewMemory(tc.regions...); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestFindAgreesWithSearch compares find to a plain search, for any hint.
func TestFindAgreesWithSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var regions []Region
		at := uint64(0)
		for range rapid.IntRange(0, 8).Draw(t, "regions") {
			at += rapid.Uint64Range(0, 3).Draw(t, "gap")
			n := rapid.Uint64Range(1, 4).Draw(t, "size")
			regions = append(regions, Region{Addr: at, Size: n, Mem: make([]byte, n)})
			at += n
		}
		m, err := NewMemory(regions...)
		if err != nil {
			t.Fatal(err)
		}
		addr := rapid.Uint64Range(0, 60).Draw(t, "addr")
		want := -1
		for i, r := range regions {
			if addr >= r.Addr && addr < r.Addr+r.Size {
				want = i
			}
		}
		if got := m.find(addr, rapid.IntRange(-1, 9).Draw(t, "hint")); got != want {
			t.Fatalf("find(%d) = %d, want %d in %v", addr, got, want, regions)
		}
		n := rapid.Uint64Range(0, 6).Draw(t, "n")
		whole := want >= 0 && addr+n <= regions[want].Addr+regions[want].Size
		if b := m.Bytes(addr, n); (b != nil) != whole || whole && uint64(len(b)) != n {
			t.Fatalf("Bytes(%d, %d) = %v", addr, n, b)
		}
	})
}

func TestBytesOfUnmappedRegion(t *testing.T) {
	m, err := NewMemory(Region{Addr: 0x1000, Size: 0x1000})
	if err != nil {
		t.Fatal(err)
	}
	if b := m.Bytes(0x1000, 1); b != nil {
		t.Errorf("got %d bytes", len(b))
	}
}

func TestLog(t *testing.T) {
	if _, err := NewLog(make([]byte, 12)); !errors.Is(err, ErrLog) {
		t.Errorf("half a word: %v", err)
	}
	mem := make([]byte, 8) // 64 pages
	l, err := NewLog(mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		addr, n uint64
		ok      bool
	}{
		{0x0fff, 2, true}, {0x3000, 0, true}, {0x3f000, 0x1000, true}, {0x40000, 1, false}, {math.MaxUint64, 1, false},
	} {
		if ok := l.Mark(tc.addr, tc.n); ok != tc.ok {
			t.Errorf("Mark(%#x, %d) = %t", tc.addr, tc.n, ok)
		}
	}
	if want := [8]byte{0: 3, 7: 0x80}; [8]byte(mem) != want {
		t.Errorf("log %x, want %x", mem, want)
	}
}

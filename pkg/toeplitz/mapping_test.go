// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestWithoutATableTheQueueIsModulo(t *testing.T) {
	for _, queues := range []int{1, 2, 3, 8, 65536} {
		m := NewMapping(queues)
		for _, hash := range []uint32{0, 1, 2, 3, 0x51ccc178, math.MaxUint32} {
			if got, want := m.Queue(hash), int(hash%uint32(queues)); got != want {
				t.Errorf("hash %#x of %d queues: %d, want %d", hash, queues, got, want)
			}
		}
		if m.Queues() != queues || m.Table() != nil {
			t.Errorf("%d queues: %d, table %v", queues, m.Queues(), m.Table())
		}
	}
}

func TestNumbersOfQueuesAreBounded(t *testing.T) {
	for _, queues := range []int{-1, 0, 1} {
		m := NewMapping(queues)
		if got := m.Queue(math.MaxUint32); got != 0 || m.Queues() != 1 {
			t.Errorf("%d queues: hash goes to %d of %d", queues, got, m.Queues())
		}
	}
	if m := NewMapping(math.MaxInt); m.Queues() != 65536 {
		t.Errorf("%d queues", m.Queues())
	}
	var zero Mapping
	if got := zero.Queue(7); got != 0 || zero.Queues() != 1 {
		t.Errorf("the zero value: hash goes to %d of %d", got, zero.Queues())
	}
}

func TestMappingTable(t *testing.T) {
	m := NewMapping(4)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(m.SetSize(5)) // no power of two
	for hash := range uint32(20) {
		if q := m.Queue(hash); q != 0 {
			t.Fatalf("new table: hash %d goes to queue %d", hash, q)
		}
	}
	must(m.Set(0, []uint32{3, 2}))
	must(m.Set(2, []uint32{1, 0, 3}))
	must(m.Set(5, nil))
	must(m.Set(1, []uint32{}))
	want := []uint16{3, 2, 1, 0, 3}
	if diff := cmp.Diff(want, m.Table()); diff != "" {
		t.Fatalf("table (-want +got)\n%s", diff)
	}
	for _, hash := range []uint32{0, 4, 5, 0x51ccc178, math.MaxUint32} {
		if got := m.Queue(hash); got != int(want[hash%5]) {
			t.Errorf("hash %#x: queue %d, want %d", hash, got, want[hash%5])
		}
	}
	snapshot := m
	must(m.SetSize(5))
	if diff := cmp.Diff([]uint16{0, 0, 0, 0, 0}, m.Table()); diff != "" {
		t.Errorf("after setting the size again (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want, snapshot.Table()); diff != "" {
		t.Errorf("the copy changed (-want +got)\n%s", diff)
	}
	must(m.SetSize(0))
	if got := m.Queue(6); got != 2 {
		t.Errorf("without a table again: queue %d, want 2", got)
	}
}

// TestRefusedMappingsChangeNothing has the cases of XSA-270 among others.
func TestRefusedMappingsChangeNothing(t *testing.T) {
	full := make([]uint32, 1024) // what fits a page
	for _, tt := range []struct {
		name    string
		offset  uint32
		entries []uint32
		want    error
	}{
		{"one too many", 0, full[:129], ErrMappingRange},
		{"a page full", 0, full, ErrMappingRange},
		{"beyond by one", 127, full[:2], ErrMappingRange},
		{"at the end", 128, full[:1], ErrMappingRange},
		{"nothing, beyond the end", 129, nil, ErrMappingRange},
		{"the sum wraps to 0", math.MaxUint32, full[:1], ErrMappingRange},
		{"the sum wraps into the table", math.MaxUint32 - 3, full[:64], ErrMappingRange},
		{"the size in bytes wraps 16 bits", 0x4000, full[:1], ErrMappingRange},
		{"largest offset", math.MaxUint32, nil, ErrMappingRange},
		{"no such queue", 0, []uint32{0, 1, 2, 3}, ErrMappingQueue},
		{"no such queue by far", 5, []uint32{math.MaxUint32}, ErrMappingQueue},
		{"a queue only in 16 bits", 5, []uint32{0x10000}, ErrMappingQueue},
		{"the last of many", 0, append(slices.Repeat([]uint32{1}, 127), 3), ErrMappingQueue},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMapping(3)
			if err := m.SetSize(MaxMapping); err != nil {
				t.Fatal(err)
			}
			if err := m.Set(0, slices.Repeat([]uint32{2, 0, 1, 2}, 32)); err != nil {
				t.Fatal(err)
			}
			before := m
			if err := m.Set(tt.offset, tt.entries); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if m != before {
				t.Error("the table changed")
			}
			if err := m.SetSize(MaxMapping + 1); !errors.Is(err, ErrMappingSize) {
				t.Errorf("129 entries: %v", err)
			}
			if err := m.SetSize(math.MaxUint32); !errors.Is(err, ErrMappingSize) {
				t.Errorf("2^32-1 entries: %v", err)
			}
			if m != before {
				t.Error("the table changed with a size that is refused")
			}
		})
	}
	m := NewMapping(3)
	if err := m.Set(0, full[:1]); !errors.Is(err, ErrMappingRange) {
		t.Errorf("without a table: %v", err)
	}
	if err := m.Set(0, nil); err != nil {
		t.Errorf("nothing, without a table: %v", err)
	}
}

// TestMappingIsItsModel runs random messages against a plain slice.
func TestMappingIsItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		queues := rapid.IntRange(1, 9).Draw(t, "queues")
		m := NewMapping(queues)
		var model []uint16
		number := rapid.OneOf(rapid.Uint32Range(0, 140), rapid.Uint32Range(math.MaxUint32-140, math.MaxUint32), rapid.Uint32())
		for range rapid.IntRange(1, 20).Draw(t, "messages") {
			if rapid.Bool().Draw(t, "size") {
				n := number.Draw(t, "n")
				err := m.SetSize(n)
				if (err == nil) != (n <= 128) {
					t.Fatalf("size %d: %v", n, err)
				}
				if err == nil {
					model = make([]uint16, n)
				}
			} else {
				offset := number.Draw(t, "offset")
				entries := rapid.SliceOfN(rapid.Uint32Range(0, 9), 0, 150).Draw(t, "entries")
				ok := uint64(offset)+uint64(len(entries)) <= uint64(len(model))
				for _, e := range entries {
					ok = ok && e < uint32(queues)
				}
				err := m.Set(offset, entries)
				if (err == nil) != ok {
					t.Fatalf("%d entries at %d of %d: %v", len(entries), offset, len(model), err)
				}
				if ok {
					for i, e := range entries {
						model[int(offset)+i] = uint16(e)
					}
				}
			}
			if !slices.Equal(m.Table(), model) {
				t.Fatalf("table %v, want %v", m.Table(), model)
			}
			hash := rapid.Uint32().Draw(t, "hash")
			want := int(hash % uint32(queues))
			if len(model) > 0 {
				want = int(model[hash%uint32(len(model))])
			}
			if got := m.Queue(hash); got != want || got < 0 || got >= queues {
				t.Fatalf("hash %#x: queue %d, want %d", hash, got, want)
			}
		}
	})
}

func BenchmarkQueue(b *testing.B) {
	m := NewMapping(4)
	if err := m.SetSize(MaxMapping); err != nil {
		b.Fatal(err)
	}
	sum := 0
	for hash := uint32(0); b.Loop(); hash += 0x9e3779b9 {
		sum += m.Queue(hash)
	}
	if sum != 0 {
		b.Fatal("a table of zeros has other queues")
	}
}

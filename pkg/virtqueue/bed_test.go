// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	bedRing  = 0x10000 // guest address of the ring
	bedTable = 0x40000 // of a page for an indirect table
	bedData  = 0x50000 // of data
	bedSize  = 0x60000 // bytes of guest memory at bedBase
	bedBase  = 0x10000
	bedHole  = 0x1000000 // a region that is not mapped
)

// bed is guest memory: a region that is mapped, next to it another one, and one that is
// not.
type bed struct {
	mem    []byte
	memory *Memory
}

func newBed(t testing.TB) *bed {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, bedSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	const half = bedSize - 0x1000
	m, err := NewMemory(
		Region{Addr: bedHole, Size: 0x2000, Tag: 7},
		Region{Addr: bedBase, Size: half, Mem: mem[:half]},
		Region{Addr: bedBase + half, Size: 0x1000, Mem: mem[half:], Tag: 2},
	)
	if err != nil {
		t.Fatal(err)
	}
	return &bed{mem: mem, memory: m}
}

// at returns the memory from a guest address on.
func (b *bed) at(addr uint64) []byte { return b.mem[addr-bedBase:] }

type features struct{ eventIdx, indirect, inOrder bool }

var allFeatures = []features{
	{}, {eventIdx: true}, {indirect: true}, {inOrder: true},
	{true, true, false}, {true, true, true},
}

func (f features) String() string {
	s := "plain"
	for _, x := range []struct {
		on   bool
		name string
	}{{f.eventIdx, "+eventidx"}, {f.indirect, "+indirect"}, {f.inOrder, "+inorder"}} {
		if x.on {
			s += x.name
		}
	}
	return s
}

func (b *bed) config(size int, f features) Config {
	return Config{Size: size, Memory: b.memory, EventIdx: f.eventIdx, Indirect: f.indirect, InOrder: f.inOrder}
}

// split makes a split ring and both its ends.
func (b *bed) split(t testing.TB, size int, f features) (*SplitDriver, *Split, SplitRings) {
	t.Helper()
	r := SplitRingsIn(b.at(bedRing), size)
	d, err := NewSplitDriver(DriverConfig{Size: size, EventIdx: f.eventIdx, InOrder: f.inOrder}, r)
	if err != nil {
		t.Fatal(err)
	}
	return d, b.attachSplit(t, b.config(size, f), r), r
}

func (b *bed) attachSplit(t testing.TB, c Config, r SplitRings) *Split {
	t.Helper()
	q, err := NewSplit(c, r)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// reasonOf returns the reason of an error, ReasonNone of nil.
func reasonOf(t testing.TB, err error) Reason {
	t.Helper()
	if err == nil {
		return ReasonNone
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *Error", err)
	}
	return e.Reason
}

func read(n uint32) Buffer  { return Buffer{Addr: bedData, Len: n} }
func write(n uint32) Buffer { return Buffer{Addr: bedData, Len: n, Write: true} }

// added fails the test if a chain could not be added.
func added(t testing.TB) func(id uint16, ok bool) uint16 {
	return func(id uint16, ok bool) uint16 {
		t.Helper()
		if !ok {
			t.Fatal("the ring is full")
		}
		return id
	}
}

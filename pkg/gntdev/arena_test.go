// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestArena(t *testing.T) {
	page := os.Getpagesize()
	for _, make := range []func(int) (*Arena, error){NewArena, NewPopulatedArena} {
		for _, c := range []struct{ bytes, want int }{{1, page}, {page, page}, {page + 1, 2 * page}, {64 * page, 64 * page}} {
			a, err := make(c.bytes)
			if err != nil {
				t.Fatal(err)
			}
			mem := a.Bytes()
			if len(mem) != c.want {
				t.Errorf("an arena of %d bytes has %d, want %d", c.bytes, len(mem), c.want)
			}
			if a.Addr(0)%uintptr(page) != 0 {
				t.Errorf("the arena starts at %#x", a.Addr(0))
			}
			if got := a.Addr(len(mem)-1) - a.Addr(0); got != uintptr(len(mem)-1) {
				t.Errorf("the last byte is %d after the first", got)
			}
			for i, b := range mem {
				if b != 0 {
					t.Fatalf("byte %d is %d at the start", i, b)
				}
			}
			mem[len(mem)-1] = 1
			for range 2 {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
			if a.Bytes() != nil {
				t.Error("memory is left after Close")
			}
		}
	}
}

func TestArenaPopulated(t *testing.T) {
	for _, c := range []struct {
		name    string
		make    func(int) (*Arena, error)
		present bool
	}{{"NewArena", NewArena, false}, {"NewPopulatedArena", NewPopulatedArena, true}} {
		a, err := c.make(16 * os.Getpagesize())
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		here := make([]byte, 16)
		if err := mincore(a.Bytes(), here); err != nil {
			t.Skipf("mincore: %v", err)
		}
		for i, b := range here {
			if b&1 == 1 != c.present {
				t.Errorf("%s: page %d present: %v", c.name, i, b&1 == 1)
			}
		}
	}
}

func TestArenaSize(t *testing.T) {
	for _, n := range []int{-1, 0, maxArena + 1} {
		if _, err := NewArena(n); !errors.Is(err, unix.EINVAL) {
			t.Errorf("an arena of %d bytes: %v, want EINVAL", n, err)
		}
	}
}

func TestArenaAddrOutside(t *testing.T) {
	a, err := NewArena(1)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, off := range []int{-1, len(a.Bytes())} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("the address of byte %d was given out", off)
				}
			}()
			a.Addr(off)
		}()
	}
}

// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xen"
)

// layout is a struct's size and the offsets of its named fields.
type layout struct {
	Size    uintptr
	Offsets map[string]uintptr
}

// TestLayout repeats what the compiler holds in abi_unsafe.go, for a reader
// who wants to see the numbers of uapi/xen/gntalloc.h side by side.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		v    any
		want layout
	}{
		{allocGref{}, layout{24, map[string]uintptr{"domid": 0, "flags": 2, "count": 4, "index": 8, "grefIDs": 16}}},
		{deallocGref{}, layout{16, map[string]uintptr{"index": 0, "count": 8}}},
	} {
		typ := reflect.TypeOf(c.v)
		got := layout{typ.Size(), map[string]uintptr{}}
		for f := range typ.Fields() {
			if f.Name != "_" {
				got.Offsets[f.Name] = f.Offset
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", c.v, diff)
		}
	}
}

func TestIoctlNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"IOCTL_GNTALLOC_ALLOC_GREF", iocAllocGref, 0x00184705},
		{"IOCTL_GNTALLOC_DEALLOC_GREF", iocDeallocGref, 0x00104706},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#08x, want %#08x", c.name, c.got, c.want)
		}
	}
}

// TestAllocArgument pins the words of an alloc call, and where in them the
// kernel puts its answer.
func TestAllocArgument(t *testing.T) {
	got := newAllocArg(0x1234, 3, true)
	if diff := cmp.Diff([]uint64{3<<32 | 1<<16 | 0x1234, 0, 0, 0}, got); diff != "" {
		t.Errorf("argument (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint64{1<<32 | 7, 0, 0}, newAllocArg(7, 1, false)); diff != "" {
		t.Errorf("argument, not writable (-want +got):\n%s", diff)
	}
	got[1], got[2], got[3] = 0x5000, 9<<32|8, 10
	index, refs := allocAnswer(got, 3)
	if index != 0x5000 {
		t.Errorf("index %#x", index)
	}
	if diff := cmp.Diff([]xen.Gref{8, 9, 10}, refs); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
}

// SPDX-License-Identifier: Apache-2.0

package gntdev

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
// who wants to see the numbers of uapi/xen/gntdev.h side by side.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		v    any
		want layout
	}{
		{Segment{}, layout{24, map[string]uintptr{"source": 0, "dest": 8, "len": 16, "flags": 18, "status": 20, "dir": 22}}},
		{grantRef{}, layout{8, map[string]uintptr{"domid": 0, "ref": 4}}},
		{mapGrantRef{}, layout{24, map[string]uintptr{"count": 0, "index": 8, "refs": 16}}},
		{unmapGrantRef{}, layout{16, map[string]uintptr{"index": 0, "count": 8}}},
		{grantCopy{}, layout{16, map[string]uintptr{"count": 0, "segments": 8}}},
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
		{"IOCTL_GNTDEV_MAP_GRANT_REF", iocMapGrantRef, 0x00184700},
		{"IOCTL_GNTDEV_UNMAP_GRANT_REF", iocUnmapGrantRef, 0x00104701},
		{"IOCTL_GNTDEV_GRANT_COPY", iocGrantCopy, 0x00104708},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#08x, want %#08x", c.name, c.got, c.want)
		}
	}
}

// TestMapArgument pins the words of a map call: count, index, then the refs.
func TestMapArgument(t *testing.T) {
	got := newMapArg(0x1234, []xen.Gref{8, 0xfffffffe, 10})
	want := []uint64{3, 0, 8<<32 | 0x1234, 0xfffffffe<<32 | 0x1234, 10<<32 | 0x1234}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("argument (-want +got):\n%s", diff)
	}
}

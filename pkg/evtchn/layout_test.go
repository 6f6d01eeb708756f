// SPDX-License-Identifier: Apache-2.0

package evtchn

import (
	"reflect"
	"testing"
)

// TestLayout repeats what the compiler holds in abi_unsafe.go, for a reader
// who wants to see the numbers of uapi/xen/evtchn.h side by side.
func TestLayout(t *testing.T) {
	typ := reflect.TypeOf(arg{})
	if typ.Size() != 8 {
		t.Errorf("the argument has %d bytes, want 8", typ.Size())
	}
	for name, want := range map[string]uintptr{"a": 0, "b": 4} {
		if f, _ := typ.FieldByName(name); f.Offset != want {
			t.Errorf("%s is at %d, want %d", name, f.Offset, want)
		}
	}
	if got := reflect.TypeOf(Port(0)).Size(); got != portSize {
		t.Errorf("a port has %d bytes, want %d", got, portSize)
	}
}

func TestIoctlNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"IOCTL_EVTCHN_BIND_INTERDOMAIN", iocBindInterdomain, 0x00084501},
		{"IOCTL_EVTCHN_BIND_UNBOUND_PORT", iocBindUnbound, 0x00044502},
		{"IOCTL_EVTCHN_UNBIND", iocUnbind, 0x00044503},
		{"IOCTL_EVTCHN_NOTIFY", iocNotify, 0x00044504},
		{"IOCTL_EVTCHN_RESET", iocReset, 0x00004505},
		{"IOCTL_EVTCHN_RESTRICT_DOMID", iocRestrict, 0x00024506},
	} {
		if c.got != c.want {
			t.Errorf("%s = %#08x, want %#08x", c.name, c.got, c.want)
		}
	}
}

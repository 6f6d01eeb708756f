// SPDX-License-Identifier: Apache-2.0

package xenbus_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestDeviceIDPaths(t *testing.T) {
	for _, tt := range []struct {
		id                             xenbus.DeviceID
		name, backend, frontend, error string
	}{
		{xenbus.DeviceID{Class: xenbus.VIF, Domid: 3, Devid: 1}, "vif3.1",
			"/local/domain/7/backend/vif/3/1", "/local/domain/3/device/vif/1", "/local/domain/7/error/backend/vif/3/1/error"},
		{xenbus.DeviceID{Class: xenbus.VBD, Domid: 3, Devid: 51712}, "vbd-3-51712",
			"/local/domain/7/backend/vbd/3/51712", "/local/domain/3/device/vbd/51712", "/local/domain/7/error/backend/vbd/3/51712/error"},
		{xenbus.DeviceID{Class: xenbus.VBD3, Domid: 3, Devid: 1 << 28}, "vbd3-3-268435456",
			"/local/domain/7/backend/vbd3/3/268435456", "/local/domain/3/device/vbd/268435456", "/local/domain/7/error/backend/vbd3/3/268435456/error"},
	} {
		got := []string{tt.id.String(), tt.id.BackendPath(7), tt.id.FrontendPath(), tt.id.ErrorPath(7)}
		if diff := cmp.Diff([]string{tt.name, tt.backend, tt.frontend, tt.error}, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.id, diff)
		}
		if id, err := xenbus.ParseDeviceID(tt.name); id != tt.id || err != nil {
			t.Errorf("ParseDeviceID(%q) = %v, %v", tt.name, id, err)
		}
		if id, err := xenbus.ParseDevicePath(tt.backend); id != tt.id || err != nil {
			t.Errorf("ParseDevicePath(%q) = %v, %v", tt.backend, id, err)
		}
	}
}

func TestParseDeviceRefuses(t *testing.T) {
	for _, name := range []string{
		"", "vbd", "vbd-", "vbd-1", "vbd-1-", "vbd-1-02", "vbd-01-2", "vbd-1-2-3", "vbd--1-2", "vbd-1-2147483648", "vbd-32752-0",
		"vbd1.51712", "vif-1-0", "vif1.65536", "console-1-0", "vbd2-1-0", "-1-0", " vbd-1-0",
	} {
		if id, err := xenbus.ParseDeviceID(name); err == nil {
			t.Errorf("ParseDeviceID(%q) = %v, want an error", name, id)
		}
	}
	for _, path := range []string{"", "vbd", "vbd/1", "vbd/1/", "vbd/1/2/state", "backend/vbd2/1/2", "backend/vif/1/65536", "vbd/1/-2"} {
		if id, err := xenbus.ParseDevicePath(path); err == nil {
			t.Errorf("ParseDevicePath(%q) = %v, want an error", path, id)
		}
	}
}

func TestDeviceIDCompare(t *testing.T) {
	id := func(c xenbus.Class, domid xen.Domid, devid int) xenbus.DeviceID {
		return xenbus.DeviceID{Class: c, Domid: domid, Devid: devid}
	}
	want := []xenbus.DeviceID{
		id(xenbus.VBD3, 1, 0), id(xenbus.VBD, 1, 1), id(xenbus.VBD3, 1, 1), id(xenbus.VBD, 2, 0), id(xenbus.VBD, 10, 0),
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, xenbus.DeviceID.Compare)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestVdev(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    xenbus.Vdev
	}{
		{"xvda", 51712}, {"xvda1", 51713}, {"xvdb", 51728}, {"xvdp15", 51967},
		{"xvda16", 1<<28 | 16}, {"xvdq", 1<<28 | 16<<8}, {"xvdz", 1<<28 | 25<<8}, {"xvdaa", 1<<28 | 26<<8},
		{"xvdzz", 1<<28 | 701<<8}, {"xvdaaa", 1<<28 | 702<<8}, {"xvdbgqcv255", 1<<28 | 0xfffff<<8 | 255},
		{"hda", 768}, {"hda1", 769}, {"hdb", 832}, {"hdc", 5632}, {"hdd63", 5632 | 64 | 63},
		{"sda", 2048}, {"sdb2", 2066}, {"sdp15", 2303},
		{"0", 0}, {"7", 7}, {"896", 896}, {"268435457", 1<<28 | 1}, {"2147483647", 1<<31 - 1},
	} {
		if got, err := xenbus.ParseVdev(tt.name); got != tt.n || err != nil {
			t.Errorf("ParseVdev(%q) = %d, %v; want %d", tt.name, uint32(got), err, uint32(tt.n))
		}
		if got := tt.n.String(); got != tt.name {
			t.Errorf("%d is %q, want %q", uint32(tt.n), got, tt.name)
		}
	}
	for _, name := range []string{
		"", "xvd", "xvdA", "xvda0", "xvda01", "xvda256", "xvda-1", "xvd1", "xvda1b", "xvdzzzzz", "xvdzzzzzz", "hde", "hda64", "sdq", "sda16",
		"vda", "a", "-1", "+1", "0x10", "2147483648", "99999999999", "xvda ", strings.Repeat("x", 200),
	} {
		if got, err := xenbus.ParseVdev(name); err == nil {
			t.Errorf("ParseVdev(%q) = %d, want an error", name, uint32(got))
		} else if len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

// FuzzParseVdev checks that a name that is not a number is printed as it was parsed.
func FuzzParseVdev(f *testing.F) {
	for _, s := range []string{"xvda", "xvdaa17", "hdc63", "sdp15", "51712", ""} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		v, err := xenbus.ParseVdev(s)
		if err != nil {
			return
		}
		back, err := xenbus.ParseVdev(v.String())
		if err != nil || back != v {
			t.Errorf("ParseVdev(%q) = %d, which prints as %q and comes back as %d, %v", s, uint32(v), v, uint32(back), err)
		}
		if s[0] > '9' && v.String() != s {
			t.Errorf("ParseVdev(%q) prints as %q", s, v)
		}
	})
}

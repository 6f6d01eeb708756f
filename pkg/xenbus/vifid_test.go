// SPDX-License-Identifier: Apache-2.0

package xenbus_test

import (
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestParseVifID(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want xenbus.VifID
		ok   bool
	}{
		{"vif1.0", xenbus.VifID{Domid: 1}, true},
		{"vif0.0", xenbus.VifID{}, true},
		{"vif32751.65535", xenbus.VifID{Domid: 32751, Devid: 65535}, true},
		{"vif32752.0", xenbus.VifID{}, false}, // DOMID_SELF
		{"vif65536.0", xenbus.VifID{}, false},
		{"vif1.65536", xenbus.VifID{}, false},
		{"vif01.0", xenbus.VifID{}, false},
		{"vif1.00", xenbus.VifID{}, false},
		{"vif+1.0", xenbus.VifID{}, false},
		{"vif-1.0", xenbus.VifID{}, false},
		{"vif1.", xenbus.VifID{}, false},
		{"vif.0", xenbus.VifID{}, false},
		{"vif1", xenbus.VifID{}, false},
		{"vif1.0.0", xenbus.VifID{}, false},
		{"vif0x1.0", xenbus.VifID{}, false},
		{"vif1.0 ", xenbus.VifID{}, false},
		{"1.0", xenbus.VifID{}, false},
		{"vif/1/0", xenbus.VifID{}, false},
		{"eth0", xenbus.VifID{}, false},
		{"", xenbus.VifID{}, false},
	} {
		got, err := xenbus.ParseVifID(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseVifID(%q) = %v, %v; want %v, ok %t", tt.in, got, err, tt.want, tt.ok)
		}
	}
}

func TestParseVifPath(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want xenbus.VifID
		ok   bool
	}{
		{"/local/domain/0/backend/vif/3/1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"backend/vif/3/1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"vif/3/1", xenbus.VifID{Domid: 3, Devid: 1}, true},
		{"backend/vif/32752/0", xenbus.VifID{}, false},
		{"backend/vif/03/1", xenbus.VifID{}, false},
		{"backend/vif/3", xenbus.VifID{}, false},
		{"backend/vif/3/1/state", xenbus.VifID{}, false},
		{"backend/vif/3/1/", xenbus.VifID{}, false},
		{"backend/vbd/3/51712", xenbus.VifID{}, false},
		{"backend/xvif/3/1", xenbus.VifID{}, false},
		{"3/1", xenbus.VifID{}, false},
		{"vif3.1", xenbus.VifID{}, false},
		{"", xenbus.VifID{}, false},
	} {
		got, err := xenbus.ParseVifPath(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseVifPath(%q) = %v, %v; want %v, ok %t", tt.in, got, err, tt.want, tt.ok)
		}
	}
}

func TestVifIDPaths(t *testing.T) {
	id := xenbus.VifID{Domid: 3, Devid: 1}
	for got, want := range map[string]string{
		id.String():       "vif3.1",
		id.BackendPath(0): "/local/domain/0/backend/vif/3/1",
		id.BackendPath(7): "/local/domain/7/backend/vif/3/1",
		id.FrontendPath(): "/local/domain/3/device/vif/1",
		id.ErrorPath(0):   "/local/domain/0/error/backend/vif/3/1/error",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzParseVif checks that only what String and BackendPath return is accepted, and
// that errors do not repeat a name of any length.
func FuzzParseVif(f *testing.F) {
	for _, s := range []string{"vif1.0", "vif32751.65535", "vif01.0", "vif-1.+1", "backend/vif/3/1", ""} {
		f.Add(s)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, s string) {
		id, err := xenbus.ParseVifID(s)
		if err == nil && (id.String() != s || id.Domid >= xen.FirstReservedDomid) {
			t.Errorf("ParseVifID(%q) = %v", s, id)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		id, err = xenbus.ParseVifPath(s)
		if err == nil && (!strings.HasSuffix(id.BackendPath(0), "/"+s) && !strings.HasSuffix(s, strings.TrimPrefix(id.BackendPath(0), "/local/domain/0/backend/"))) {
			t.Errorf("ParseVifPath(%q) = %v", s, id)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// TestOffer: all that the data path can do is offered, but nothing that needs what is not
// there.
func TestOffer(t *testing.T) {
	never := map[string]uint64{
		"guest_ufo": 1 << 10, "host_ufo": 1 << 14, "hash_report": 1 << 57, "rss": 1 << 60, "mac": 1 << 5,
	}
	for _, tc := range []struct {
		vnetHdr, uso    bool
		xen             Xen
		platform, xmmap bool
	}{
		{true, true, XenOff, false, false}, {true, false, XenOff, false, false}, {false, true, XenOff, false, false},
		{true, true, XenForeign, false, true}, {true, true, XenGrant, true, true},
	} {
		features, protocol := offer(tc.vnetHdr, tc.uso, tc.xen)
		if missing := dataplane.VirtFeatures(tc.vnetHdr, tc.uso) &^ features; missing != 0 {
			t.Errorf("%+v: the data path's features %#x are not offered", tc, missing)
		}
		for name, bit := range never {
			if features&bit != 0 {
				t.Errorf("%+v: %s is offered", tc, name)
			}
		}
		if got := features&(1<<33) != 0; got != tc.platform {
			t.Errorf("%+v: access_platform %v", tc, got)
		}
		if got := protocol&vhostuser.ProtocolXenMmap != 0; got != tc.xmmap {
			t.Errorf("%+v: xen_mmap %v", tc, got)
		}
		for bit, want := range map[uint]bool{7: tc.vnetHdr, 54: tc.vnetHdr && tc.uso, 56: tc.vnetHdr && tc.uso} {
			if got := features&(1<<bit) != 0; got != want {
				t.Errorf("%+v: bit %d is offered: %v", tc, bit, got)
			}
		}
		if n := len(featureNames(features)); n == 0 || features&1<<32 == 0 {
			t.Errorf("%+v: %d names", tc, n)
		}
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]Rate{
		"":               {},
		"10Mb/s":         {62500, 50 * time.Millisecond},
		"1MB/s@20ms":     {20000, 20 * time.Millisecond},
		"250KB/s":        {12500, 50 * time.Millisecond},
		"1000000b/s@1s":  {125000, time.Second},
		"10Gb/s@50000us": {62_500_000, 50 * time.Millisecond},
	} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"10", "10M", "10Mb", "0b/s", "-1Mb/s", "1Mb/s@", "1Mb/s@0ms", "1Mb/s@2h", "x", "1b/s@1ms", "99999999999999999999999Gb/s"} {
		if got, err := ParseRate(text); !errors.Is(err, ErrRate) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if s := (Rate{}).String(); s != "unlimited" {
		t.Error(s)
	}
}

// TestDocument: the document has every feature and its reason.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/vhost-user.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Features {
		if row := fmt.Sprintf("| %d | %s | %s |\n", f.Bit, f.Name, f.Why); !strings.Contains(string(text), row) {
			t.Errorf("docs/vhost-user.md lacks %q", row)
		}
	}
}

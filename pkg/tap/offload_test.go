// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// offloadsOf returns a device's offloads as the host sees them.
func offloadsOf(t *testing.T, ifindex int) map[string]bool {
	t.Helper()
	features, offloads := activeFeatures(t, ifindex), map[string]bool{}
	for _, name := range []string{
		"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation",
		"tx-tcp-ecn-segmentation", "tx-udp-segmentation",
	} {
		if features[name] {
			offloads[name] = true
		}
	}
	return offloads
}

// offloadNames returns how the host should see o.
func offloadNames(o Offload) map[string]bool {
	names := map[string]bool{}
	if o.Csum {
		names["tx-checksum-ip-generic"] = true
	}
	if o.TSO4 {
		names["tx-tcp-segmentation"] = true
	}
	if o.TSO6 {
		names["tx-tcp6-segmentation"] = true
	}
	if o.ECN {
		names["tx-tcp-ecn-segmentation"] = true
	}
	if o.USO {
		names["tx-udp-segmentation"] = true
	}
	return names
}

var sensibleOffloads = []Offload{
	{},
	{Csum: true},
	{Csum: true, TSO4: true},
	{Csum: true, TSO6: true},
	{Csum: true, TSO4: true, TSO6: true},
	{Csum: true, TSO6: true, ECN: true},
	{Csum: true, USO: true},
	{Csum: true, TSO4: true, TSO6: true, ECN: true, USO: true},
}

func TestOffloadsAsTheHostSeesThem(t *testing.T) {
	netns.NeedTUN(t)
	for _, o := range sensibleOffloads {
		d := newTAP(t, Config{Name: "vif1.0", VnetHdr: true, Offload: o})
		if diff := cmp.Diff(offloadNames(o), offloadsOf(t, d.Index())); diff != "" {
			t.Errorf("created with %+v (-want +got):\n%s", o, diff)
		}
		for _, next := range sensibleOffloads {
			must(t, d.SetOffload(next))
			if diff := cmp.Diff(offloadNames(next), offloadsOf(t, d.Index())); diff != "" {
				t.Errorf("set to %+v (-want +got):\n%s", next, diff)
			}
		}
		must(t, d.Close())
	}
}

func TestOffloadsThatMakeNoSense(t *testing.T) {
	netns.NeedTUN(t)
	had := Offload{Csum: true, TSO4: true}
	d := newTAP(t, Config{Name: "vif1.0", VnetHdr: true, Offload: had})
	for _, o := range []Offload{{TSO4: true}, {TSO6: true}, {TSO4: true, TSO6: true}, {USO: true}, {Csum: true, ECN: true}} {
		wantErr(t, d.SetOffload(o), errOffload)
	}
	if diff := cmp.Diff(offloadNames(had), offloadsOf(t, d.Index())); diff != "" {
		t.Errorf("refused, but changed (-want +got):\n%s", diff)
	}
	plain := newTAP(t, Config{Name: "vif2.0"})
	wantErr(t, plain.SetOffload(Offload{Csum: true}), errPlain)
	must(t, plain.SetOffload(Offload{}))
}

func TestAnAdoptedDeviceKeepsItsOffloads(t *testing.T) {
	netns.NeedTUN(t)
	had := Offload{Csum: true, TSO4: true}
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true, Offload: had}
	must(t, newTAP(t, cfg).CloseKeep())
	cfg.Offload = Offload{}
	d := newTAP(t, cfg)
	if diff := cmp.Diff(offloadNames(had), offloadsOf(t, d.Index())); diff != "" || !d.Adopted() {
		t.Errorf("adopted %v (-want +got):\n%s", d.Adopted(), diff)
	}
	must(t, d.SetOffload(Offload{}))
	if diff := cmp.Diff(offloadNames(Offload{}), offloadsOf(t, d.Index())); diff != "" {
		t.Errorf("set to none (-want +got):\n%s", diff)
	}
}

func TestProbe(t *testing.T) {
	netns.NeedTUN(t)
	for _, f := range []Feature{VnetHeader, MultiQueue} {
		must(t, Probe(f)) // any kernel that Create can work with
	}
	wantErr(t, Probe(Feature(0x0080)), ErrNotSupported, "probe unknown(0x80)")
	if diff := cmp.Diff("IFF_NO_CARRIER", NoCarrier.String()); diff != "" {
		t.Error(diff)
	}
}

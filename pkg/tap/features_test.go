// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// hostWants switches features as `ethtool -K` does.
func hostWants(t *testing.T, d *Device, on bool, names ...string) {
	t.Helper()
	f, err := getFeatures(d.Index())
	must(t, err)
	for _, name := range names {
		if !f.switchable[name] {
			t.Fatalf("%s cannot be switched", name)
		}
		f.wanted[name] = on
	}
	must(t, f.want(d.Index()))
}

// TestTheHostsOffloadsStay: an offload that the host switches off stays off, with any guest
// at the other end, until the host switches it on. One that only a guest did not have is
// on again for the next guest.
func TestTheHostsOffloadsStay(t *testing.T) {
	netns.NeedTUN(t)
	all := Offload{Csum: true, TSO4: true, TSO6: true}
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true}
	d := newTAP(t, cfg)
	check := func(when string, want Offload) {
		t.Helper()
		if diff := cmp.Diff(offloadNames(want), offloadsOf(t, d.Index())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	again := func() {
		t.Helper()
		must(t, d.CloseKeep())
		var err error
		d, err = Create(cfg)
		must(t, err)
	}
	defer func() { must(t, d.Close()) }()
	check("made", Offload{})
	must(t, d.SetOffload(all))
	check("all", all)

	hostWants(t, d, false, featureCsum)
	check("the host wants no checksums", Offload{})
	for _, o := range sensibleOffloads {
		must(t, d.SetOffload(o))
		check("another takes its place", Offload{})
	}
	again()
	must(t, d.SetOffload(all))
	check("adopted", Offload{})
	must(t, d.SetOffload(Offload{}))
	hostWants(t, d, true, featureCsum)
	check("the host wants them, but the reader does not take them", Offload{})
	must(t, d.SetOffload(all))
	check("the reader takes them", all)

	hostWants(t, d, false, featureTSO4, "tx-scatter-gather")
	must(t, d.SetOffload(Offload{Csum: true, TSO6: true}))
	again()
	check("adopted; without scatter-gather the kernel segments itself", Offload{Csum: true})
	must(t, d.SetOffload(all))
	hostWants(t, d, true, "tx-scatter-gather")
	check("no segmentation of IPv4", Offload{Csum: true, TSO6: true})
	hostWants(t, d, true, featureTSO4)
	check("and all again", all)
}

// TestTheHostsOffloadsStayElsewhere: in a namespace that may not be entered, those that
// were seen before stay.
func TestTheHostsOffloadsStayElsewhere(t *testing.T) {
	netns.NeedTUN(t)
	ns := otherNetwork(t)
	d := newTAP(t, Config{Name: "vif1.0", VnetHdr: true, Persist: true})
	hostWants(t, d, false, featureTSO4)
	must(t, d.SetOffload(Offload{Csum: true}))
	move(t, "vif1.0", ns)
	must(t, confined(func() error { return d.SetOffload(Offload{Csum: true, TSO4: true, TSO6: true}) }))
	must(t, ns.Do(func() error {
		want := Offload{Csum: true, TSO6: true}
		if diff := cmp.Diff(offloadNames(want), offloadsOf(t, d.Index())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	}))
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-40-amd64": false, "6.2.0": true, "6.2-rc1": true, "6.12.48+deb13-amd64": true, "7.0.0": true,
		"5.15.0": false, "4.4.302": false, "": false, "six": false,
	} {
		if got := atLeast(release, usoSince); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// TestUp: Up returns all TAPs and nothing else.
func TestUp(t *testing.T) {
	netns.NeedTUN(t)
	before, err := Up()
	must(t, err)
	up := newTAPUp(t, Config{Name: "vif1.0"})
	down := newTAP(t, Config{Name: "vif2.0"})
	got, err := Up()
	must(t, err)
	want := map[int]bool{up.Index(): true, down.Index(): false}
	for i, is := range before {
		want[i] = is
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("TAPs that are up (-want +got)\n%s", diff)
	}
}

// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestRemoveLeftovers: the files of vbds that are gone are removed, and no others.
func TestRemoveLeftovers(t *testing.T) {
	dir := t.TempDir()
	gone := []string{"ring-vbd-3-51712-0", "ring-vbd3-3-51712-12", "vbd-3-51712", "vbd-3-51712.new", "vbd3-3-51712"}
	stay := []string{
		"blkbackd.sock", "ring-vbd-7-51712-0", "ring-vbd-7-51712-x", "ring-vbd-3-51712", "ring-vbd-3-51712-00", "ring-0",
		"vbd-3-051712", "vbd-7-51712", "vif3.0", "vif-3.0",
	}
	for _, name := range slices.Concat(gone, stay) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := RemoveLeftovers(dir, func(id xenbus.DeviceID) bool { return id == testID })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(gone, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(stay) {
		t.Errorf("left %v, %v", left, err)
	}
	if removed, err := RemoveLeftovers("", nil); len(removed) > 0 || err != nil {
		t.Errorf("without a directory: %v, %v", removed, err)
	}
}

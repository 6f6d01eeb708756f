// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestInstalledProgram: a privileged daemon carries no code that plays Xen, guests or disks,
// and none of the network back end.
func TestInstalledProgram(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	list := strings.Fields(string(out))
	if len(list) < 10 {
		t.Fatalf("go list -deps prints %q", out)
	}
	for _, pkg := range list {
		for _, not := range []string{"/internal/lab", "/internal/vif", "/internal/dataplane", "/internal/vhostnet", "/pkg/tap", "/pkg/xentest"} {
			if strings.Contains(pkg, not) || pkg == "testing" {
				t.Errorf("blkbackd imports %s", pkg)
			}
		}
	}
}

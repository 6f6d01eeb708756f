// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestInstalledProgramHasNoLab: a privileged daemon carries no code that plays Xen,
// guests or traffic.
func TestInstalledProgramHasNoLab(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	list := strings.Fields(string(out))
	if len(list) < 10 {
		t.Fatalf("go list -deps prints %q", out)
	}
	for _, pkg := range list {
		if strings.Contains(pkg, "/internal/lab") || pkg == "testing" {
			t.Errorf("netbackd imports %s", pkg)
		}
	}
}

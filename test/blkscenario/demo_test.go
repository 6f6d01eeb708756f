// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"context"
	"os/exec"
	"strings"
	"testing"
)

// TestDemo runs what `make demo-blk` runs, with short measurements.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	said, err := exec.CommandContext(ctx, exe, "demo", "--stretch=20ms").CombinedOutput()
	if err != nil || !strings.Contains(string(said), "Nothing was lost.") || strings.Contains(string(said), "FAILED") {
		t.Errorf("%v:\n%s", err, said)
	}
}

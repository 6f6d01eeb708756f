// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
)

// unit returns the unit of systemd.
func unit(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../systemd/blkbackd.service")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestUnitIsValid: systemd understands each line of the unit, and its sandbox is as closed as
// images of any owner at any place allow.
func TestUnitIsValid(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	path := filepath.Join(t.TempDir(), "blkbackd.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(unit(t), "/usr/sbin/blkbackd", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "blkbackd") {
			t.Error(line)
		}
	}
	if err != nil && t.Failed() {
		t.Error(err)
	}
	if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=35", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestThreadsFitTheUnit: the unit's TasksMax allows the most threads of the default, and some
// more for io_uring.
func TestThreadsFitTheUnit(t *testing.T) {
	_, rest, _ := strings.Cut(unit(t), "\nTasksMax=")
	line, _, _ := strings.Cut(rest, "\n")
	most, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	if n := 2 * maxThreads(blkplane.DefaultMaxThreads); n >= most {
		t.Errorf("%d threads, the unit allows %d", n, most)
	}
}

// SPDX-License-Identifier: Apache-2.0

package pagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Units installs units of systemd below a directory, with a program that is there, as
// instances of a device if they are templates. It returns their paths.
func Units(t *testing.T, program string, files ...string) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/usr/sbin/"+program, "/bin/true")
		path := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, strings.Replace(path, "@.", "@tap-1.", 1))
	}
	return paths
}

// ValidUnits checks that systemd understands each line of the units, and that the exposure
// of the services, which systemd-analyze computes in tenths, is at most the given one.
func ValidUnits(t *testing.T, program string, exposure int, services []string, others ...string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	paths := Units(t, program, append(services, others...)...)
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, paths...)...).CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, program) {
			t.Error(line)
		}
	}
	if err != nil && t.Failed() {
		t.Error(err)
	}
	for _, file := range services {
		path := Units(t, program, file)[0]
		template := strings.Replace(path, "@tap-1.", "@.", 1)
		if template != path {
			if err := os.Rename(template, path); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+strconv.Itoa(exposure), path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// TasksMax returns the number of threads that a unit allows.
func TasksMax(t *testing.T, file string) int {
	t.Helper()
	unit, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(unit), "\nTasksMax=")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

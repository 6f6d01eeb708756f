// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// exe is the netbackd program that is tested.
var exe string

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if netns.Available() != nil {
		return m.Run() // which skips, and says why
	}
	dir, err := os.MkdirTemp("", "netbackd-scenario-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = build(filepath.Join(dir, "netbackd"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	exe = filepath.Join(dir, "netbackd")
	return m.Run()
}

// build builds the program, with the race detector where that can be had.
func build(out string) error {
	args := []string{"build", "-o", out}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if _, err := exec.LookPath("cc"); err == nil {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "github.com/netbackd/netbackd/cmd/netbackd")...)
	cmd.Env = env
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build netbackd: %w\n%s", err, said)
	}
	return nil
}

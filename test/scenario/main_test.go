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

// The programs that are tested. The daemon is always the lab's, which differs from the
// installed one in the Xen that it opens; all other commands are the installed ones.
var (
	exe       string // netbackd-lab
	installed string // netbackd
)

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
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	exe, installed = filepath.Join(dir, "netbackd-lab"), filepath.Join(dir, "netbackd")
	return m.Run()
}

// build builds both programs into dir, with the race detector if there is a C compiler.
// If GOCOVERDIR is set, they are built to record their coverage there instead.
func build(dir string) error {
	args := []string{"build", "-o", dir + "/"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("GOCOVERDIR") != "" {
		args = append(args, "-covermode=atomic", "-coverpkg=github.com/netbackd/netbackd/...")
	} else if _, err := exec.LookPath("cc"); err == nil {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "github.com/netbackd/netbackd/cmd/netbackd", "github.com/netbackd/netbackd/cmd/netbackd-lab")...)
	cmd.Env = env
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build netbackd: %w\n%s", err, said)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"flag"
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

// envPrograms names the directory of the programs in the process of a single test.
const envPrograms = "NETBACKD_SCENARIO_PROGRAMS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envPrograms); dir != "" {
		exe, installed = filepath.Join(dir, "netbackd-lab"), filepath.Join(dir, "netbackd")
		if code, done := netns.Enter(); done {
			os.Exit(code)
		}
		os.Exit(m.Run())
	}
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	os.Exit(run())
}

// run builds the programs and runs the tests.
func run() int {
	dir, err := os.MkdirTemp("", "netbackd-scenario-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = build(dir)
	}
	if err == nil {
		err = os.Setenv(envPrograms, dir)
	}
	if err == nil {
		err = runEach(os.Args[0], os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
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

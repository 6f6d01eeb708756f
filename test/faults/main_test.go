// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// Programs that are tested. They are built without the race detector, so that each system
// call is the program's own.
var netExe, blkExe string

// envPrograms names the directory of the programs, in the process that has a network of its
// own.
const envPrograms = "NETBACKD_FAULTS_PROGRAMS"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir := os.Getenv(envPrograms)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "netbackd-faults-"); err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			err = build(dir)
		}
		if err == nil {
			err = os.Setenv(envPrograms, dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	netExe, blkExe = filepath.Join(dir, "netbackd-lab"), filepath.Join(dir, "blkbackd-lab")
	if code, done := netns.Enter(); done {
		return code
	}
	return m.Run()
}

// build builds both programs into dir.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-o", dir+"/",
		"github.com/netbackd/netbackd/cmd/netbackd-lab", "github.com/netbackd/netbackd/cmd/blkbackd-lab")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, said)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// exe is the program that is tested: blkbackd-lab, which differs from the installed one in
// the Xen that it opens.
var exe string

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "blkbackd-scenario-")
	if err == nil {
		exe, err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// build builds the program into dir, with the race detector if there is a C compiler. If
// GOCOVERDIR is set, it is built to record its coverage there instead.
func build(dir string) (string, error) {
	exe := filepath.Join(dir, "blkbackd-lab")
	args := []string{"build", "-o", exe}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("GOCOVERDIR") != "" {
		args = append(args, "-covermode=atomic", "-coverpkg=github.com/netbackd/netbackd/...")
	} else if _, err := exec.LookPath("cc"); err == nil {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "github.com/netbackd/netbackd/cmd/blkbackd-lab")...)
	cmd.Env = env
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build blkbackd-lab: %w\n%s", err, said)
	}
	return exe, nil
}

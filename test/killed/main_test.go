// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/tracekill"
)

var (
	// programs is the directory of netbackd-lab and blkbackd-lab; empty: they are built.
	programs = flag.String("programs", "", "`directory` of netbackd-lab and blkbackd-lab")
	// kills is the number of kills of each random test.
	kills = flag.Int("kills", 2, "`number` of kills at random instants for each configuration")
	// calls bounds the kills at system calls of each phase.
	calls = flag.Int("calls", 1, "`number` of kills at system calls of each phase; 0: at each call, at its entry and its exit")
	// only names the phase of TestCalls to run.
	only = flag.String("phase", "", "`phase` of TestCalls to run; empty: all")
	// long runs every configuration, as make kill does.
	long = flag.Bool("long", false, "run every configuration")
	// report is a file to which each test appends its figures.
	report = flag.String("report", "", "`file` that each test appends its figures to")
)

func TestMain(m *testing.M) {
	tracekill.Enter()
	flag.Parse()
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	// IPv6 would send packets on each link that comes up.
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	code := run(m)
	os.Exit(code)
}

// run builds the programs, without the race detector, and runs the tests.
func run(m *testing.M) int {
	if *programs != "" {
		dir, err := filepath.Abs(*programs)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		*programs = dir
		return m.Run()
	}
	if flag.Lookup("test.list").Value.String() != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "killed-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
		"github.com/netbackd/netbackd/cmd/netbackd-lab", "github.com/netbackd/netbackd/cmd/blkbackd-lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, said)
		return 1
	}
	*programs = dir
	return m.Run()
}

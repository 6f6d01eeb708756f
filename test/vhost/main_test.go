// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	_ "github.com/netbackd/netbackd/internal/cli" // go test then knows that a result depends on the program
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// Environment of the process that runs the tests, in namespaces of its own.
const (
	// envPrograms names the directory of the programs that were built.
	envPrograms = "NETBACKD_VHOST_PROGRAMS"
	// envFetched names the directory of the programs that were fetched.
	envFetched = "NETBACKD_VHOST_FETCHED"
	// envMissing has the reason why the programs of others are not there.
	envMissing = "NETBACKD_VHOST_MISSING"
)

// envRequired makes tests fail that would be skipped because a program is missing.
const envRequired = "NETBACKD_VHOST"

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	if os.Getenv(envPrograms) != "" {
		_, _ = netns.Enter()
		_ = netns.NoIPv6()
		os.Exit(m.Run())
	}
	os.Exit(prepare())
}

// prepare builds netbackd and the guest's agent, fetches the programs of others, and runs the
// tests in a process in namespaces of its own.
func prepare() int {
	dir, err := os.MkdirTemp("", "netbackd-vhost-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = build(dir)
	}
	if err == nil {
		err = os.Setenv(envPrograms, dir)
	}
	if err == nil {
		var programs foreign.Programs
		programs, err = foreign.Fetch("./build")
		if errors.Is(err, foreign.ErrMissing) {
			err = os.Setenv(envMissing, err.Error())
		} else if err == nil {
			err = os.Setenv(envFetched, programs.Dir())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code, done := netns.Enter()
	if !done {
		fmt.Fprintln(os.Stderr, "the tests were not run: they need a network of their own")
		if os.Getenv(envRequired) == "required" {
			return 1
		}
	}
	return code
}

// build builds netbackd, with the race detector if there is a C compiler, and the guest's
// agent, which is static.
func build(dir string) error {
	race, env := []string{}, append(os.Environ(), "CGO_ENABLED=0")
	if _, err := exec.LookPath("cc"); err == nil {
		race, env = []string{"-race"}, append(os.Environ(), "CGO_ENABLED=1")
	}
	for _, b := range []struct {
		name, from string
		args       []string
		env        []string
	}{
		{"netbackd", "../../cmd/netbackd", race, env},
		{"agent", "./guest", nil, append(os.Environ(), "CGO_ENABLED=0")},
	} {
		args := append([]string{"build", "-o", filepath.Join(dir, b.name)}, b.args...)
		cmd := exec.Command("go", append(args, b.from)...)
		cmd.Env = b.env
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", b.name, err, said)
		}
	}
	return nil
}

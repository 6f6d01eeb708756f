// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// helpers are the functions that this binary runs when a test starts it again, by the
// value of envHelper.
var helpers = map[string]func() error{
	helpStepped: steppedChild,
	helpKilled:  killedChild,
	helpMoved:   steppedChild,
	helpMoving:  killedChild,
}

const envHelper = "DATAPLANE_TEST_HELPER"

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if help := helpers[os.Getenv(envHelper)]; help != nil {
		if err := help(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if os.Getenv(envBench) == benchScale {
		os.Exit(scaleMain(os.Args[1:]))
	}
	if os.Getenv(envBench) != "" {
		os.Exit(benchMain(os.Args[1:]))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		shared.close()
		os.Exit(code)
	}))
}

// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/hostile"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// envHostile makes this program a process of hostile guests.
const envHostile = "FAIR_HOSTILE"

func TestMain(m *testing.M) {
	if os.Getenv(envHostile) != "" {
		lab.Session()
		if err := hostile.Main(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "hostile:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	// IPv6 would send packets on each link that comes up.
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		removePrograms()
		os.Exit(code)
	}))
}

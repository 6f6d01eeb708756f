// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

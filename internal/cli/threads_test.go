// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"runtime"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/pagetest"
)

// TestThreadsFitTheUnit: the unit's TasksMax allows the daemon's most threads on a host of
// any size, and some more for io_uring.
func TestThreadsFitTheUnit(t *testing.T) {
	for _, name := range []string{"netbackd.service", "netbackd-vhost-user@.service"} {
		most := pagetest.TasksMax(t, "../../systemd/"+name)
		const cpus = 384
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors(cpus, cpus)))
		if n := maxThreads(cpus); n >= most {
			t.Errorf("%s: %d threads with %d workers, the unit allows %d", name, n, cpus, most)
		}
	}
}

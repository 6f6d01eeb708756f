// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"runtime"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/lab/pagetest"
)

const unit = "../../systemd/blkbackd.service"

// TestUnitIsValid: systemd understands each line of the unit, and its sandbox is as closed as
// images of any owner at any place allow.
func TestUnitIsValid(t *testing.T) { pagetest.ValidUnits(t, "blkbackd", 13, []string{unit}) }

// TestThreadsFitTheUnit: the unit's TasksMax allows the most threads of the default on a host
// of any size: a queue has its own, one for discards, and four of this process or, with
// io_uring, of the kernel.
func TestThreadsFitTheUnit(t *testing.T) {
	most := pagetest.TasksMax(t, unit)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(385))
	threads := blkplane.NewPool(blkplane.Options{NoUring: true}).QueueThreads()
	if n := maxThreads(threads * blkplane.DefaultMaxThreads); threads != 6 || n >= most {
		t.Errorf("%d threads, the unit allows %d", n, most)
	}
}

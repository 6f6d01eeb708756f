// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
)

// mixed is a load of everything that a guest may do.
var mixed = diskcheck.Load{Requests: 400, Depth: 16, MaxSegments: 40, Reads: 40, Flushes: 5, Barriers: 3, Discards: 3, Parts: true, Seed: 1}

// TestOneGuest is the whole way: attach, connect, write, read, compare.
func TestOneGuest(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Indirect: 256})
	if g.info.Offers.Sectors != sectors {
		t.Errorf("the disk has %d sectors, want %d", g.info.Offers.Sectors, sectors)
	}
	res := g.run(mixed)
	t.Logf("%.0f requests/s, %.1f MiB/s", res.Rate(), res.MiB())
	g.innocent()
}

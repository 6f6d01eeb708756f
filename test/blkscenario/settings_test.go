// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
)

// reconnect connects the disk again, with another configuration if front is not nil.
func (g *guest) reconnect(front *blkfront.Config) {
	g.w.t.Helper()
	if front != nil {
		front.Strict = true
	}
	info, err := g.Reconnect(g.w.ctx, blkguest.ConnectArgs{Front: front})
	g.w.must(err)
	g.info = info
}

// TestFrontends goes through what frontends may choose: protocol, size and number of rings,
// persistent grants, segments. What one wrote the next one reads.
func TestFrontends(t *testing.T) {
	w := newWorld(t, "--max-indirect-segments=4096")
	g := w.guest(blkfront.Config{})
	few := diskcheck.Load{Requests: 120, Depth: 32, MaxSegments: 40, Reads: 40, Flushes: 5, Barriers: 3, Discards: 3, Parts: true}
	for i, front := range []blkfront.Config{
		{Protocol: "x86_64-abi", Order: 0, Queues: 1},
		{Protocol: "x86_32-abi", Order: 1, Queues: 2, Indirect: 32},
		{Protocol: "arm-abi", Order: 2, Queues: 3, Indirect: 256, Persistent: true},
		{Protocol: blkfront.NoProtocol, Order: 3, Queues: 4, Persistent: true},
		{Protocol: blkfront.NoProtocol, Order: 4, Queues: 1, Indirect: 12},
		{Protocol: "x86_32-abi", Order: 4, Queues: 4, Indirect: 64, Persistent: true},
		{Protocol: "x86_64-abi", Order: 4, Queues: 4, Indirect: 256},
		{Indirect: 4096, Pages: 4096},
	} {
		name := fmt.Sprintf("%s, order %d, %d queues, %d segments, persistent %v", front.Protocol, front.Order, front.Queues, front.Indirect, front.Persistent)
		want := front
		g.reconnect(&front)
		load := few
		load.Seed = uint64(i)
		if front.Indirect == 4096 {
			load = diskcheck.Load{Requests: 8, Depth: 1, MinSegments: 1000, MaxSegments: 2040, Reads: 50}
		}
		res := g.run(load)
		if g.info.Slots != 32<<want.Order || g.info.Queues != max(want.Queues, 1) || g.info.Persistent != want.Persistent || g.info.MaxSegments != max(want.Indirect, 11) {
			t.Errorf("%s: %+v", name, g.info)
		}
		if (res.Stats.Indirect > 0) != (want.Indirect > 11) {
			t.Errorf("%s: %d indirect requests", name, res.Stats.Indirect)
		}
		g.innocent()
	}
}

// TestDaemons goes through the settings of the daemon that requests notice.
func TestDaemons(t *testing.T) {
	for _, args := range [][]string{
		{"--io-uring=false"},
		{"--cache=direct"},
		{"--cache=writeback", "--persistent=false", "--max-ring-order=0", "--max-queues=1"},
		{"--max-indirect-segments=0", "--guest-memory=1"},
		{"--max-indirect-segments=4096", "--guest-memory=1", "--io-uring=false", "--cache=direct"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			w := newWorld(t, args...)
			g := w.guest(blkfront.Config{Queues: 2, Order: 1, Indirect: 512, Pages: 1024, Persistent: true})
			g.run(diskcheck.Load{Requests: 200, Depth: 16, MaxSegments: 200, Reads: 40, Flushes: 5, Barriers: 3, Discards: 3})
			g.innocent()
		})
	}
}

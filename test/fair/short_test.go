// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/hostile"
)

// The short run is for a machine that is busy with other tests, where throughput says little.
// Two guests ask for more than there is, all the time and of the same kind, and one of them in
// many places. Each of them has to get its part of what was served, which does not depend
// on how much that was.
const (
	shortTime = time.Second
	shortBar  = 0.6 // of what the greedy guest gets
)

// TestShortVifs: a guest that floods a worker by four vifs with eight queues each gets no more
// than one with a single vif. By vif it would get four times as much.
func TestShortVifs(t *testing.T) {
	h := newHost(t, "--workers=1")
	h.guest(nil) // so that the bridge has its address
	greedy, modest := h.crew(1, 4, 8, true), h.crew(1, 1, 8, true)
	args := hostile.LoadArgs{Load: hostile.Flood, Dst: []string{h.bridgeMAC()}}
	endGreedy, endModest := greedy.load(args), modest.load(args)
	slots := func(c *crew) uint64 { return c.counter(dataplane.TxSlots.String()) }
	h.wait("both floods", func() bool { return slots(greedy) > 0 && slots(modest) > 0 })
	g, m := slots(greedy), slots(modest)
	<-time.After(shortTime)
	g, m = slots(greedy)-g, slots(modest)-m
	sg, sm := endGreedy(), endModest()
	shortShare(t, g, m, sg, sm, greedy.counter(dataplane.SlowCopies.String())+modest.counter(dataplane.SlowCopies.String()))
}

// TestShortDisks: a guest that reads and writes by eight queues gets no more than one with a
// single queue. By thread it would get eight times as much.
func TestShortDisks(t *testing.T) {
	h := newDiskHost(t)
	greedy, modest := h.diskCrew(8, false), h.diskCrew(1, false)
	args := hostile.LoadArgs{Load: hostile.DiskRandom}
	endGreedy, endModest := greedy.load(args), modest.load(args)
	<-time.After(shortTime)
	sg, sm := endGreedy(), endModest()
	shortShare(t, sg.Done, sm.Done, sg, sm, 0)
}

// shortShare compares what two guests got. After a slow copy a guest has a worker of its own: on
// a busy machine the embedded Xen may take that long.
func shortShare(t *testing.T, greedy, modest uint64, sg, sm hostile.Strength, slow uint64) {
	t.Helper()
	share := float64(modest) / float64(greedy)
	empty := float64(sm.Empty) / float64(max(sm.Looks, 1))
	t.Logf("greedy %d, modest %d: %.2f; rings empty at %d of %d looks and at %d of %d", greedy, modest, share, sg.Empty, sg.Looks, sm.Empty, sm.Looks)
	switch {
	case greedy == 0 || modest == 0:
		t.Error("there was no load")
	case share >= shortBar:
	case slow > 0:
		t.Skip("the machine is too busy: copies of the embedded Xen seem slow")
	case empty > 0.05:
		t.Skip("the machine is too busy: the modest guest's process does not run often enough to keep its rings full")
	default:
		t.Errorf("the modest guest gets %.2f of what the greedy one gets", share)
	}
}

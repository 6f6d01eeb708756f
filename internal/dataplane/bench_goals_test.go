// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/pkg/netif"
)

// findIn returns a function that finds a group, or an empty one.
func findIn(rep *bench.Report) func(name string) *bench.Result {
	return func(name string) *bench.Result {
		for i := range rep.Results {
			if rep.Results[i].Name == name {
				return &rep.Results[i]
			}
		}
		return &bench.Result{}
	}
}

// goals compares the figures with the goals.
func goals(rep *bench.Report, l *lane, h *filler, packets uint64) error {
	find := findIn(rep)
	if r := find("guest to host, 64 B"); len(r.Figures) > 0 {
		b64, b1 := r.Figure(l.row(64)), r.Figure(l.row(1))
		rep.AtLeast("P9", "64 B guest to host, batch 64 against batch 1", b1.Median/b64.Median, 1.45, r.Void)
	}

	staticGoals(rep, l, find)

	frames := benchFrames()
	tx := func(b *benchFrame) func() error {
		slots := 1
		if len(b.frame) > netif.PageSize {
			slots = (len(b.frame)+netif.PageSize-1)/netif.PageSize + len(b.extras)
		}
		return func() error {
			l.takeTx()
			l.putTx(b, int(l.f.tx.Free())/slots)
			return nil
		}
	}
	backlog := uint64(0)
	rx := func(b *benchFrame, keep uint64) func() error {
		backlog = l.stat(RxPackets)
		return func() error {
			l.repost()
			got := l.stat(RxPackets)
			if n := keep - (backlog - got); n >= keep/2 {
				if err := h.fill(b, int(n)); err != nil {
					return err
				}
				backlog += n
			}
			l.queue().tapIn.ready = true
			return nil
		}
	}
	type counts struct{ calls, notifies, ops float64 }
	count := func(n uint64, feed func() error, done Counter) (counts, error) {
		if err := l.load(n/10, feed, done); err != nil { // get going
			return counts{}, err
		}
		get := func() [5]float64 {
			return [5]float64{
				float64(l.stat(done)), float64(l.stat(Syscalls) + l.polls), float64(l.stat(Notifies)),
				float64(l.stat(GrantOps)), float64(l.stat(GrantCalls)),
			}
		}
		a := get()
		err := l.load(n, feed, done)
		b := get()
		for i := range b {
			b[i] -= a[i]
		}
		return counts{b[1] / b[0], b[2] / b[0], b[3] / b[4]}, err
	}
	for _, dir := range []struct {
		name string
		done Counter
		feed func(b *benchFrame, keep uint64) func() error
	}{
		{"guest to host", TxPackets, func(b *benchFrame, _ uint64) func() error { return tx(b) }},
		{"host to guest", RxPackets, rx},
	} {
		small, err := count(100_000, dir.feed(&frames[0], 400), dir.done)
		if err != nil {
			return err
		}
		large, err := count(2_000, dir.feed(&frames[2], 60), dir.done)
		if err != nil {
			return err
		}
		rep.AtLeast("P9", dir.name+", copy operations per call under load", small.ops, 32, false)
		if l.w.uring.ring != nil { // else one for each packet at least
			rep.AtMost("P10", dir.name+", system calls per 64 B packet under load", small.calls, 1.0/32, false)
		}
		rep.AtMost("P10", dir.name+", notifications per 64 B packet under load", small.notifies, 1.0/64, false)
		rep.AtMost("P10", dir.name+", notifications per 64 KiB frame under load", large.notifies, 1.0/4, false)
	}

	var before, after runtime.MemStats
	feed := tx(&frames[0])
	for try := range 2 {
		if err := l.load(1000, feed, TxPackets); err != nil {
			return err
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		if err := l.load(packets, feed, TxPackets); err != nil {
			return err
		}
		runtime.ReadMemStats(&after)
		// Now and then the runtime itself allocates; the data path would by
		// the thousand.
		if n := after.Mallocs - before.Mallocs; n == 0 || n > 10 || try == 1 {
			break
		}
	}
	million := float64(packets) / 1e6
	rep.AtMost("P11", fmt.Sprintf("allocations in %.3g million 64 B packets", million), float64(after.Mallocs-before.Mallocs), 0, false)
	rep.AtMost("P11", fmt.Sprintf("garbage collections in %.3g million 64 B packets", million), float64(after.NumGC-before.NumGC), 0, false)
	return nil
}

// shareGoal is the share of its room that a lane is to reach.
const shareGoal = 0.97

// shareRow is a goal about a share of the room. Its bar is the share that is reached now.
type shareRow struct {
	goal, group, lane string
	batch             int
	bar               float64
}

// shareRows returns these goals. best is the lane with the best calls of this host.
func shareRows(best string) []shareRow {
	return []shareRow{
		{"P1", "guest to host, 64 B", best, 64, shareGoal},
		{"P2", "guest to host, 1514 B", best, 64, shareGoal},
		// A read takes so little time that 14 ns are all that is left for a packet.
		{"P3", "host to guest, 64 B", best, 128, 0.95},
		// The fixed cost of a turn, some 300 ns, is shared by 40 packets only.
		{"P3", "host to guest, 64 B, backlog 40", best, 40, 0.94},
		{"P3", "host to guest, 1514 B", best, 128, shareGoal},
		{"P4", "guest to host, 64 B", staticPlain, 64, shareGoal},
		{"P4", "host to guest, 64 B", staticPlain, 128, 0.95},
		// 18 slots, each of which is checked, looked up and answered in ring and journal,
		// some 10 ns.
		{"P5", "guest to host, 64 KiB GSO", best, 8, 0.90},
		{"P5", "host to guest, 64 KiB GSO", best, 8, 0.90},
	}
}

// share returns the share that the goal's lane reaches in its group.
func (g *shareRow) share(r *bench.Result) bench.Bounded {
	return r.Share(roomOf(r, g.lane).Peer, fmt.Sprintf("%s, batch %d", g.lane, g.batch))
}

// roomOf returns the row of a lane's floor. If netbackd chooses between calls of two kinds, as
// it does for reads, it is the faster one.
func roomOf(r *bench.Result, lane string) bench.Figure {
	calls, ring := r.Figure(roomCalls), r.Figure(roomRing)
	tx := strings.HasPrefix(r.Name, "guest to host")
	if lane == staticUring && ring.Median > 0 && (tx || ring.Median < calls.Median) {
		return ring
	}
	return calls
}

// short returns by how much the shares of a group miss their bars, at most.
func (t *benchTable) short(r *bench.Result) (most float64) {
	best := staticUring
	if t.ring == nil {
		best = staticPlain
	}
	for _, g := range shareRows(best) {
		if g.group == r.Name {
			most = max(most, g.bar-g.share(r).High)
		}
	}
	return most
}

// staticGoals compares lanes of static grants with bare calls and with copying.
func staticGoals(rep *bench.Report, copies *lane, find func(string) *bench.Result) {
	best := staticUring
	if copies.w.uring.ring == nil {
		best = staticPlain
	}
	for _, g := range shareRows(best) {
		if r := find(g.group); len(r.Figures) > 0 {
			rep.Share(g.goal, fmt.Sprintf("%s, %s: share of the room", g.group, strings.TrimPrefix(g.lane, "netbackd, ")),
				g.share(r), g.bar, roomOf(r, g.lane).Median)
			rep.Aim(shareGoal)
		}
	}
	// What a grant copy adds is part of the room, and so is the time of the calls.
	ratios := func(r *bench.Result, dir string, batch int) {
		for _, c := range []struct{ name, each string }{{copies.name, "batch"}, {"netbackd, a grant copy for each packet", "packet"}} {
			room := roomOf(r, best)
			share := r.Each(func(ns []float64) float64 {
				copied, own, calls := ns[0], ns[1], ns[2]
				return copied / own / ((copied - own + calls) / calls)
			}, fmt.Sprintf("%s, batch %d", c.name, batch), fmt.Sprintf("%s, batch %d", best, batch), room.Peer)
			rep.Share("P8", fmt.Sprintf("64 B %s, gain of static grants over a grant copy for each %s: share of the room", dir, c.each), share, 0.95, room.Median)
			rep.Aim(shareGoal)
		}
	}
	if r := find("guest to host, 64 B"); len(r.Figures) > 0 {
		ratios(r, "guest to host", 64)
	}
	if r := find("host to guest, 64 B"); len(r.Figures) > 0 {
		ratios(r, "host to guest", 128)
	}
}

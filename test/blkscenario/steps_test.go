// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
)

// healthy checks that the daemon, which has killed itself, did not fail inside before.
func (w *world) healthy() {
	w.t.Helper()
	said := w.Daemon().Log()
	for _, bad := range []string{"internal error", "DATA RACE", "panic"} {
		if strings.Contains(said, bad) {
			w.t.Fatalf("the daemon failed inside:\n%s", said)
		}
	}
}

// survived starts a daemon that lives, unless the death of a disk process has left one, and checks that the guest's load goes on with it, that
// each request has one answer, and that every sector is right. stop ends the load.
func (g *guest) survived(stop func() diskcheck.Result) {
	g.w.t.Helper()
	if g.w.Daemon().Ended() {
		g.w.must(g.w.StartDaemon(g.w.ctx))
	}
	g.serving()
	g.waitCounter("okay", 50)
	res := stop()
	g.innocent()
	s := g.status()
	if !s.Connection.Adopted || g.read("state") != "4" {
		g.w.t.Errorf("state %s, connection %+v", g.read("state"), s.Connection)
	}
	g.w.t.Logf("%d requests, %d started again as far as the counters were saved", res.Requests, s.Counters["readopted"])
}

// times returns the times at which a daemon dies at a step: the first, and later ones.
func times() []int {
	t := []int{1}
	for len(t) < *kills/2 {
		t = append(t, 2+rand.IntN(40))
	}
	return t
}

// TestKilledAtEachStep lets the daemon kill itself at each step of a queue, under a load with
// flushes: when it is there first, which may be in the work that its predecessor left, and at
// later times. A chain of successors serves the guest, which notices pauses.
func TestKilledAtEachStep(t *testing.T) {
	copies := blkfront.Config{Queues: 2, Indirect: 256}
	maps := blkfront.Config{Queues: 2, Indirect: 256, Persistent: true}
	for _, tt := range []struct {
		name  string
		front blkfront.Config
		args  []string
	}{
		{"copies", copies, []string{"--persistent=false"}},
		{"copies, pool of threads", copies, []string{"--persistent=false", "--io-uring=false"}},
		{"persistent grants", maps, nil},
		{"persistent grants, pool of threads", maps, []string{"--io-uring=false"}},
		{"persistent grants, direct", maps, []string{"--cache=direct"}},
		{"disk processes", maps, []string{"--isolate=shared"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.args...)
			g := w.guest(tt.front)
			stop := g.running(endless(mixed))
			g.waitCounter("okay", 20)
			w.Daemon().Kill()
			for _, step := range blkplane.Steps() {
				for _, n := range times() {
					w.must(w.DieAt(w.ctx, step, n))
					w.healthy()
				}
			}
			g.survived(stop)
		})
	}
}

// TestKilledAtTheFirstStep lets the daemon kill itself when a new connection reaches a step for
// the first time.
func TestKilledAtTheFirstStep(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Indirect: 64, Persistent: true})
	for _, step := range blkplane.Steps() {
		t.Run(step, func(t *testing.T) {
			w, g := w.in(t), g.in(t)
			w.must(g.Disconnect(w.ctx, ""))
			w.Daemon().Kill() // it serves nothing, so its successor finds nothing to do
			w.must(w.StartDaemon(w.ctx, w.KillAt(step, 1)))
			g.reconnect(nil)
			stop := g.running(endless(mixed))
			w.must(w.AwaitDeath(w.ctx, step, 1))
			w.healthy()
			g.survived(stop)
		})
	}
}

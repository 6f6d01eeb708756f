// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// kills is the number of times that each test kills the daemon.
var kills = flag.Int("kills", 4, "times that each test kills the daemon")

// endless is the mixed load without an end.
func endless(l diskcheck.Load) diskcheck.Load {
	l.Requests = 0
	return l
}

// serving waits until the daemon serves the disk's requests.
func (g *guest) serving() vbd.Status {
	g.w.t.Helper()
	return g.wait("the disk to be served", func(s *vbd.Status) bool { return s.Waits == "" && s.Connection != nil })
}

// journals returns the names of the journals in the run directory.
func (w *world) journals() (names []string) {
	all, err := os.ReadDir(w.RunDir())
	w.must(err)
	for _, e := range all {
		if strings.HasPrefix(e.Name(), "ring-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestKilledAgainAndAgain kills the daemon at random moments under a load with flushes. The
// guest notices a pause: no request fails, none is answered twice, and every sector is right.
func TestKilledAgainAndAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		front blkfront.Config
		args  []string
		load  diskcheck.Load
	}{
		{"copies, one queue", blkfront.Config{Indirect: 256}, []string{"--persistent=false"}, mixed},
		{"four queues, persistent grants", blkfront.Config{Queues: 4, Order: 2, Indirect: 256, Persistent: true}, nil, mixed},
		{"pool of threads", blkfront.Config{Queues: 2, Indirect: 64}, []string{"--io-uring=false"}, mixed},
		{"large requests, direct", blkfront.Config{Indirect: 4096, Pages: 4096}, []string{"--cache=direct", "--max-indirect-segments=4096"},
			diskcheck.Load{Depth: 4, MinSegments: 300, MaxSegments: 1500, Reads: 20, Flushes: 20, Seed: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.args...)
			g := w.guest(tt.front)
			stop := g.running(endless(tt.load))
			var away []time.Duration
			for range *kills {
				g.waitCounter("okay", 20+rand.Uint64N(40))
				w.Daemon().Kill()
				begin := time.Now()
				w.must(w.StartDaemon(w.ctx))
				g.serving()
				away = append(away, time.Since(begin).Round(time.Millisecond))
			}
			res := stop()
			slices.Sort(away)
			t.Logf("%d kills, until served again %v, the slowest %v; %d requests, %d of them started again", len(away),
				away[len(away)/2], away[len(away)-1], res.Requests, g.status().Counters["readopted"])
			g.innocent()
			if s := g.status(); !s.Connection.Adopted || g.read("state") != "4" {
				t.Errorf("state %s, connection %+v", g.read("state"), s.Connection)
			}
		})
	}
}

// TestStoppedUnderLoadAndStartedAgain: for the guest an orderly stop is like a kill.
func TestStoppedUnderLoadAndStartedAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Queues: 2, Indirect: 256})
	stop := g.running(endless(mixed))
	for range 3 {
		g.waitCounter("okay", 50)
		begin := time.Now()
		w.must(w.Daemon().Stop())
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("it took %v to stop", d)
		}
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	stop()
	g.innocent()
}

// TestGarbageInPlaceOfAJournal: a journal may have any content after a crash of the machine.
// The daemon does not know which requests were in flight then, and gives up the connection. The
// guest's next one is served.
func TestGarbageInPlaceOfAJournal(t *testing.T) {
	w := newWorld(t)
	g := w.guest(blkfront.Config{Indirect: 256})
	for name, damage := range map[string]func(path string) error{
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"cut off": func(p string) error { return os.Truncate(p, 100) },
		"noise":   func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("\xa5\x5a\xff", 3000)), 0o600) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			w, g := w.in(t), g.in(t)
			g.run(mixed)
			w.Daemon().Kill()
			names := w.journals()
			if len(names) == 0 {
				t.Fatal("there are no journals")
			}
			for _, n := range names {
				w.must(damage(filepath.Join(w.RunDir(), n)))
			}
			w.must(w.StartDaemon(w.ctx))
			g.wait("the connection to be given up", func(s *vbd.Status) bool { return s.State == xenbus.Closed && s.Connection == nil })
			g.reconnect(nil)
			g.run(mixed)
			g.innocent()
		})
	}
}

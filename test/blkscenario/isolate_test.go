// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/confinetest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/vbd"
)

// onlyProcess returns the number of the only disk process.
func (w *world) onlyProcess() int {
	w.t.Helper()
	d, err := w.Client().Daemon(w.ctx)
	w.must(err)
	if len(d.Processes) != 1 || d.Processes[0].PID == 0 {
		w.t.Fatalf("disk processes %+v, want one that runs", d.Processes)
	}
	return d.Processes[0].PID
}

// TestDiskProcessKilledUnderLoad kills the disk process at random moments under a load with
// flushes. The guest notices a pause: no request fails, none is answered twice, every sector is
// right, and its state in xenstore stays. Counters go on.
func TestDiskProcessKilledUnderLoad(t *testing.T) {
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
			w := newWorld(t, append(tt.args, "--isolate=shared")...)
			g := w.guest(tt.front)
			stop := g.running(endless(tt.load))
			var away []time.Duration
			last := uint64(0)
			for range *kills {
				g.waitCounter("okay", 20)
				pid, since := w.onlyProcess(), g.status().Connection.Since
				begin := time.Now()
				w.must(unix.Kill(pid, unix.SIGKILL))
				s := g.wait("another process to serve", func(s *vbd.Status) bool {
					return s.Waits == "" && s.Connection != nil && s.Connection.Since.After(since)
				})
				away = append(away, time.Since(begin).Round(time.Millisecond))
				if now := s.Counters["okay"]; now < last {
					t.Errorf("answers went from %d to %d", last, now)
				} else {
					last = now
				}
				if !s.Connection.Adopted || g.read("state") != "4" {
					t.Errorf("state %s, connection %+v", g.read("state"), s.Connection)
				}
			}
			g.waitCounter("okay", 20)
			res := stop()
			slices.Sort(away)
			t.Logf("%d kills, until served again %v, the slowest %v; %d requests, %d of them started again", len(away),
				away[len(away)/2], away[len(away)-1], res.Requests, g.status().Counters["readopted"])
			g.innocent()
		})
	}
}

// TestDaemonOfADiskProcessKilled: a disk process ends with its daemon, and a successor continues
// with one of its own.
func TestDaemonOfADiskProcessKilled(t *testing.T) {
	w := newWorld(t, "--isolate=guest")
	g := w.guest(blkfront.Config{Queues: 2, Indirect: 256})
	stop := g.running(endless(mixed))
	for range 3 {
		g.waitCounter("okay", 20)
		pid := w.onlyProcess()
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.serving()
		if now := w.onlyProcess(); now == pid {
			t.Errorf("process %d serves again", pid)
		}
	}
	stop()
	g.innocent()
}

// TestIsolatedGuests: a guest whose disk process dies does not disturb another one.
func TestIsolatedGuests(t *testing.T) {
	w := newWorld(t, "--isolate=guest")
	a, b := w.guest(blkfront.Config{}), w.guest(blkfront.Config{})
	since := b.status().Connection.Since
	d, err := w.Client().Daemon(w.ctx)
	w.must(err)
	if len(d.Processes) != 2 {
		t.Fatalf("disk processes %+v, want two", d.Processes)
	}
	before := a.status().Connection.Since
	w.must(unix.Kill(d.Processes[0].PID, unix.SIGKILL)) // of the domain with the lower number
	a.wait("another process to serve", func(s *vbd.Status) bool {
		return s.Waits == "" && s.Connection != nil && s.Connection.Since.After(before)
	})
	for _, g := range []*guest{a, b} {
		g.run(mixed)
		g.innocent()
	}
	if now := b.status().Connection.Since; !now.Equal(since) {
		t.Errorf("the other guest was connected again, at %v", now)
	}
}

// TestDiskProcessIsConfined: a disk process that serves has no rights, and only files of the
// kinds that it was handed.
func TestDiskProcessIsConfined(t *testing.T) {
	w := newWorld(t, "--isolate=shared")
	g := w.guest(blkfront.Config{Queues: 2, Persistent: true})
	g.run(mixed)
	pid := w.onlyProcess()
	if err := confinetest.CheckRights(pid); err != nil {
		t.Error(err)
	}
	// The devices of an embedded Xen are sockets and pipes, and pages of guests are in memory
	// files.
	kinds := []string{
		`socket:\[\d+\]`, `pipe:\[\d+\]`, `/memfd:.*`, `anon_inode:\[io_uring\]`, `anon_inode:\[eventfd\]`,
		g.image,
	}
	if err := confinetest.CheckFiles(pid, kinds...); err != nil {
		t.Error(err)
	}
}

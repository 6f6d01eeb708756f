// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/vif"
)

// packetProcesses returns the numbers of the daemon's packet processes that live.
func (w *world) packetProcesses() (pids []int) {
	w.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.Daemon().PID()))
	w.must(err)
	for _, task := range tasks {
		// A thread may have ended meanwhile.
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", w.Daemon().PID(), task.Name()))
		for _, text := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(text)
			w.must(err)
			if cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(cmd), "packet-process") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// onlyProcess returns the number of the only packet process.
func (w *world) onlyProcess() int {
	w.t.Helper()
	pids := w.packetProcesses()
	if len(pids) != 1 {
		w.t.Fatalf("packet processes %v, want one", pids)
	}
	return pids[0]
}

// ended waits until a process has ended.
func (w *world) ended(pid int) {
	w.t.Helper()
	w.wait(fmt.Sprintf("process %d to end", pid), func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

// TestPacketProcessKilledUnderTraffic kills the packet process again and again, under traffic
// in both directions on four queues. The streams arrive whole, the guest and the host's network
// see nothing of it, and counters go on.
func TestPacketProcessKilledUnderTraffic(t *testing.T) {
	w := newWorld(t, "--isolate=shared")
	g := w.guest(queues(4))
	state := w.record(w.BackPath(g.Domid, g.Devid) + "/state")
	carrier := w.carrierChanges(g)
	whole := []func(){g.streaming(48 << 20), g.streamed(48 << 20)}
	var away times
	var last uint64
	const life = 600 * time.Millisecond // of a process, with the time until it serves
	begin := time.Now()
	for range 20 {
		// One that dies right after its start is not started again at once.
		time.Sleep(time.Until(begin.Add(life)))
		before := w.onlyProcess()
		begin = time.Now()
		w.must(unix.Kill(before, unix.SIGKILL))
		s := g.waitStatus("another process to serve", func(s *vif.Status) bool {
			pids := w.packetProcesses()
			return len(s.Queues) == 4 && len(pids) == 1 && pids[0] != before
		})
		away = append(away, time.Since(begin))
		now := s.Counters["tx_packets"]
		if now < last {
			t.Errorf("tx_packets went from %d to %d", last, now)
		}
		last = now
		g.pings(2)
	}
	for _, f := range whole {
		f()
	}
	t.Logf("from the kill until served again: %v", away)
	g.innocentAfterKill()
	g.pings(5)
	if got := state.values(); !slices.Equal(got, []string{"4"}) {
		t.Errorf("the guest was told: the backend went %v", got)
	}
	if got := w.carrierChanges(g); got != carrier {
		t.Errorf("the carrier changed %d times", got-carrier)
	}
}

// carrierChanges returns how often the carrier of the guest's interface has changed.
func (w *world) carrierChanges(g *testGuest) int {
	w.t.Helper()
	b, err := os.ReadFile("/sys/class/net/" + g.status().Interface + "/carrier_changes")
	if err != nil {
		return 0 // another network namespace than that of this sysfs
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	w.must(err)
	return n
}

// TestDaemonOfAPacketProcessKilled: a packet process ends with its daemon, and a successor
// continues with one of its own.
func TestDaemonOfAPacketProcessKilled(t *testing.T) {
	w := newWorld(t, "--isolate=shared")
	g := w.guest(queues(2))
	whole := g.streaming(32 << 20)
	for range 3 {
		g.pings(2)
		pid := w.onlyProcess()
		w.Daemon().Kill()
		w.ended(pid)
		w.must(w.StartDaemon(w.ctx))
		g.serving()
	}
	whole()
	g.innocentAfterKill()
}

// TestStoppedPacketProcessCostsItsGuest: with a process for each guest, one that is stopped
// delays no other guest. The daemon replaces it when it notices.
func TestStoppedPacketProcessCostsItsGuest(t *testing.T) {
	w := newWorld(t, "--isolate=guest")
	bad := w.guest()
	pid := w.onlyProcess()
	good := w.guest()
	if n := len(w.packetProcesses()); n != 2 {
		t.Fatalf("%d packet processes for two guests", n)
	}
	w.must(unix.Kill(pid, unix.SIGSTOP))
	begin := time.Now()
	good.pings(5)
	good.tcpToHost(4 << 20)
	good.reconnect()
	if d := time.Since(begin); d > patience/4 {
		t.Errorf("the other guest took %v", d)
	}
	bad.serving() // which asks the process, and so finds that it does not answer
	w.ended(pid)
	bad.pings(3)
	bad.well()
	good.innocent()
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"

	"github.com/netbackd/netbackd/internal/lab/confinetest"
)

// TestPacketProcessConfined: a packet process with traffic has no right, and only files of the
// kinds that the broker hands over.
func TestPacketProcessConfined(t *testing.T) {
	w := newWorld(t, "--isolate=shared")
	g := w.guest(queues(2), withControl())
	g.tcpToHost(1 << 20)
	d, err := w.Control().Daemon(w.ctx)
	w.must(err)
	if len(d.Processes) != 1 || d.Processes[0].PID == d.PID {
		t.Fatalf("packet processes: %+v", d.Processes)
	}
	pid := d.Processes[0].PID
	if err := confinetest.CheckRights(pid); err != nil {
		t.Error(err)
	}
	// The devices of an embedded Xen are sockets and pipes, and pages of guests are in memory
	// files.
	kinds := []string{
		`socket:\[\d+\]`, `pipe:\[\d+\]`, `/memfd:.*`, `anon_inode:\[io_uring\]`, `/dev/net/tun`,
		w.RunDir() + `/[^/]*`,             // journals
		`/proc/\d+/task/\d+/(sched)?stat`, // of its workers
	}
	if err := confinetest.CheckFiles(pid, kinds...); err != nil {
		t.Error(err)
	}
}

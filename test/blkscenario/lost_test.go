// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// lossy makes a disk whose writes are answered and then lost: a loop device in the page cache of
// the host, on a file system without room. more makes room.
func (w *world) lossy() (dev string, more func()) {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		w.t.Skipf("no file system of a limited size: %v", err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	image := dir + "/disk.img"
	f, err := os.Create(image)
	w.must(err)
	w.must(f.Truncate(sectors * 512))
	w.must(f.Close())
	return w.loop(image), func() {
		w.t.Helper()
		w.must(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"))
	}
}

// flush flushes the disk by a queue.
func (g *guest) flush(queue int, want blkif.Status) {
	g.w.t.Helper()
	a, err := g.Request(g.w.ctx, blkguest.RequestArgs{Queue: queue, Op: blkif.OpFlush})
	if err != nil || a.Status != want {
		g.w.t.Errorf("flush by queue %d: %v, %v, want %v", queue, a.Status, err, want)
	}
}

// TestLostWriteIsRemembered: the kernel reports data that it could not write once. So once a flush
// has failed none of that connection succeeds, by no queue, also if another process serves it
// then and the disk works again. A guest that connects anew knows that its data is lost.
func TestLostWriteIsRemembered(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		kill func(*world, *guest)
	}{
		{"daemon", nil, func(w *world, g *guest) {
			w.Daemon().Kill()
			w.must(w.StartDaemon(w.ctx))
		}},
		{"disk process", []string{"--isolate=shared"}, func(w *world, g *guest) {
			since := g.status().Connection.Since
			w.must(unix.Kill(w.onlyProcess(), unix.SIGKILL))
			g.wait("another process to serve", func(s *vbd.Status) bool {
				return s.Waits == "" && s.Connection != nil && s.Connection.Since.After(since)
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, append(tt.args, "--cache=writeback")...)
			dev, more := w.lossy()
			g := w.guest(blkfront.Config{Queues: 2, Indirect: 64}, func(v *toolstack.Vbd) { v.Target = dev })
			writes := diskcheck.Load{Requests: 32, Depth: 8, MinSegments: 64, MaxSegments: 64, Sequential: true, Unchecked: true}
			g.run(writes)
			g.flush(0, blkif.StatusError)
			more()
			for range 2 {
				tt.kill(w, g)
				g.serving()
				g.run(writes)
				g.flush(1, blkif.StatusError)
				g.flush(0, blkif.StatusError)
			}
			g.reconnect(nil)
			g.flush(0, blkif.StatusOkay)
			g.flush(1, blkif.StatusOkay)
		})
	}
}

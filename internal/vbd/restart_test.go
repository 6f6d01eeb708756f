// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestRestart: a successor serves the rings of a connected guest, which sees no change in
// xenstore, and whose requests are answered.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.up(2, 1)
	w.works(0)
	w.works(1)
	for range 3 {
		w.stop()
		id, _ := w.begin(1, blkif.OpWrite, 16, 9) // while no daemon runs
		w.start()
		w.wantSteps("open connect")
		if got, want := w.response(1), (blkif.Response{ID: id, Op: blkif.OpWrite}); got != want {
			t.Errorf("answered with %+v, want %+v", got, want)
		}
		w.works(0)
		if s := w.v.status(); !s.Connection.Adopted || s.State != xenbus.Connected {
			t.Errorf("status %+v", s)
		}
	}
	if got := w.v.status().Counters["writes"]; got != 3+2+3 {
		t.Errorf("%d writes in all, want 8", got)
	}
}

// TestKilledInFlight: requests that were at the disk when the daemon was killed are started
// again by its successor.
func TestKilledInFlight(t *testing.T) {
	w := newWorld(t)
	s := &stuck{began: make(chan struct{}), released: make(chan struct{})}
	w.v.disk.openFile = func(context.Context, disk.Options) (*disk.Disk, error) {
		return disk.New("stuck", disk.Geometry{Sectors: imageSectors}, s), nil
	}
	w.up(1, 0)
	id, _ := w.begin(0, blkif.OpWrite, 0, 5)
	<-s.began
	files := w.snapshot()
	ring, front := string(w.rings[0].mem), *w.rings[0].front
	close(s.released)
	w.response(0)
	w.stop()
	// What the predecessor did after it was killed has not happened.
	w.restore(files)
	copy(w.rings[0].mem, ring)
	*w.rings[0].front = front
	w.start()
	w.wantSteps("open connect")
	if got, want := w.response(0), (blkif.Response{ID: id, Op: blkif.OpWrite}); got != want {
		t.Errorf("answered with %+v, want %+v", got, want)
	}
	if got := w.io(0, blkif.OpRead, 0, 0); got[0] != 5 {
		t.Errorf("read %d, want the data of the write in flight", got[0])
	}
}

// snapshot returns the files in the run directory.
func (w *world) snapshot() map[string][]byte {
	w.t.Helper()
	files := map[string][]byte{}
	for _, name := range strings.Fields(w.files()) {
		b, err := os.ReadFile(filepath.Join(w.cfg.RunDir, name))
		w.must(err)
		files[name] = b
	}
	return files
}

func (w *world) restore(files map[string][]byte) {
	w.t.Helper()
	for name, b := range files {
		w.must(os.WriteFile(filepath.Join(w.cfg.RunDir, name), b, 0o600))
	}
}

// TestRestartStates: a successor goes on from every state of the vbd.
func TestRestartStates(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reach func(w *world)
		want  string
	}{
		{"init-wait", func(w *world) { w.attach(); w.wantSteps("init-wait") }, ""},
		{"disk open", func(w *world) { w.attach("hotplug-status", "connected"); w.wantSteps("init-wait open") }, "open"},
		{"closing", func(w *world) { w.up(1, 0); w.frontState(xenbus.Closing); w.wantSteps("closing") }, "open connect"},
		{"closed", func(w *world) { w.up(1, 0); w.frontState(xenbus.Closed); w.wantSteps("disconnect closing closed") }, ""},
		{"reconnected", func(w *world) {
			w.up(1, 0)
			w.stop()
			w.publish(2, 0)
			w.frontState(xenbus.Initialised)
		}, "open connect connected"},
		{"initialising again", func(w *world) { w.up(1, 0); w.stop(); w.frontState(xenbus.Initialising) }, "closing closed init-wait open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			tt.reach(w)
			w.restart()
			w.wantSteps(tt.want)
		})
	}
}

// TestOtherSettings: a successor with other settings keeps to what its predecessor offered.
func TestOtherSettings(t *testing.T) {
	w := newWorld(t)
	w.up(4, 4)
	w.cfg.MaxQueues, w.cfg.MaxOrder, w.cfg.MaxSegments, w.cfg.Persistent = 1, 0, 0, false
	w.restart()
	w.wantSteps("open connect")
	w.works(3)
	w.indirect(3, 256)
	if s := w.v.status().Connection; s.MaxSegments != 256 || s.Persistent || s.RingOrder != 4 || len(s.Queues) != 4 {
		t.Errorf("connection %+v", s)
	}
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closing closed")
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait")
	w.wantKeys("feature-max-indirect-segments", "-", "multi-queue-max-queues", "1", "max-ring-page-order", "0")
	if got := w.files(); got != "vbd-7-51712" {
		t.Errorf("files %s", got)
	}
}

// indirect makes a read of n segments of one page each, all in the same page, and checks that
// it is answered with OKAY.
func (w *world) indirect(queue, n int) {
	w.t.Helper()
	data, _ := w.host.Grant(gntdev.ReadWrite)
	list, page := w.host.Grant(gntdev.ReadWrite)
	for i := range n {
		binary.NativeEndian.PutUint32(page[8*i:], uint32(data))
		page[8*i+4], page[8*i+5] = 0, 0
	}
	r := &w.rings[queue]
	q := blkif.Request{Op: blkif.OpIndirect, Inner: blkif.OpRead, ID: uint64(list), NrSegments: uint16(n)}
	q.Grefs[0] = list
	r.front.Put(&q)
	if r.front.Push() {
		w.must(w.host.Send(r.keys.port))
	}
	if got, want := w.response(queue), (blkif.Response{ID: q.ID, Op: blkif.OpRead}); got != want {
		w.t.Errorf("%d segments are answered with %+v, want %+v", n, got, want)
	}
}

// TestRaisedOffer: a vbd that was taken from another back end before its guest has looked
// offers all that it has, and serves a guest that follows the offer of the other one.
func TestRaisedOffer(t *testing.T) {
	w := newWorld(t)
	w.cfg.MaxSegments, w.cfg.MaxQueues, w.cfg.MaxOrder = 1024, 2, 0
	w.restart()
	w.attach("state", "2", "feature-max-indirect-segments", "32", "multi-queue-max-queues", "8", "max-ring-page-order", "1")
	w.wantSteps("")
	w.wantKeys("feature-max-indirect-segments", "1024", "multi-queue-max-queues", "8", "max-ring-page-order", "1")
	w.publish(8, 1)
	w.plugIn()
	w.frontState(xenbus.Initialised)
	w.wantSteps("open connect connected")
	w.works(7)
}

// TestPersistentAfterRestart: a guest that was told that its pages do not stay mapped ends
// their grants, so a successor that could keep them does not.
func TestPersistentAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.cfg.Persistent = false
	w.restart()
	w.up(1, 0)
	w.wantKeys("feature-persistent", "0")
	w.cfg.Persistent = true
	w.restart()
	w.wantSteps("open connect")
	w.works(0)
	if w.v.status().Connection.Persistent || w.host.Usage().Pages != 1 {
		t.Errorf("pages stay mapped: %v", w.host.Usage())
	}
}

// TestSectorSizeAfterRestart: a successor opens the disk for the sectors that the guest was
// told of, not for the larger ones that another cache mode would need.
func TestSectorSizeAfterRestart(t *testing.T) {
	w := newWorld(t)
	var asked []int
	open := w.v.disk.openFile
	watch := func(ctx context.Context, o disk.Options) (*disk.Disk, error) {
		asked = append(asked, o.SectorSize)
		return open(ctx, o)
	}
	w.v.disk.openFile = watch
	w.up(1, 0)
	w.wantKeys("sector-size", "512")
	w.restart()
	w.v.disk.openFile = watch
	w.wantSteps("open connect")
	w.works(0)
	if diff := cmp.Diff([]int{0, 512}, asked); diff != "" {
		t.Errorf("sector sizes asked for (-want +got):\n%s", diff)
	}
}

// TestLostJournal: without its journal nothing is known of requests in flight, so the guest
// has to connect anew.
func TestLostJournal(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.works(0)
	w.stop()
	w.must(os.Remove(filepath.Join(w.cfg.RunDir, journalName(testID, 0))))
	w.start()
	w.wantSteps("open connect closing closed")
	w.wantError("journal")
	w.frontState(xenbus.Closed)
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.works(0)
}

// TestReconnectUnseen: a guest that has connected anew while its states in between were
// missed is served on its new rings, although their grefs and ports are the old ones.
func TestReconnectUnseen(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.works(0)
	r := &w.rings[0]
	f, err := blkif.InitFront(r.mem, blkif.X8664)
	w.must(err)
	r.front = f
	w.frontState(xenbus.Initialised)
	w.wantSteps("disconnect connect connected")
	w.works(0)
}

// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"testing"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// dies plays the death of the process of the connection, whose operations have ended.
func (w *world) dies() {
	w.t.Helper()
	c := w.v.conn.now
	c.data.Close()
	<-c.data.Done()
	c.notices.die(errors.New("killed"))
}

// TestProcessDies: a vbd whose process dies opens its disk anew and serves the same rings, from
// their journals. The guest sees no change in xenstore, its requests are answered, and counters go
// on.
func TestProcessDies(t *testing.T) {
	w := newWorld(t)
	w.up(2, 1)
	w.works(0)
	w.works(1)
	before := w.files()
	for range 3 {
		w.dies()
		id, _ := w.begin(1, blkif.OpWrite, 16, 9) // while no process runs
		w.v.handleNotices(t.Context())
		w.eventually("the disk is closed", func() bool { return !w.locked() })
		if got := w.files(); got != before {
			t.Errorf("files %q, want %q", got, before)
		}
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

// TestProcessDiesThenDaemon: a daemon that ends before the vbd is connected again leaves what its
// successor needs.
func TestProcessDiesThenDaemon(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.works(0)
	w.dies()
	w.v.handleNotices(t.Context())
	w.restart()
	w.wantSteps("open connect")
	w.works(0)
	if s := w.v.status(); !s.Connection.Adopted {
		t.Errorf("status %+v", s)
	}
}

// TestProcessDiesWhileEnding: the disk of a connection whose process dies is closed, since its
// operations may still be under way: the lock tells when they have ended.
func TestProcessDiesWhileEnding(t *testing.T) {
	w := newWorld(t)
	opened := 0
	w.v.disk.openFile = func(ctx context.Context, o disk.Options) (*disk.Disk, error) {
		opened++
		return disk.Open(ctx, o)
	}
	w.up(1, 0)
	c := w.v.conn.now
	w.v.disconnect()
	c.notices.die(errors.New("killed"))
	w.v.handleNotices(t.Context())
	if w.v.conn.ending != nil || w.v.disk.open != nil {
		t.Errorf("the connection ends: %v; the disk is open: %v", w.v.conn.ending != nil, w.v.disk.open != nil)
	}
	w.eventually("the disk is closed", func() bool { return !w.locked() })
	w.frontState(xenbus.Closed)
	w.wantSteps("closing closed")
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait open")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.works(0)
	if opened != 2 {
		t.Errorf("the disk was opened %d times, want 2", opened)
	}
}

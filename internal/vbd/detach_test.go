// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestDetachForced: a guest that does not react loses its disk when its grace is over.
func TestDetachForced(t *testing.T) {
	w := newWorld(t)
	w.up(2, 1)
	w.detach()
	w.wantSteps("grace")
	if at := w.v.alarm.At(); at.IsZero() || at.Sub(w.v.detachAt) > 10*time.Millisecond {
		t.Errorf("the alarm is set for %v, the grace ends at %v", at, w.v.detachAt)
	}
	w.works(1) // it is served meanwhile
	w.v.detachAt = time.Now()
	w.wantSteps("disconnect release closed release")
	w.wantState("6")
	w.wantHeld(nothing)
}

// TestDetachInUse: a guest that refuses to close a disk, since it is in use, keeps it, until
// it closes or the toolstack forces the removal.
func TestDetachInUse(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"closed": func(w *world) { w.frontState(xenbus.Closed) },
		"forced": func(w *world) { w.must(w.tool.Remove(w.t.Context(), frontDir)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			w.up(1, 0)
			w.detach()
			w.wantSteps("grace")
			w.frontState(xenbus.Closing)
			w.wantSteps("closing")
			w.v.detachAt = time.Now()
			w.wantSteps("")
			w.works(0)
			if s := w.v.status(); !strings.Contains(s.Waits, "stop using the disk") {
				t.Errorf("waits for %q", s.Waits)
			}
			w.restart()
			w.wantSteps("open connect") // the successor serves it as well
			w.works(0)
			end(w)
			w.wantSteps("disconnect release closed release")
			w.wantState("6")
		})
	}
}

// TestDetachStates: a device whose guest is not connected is gone at once.
func TestDetachStates(t *testing.T) {
	for front, want := range map[xenbus.State]string{
		xenbus.Initialising: "release closed release", xenbus.Closed: "release closed release",
	} {
		w := newWorld(t)
		w.attach("hotplug-status", "connected")
		w.publish(1, 0)
		w.wantSteps("init-wait open")
		w.detach()
		if front == xenbus.Closed {
			w.frontState(front)
		}
		w.wantSteps(want)
		w.wantState("6")
		w.wantHeld(nothing)
		if w.locked() {
			t.Errorf("%v: the disk is locked", front)
		}
	}
}

// TestDomainGone: the disk of a guest that has crashed is freed at once.
func TestDomainGone(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.begin(0, blkif.OpWrite, 0, 1)
	w.must(w.tool.Release(t.Context(), domid))
	w.wantSteps("disconnect closing release closed release")
	w.wantState("6")
	w.wantHeld(nothing)
	if w.locked() || w.files() != "" {
		t.Errorf("locked %t, files %s", w.locked(), w.files())
	}
}

// TestDirectoryRemoved: the removal of the directory ends the vbd, and nothing is written
// any more.
func TestDirectoryRemoved(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.must(w.tool.Remove(t.Context(), "/local/domain/0/backend/vbd/7"))
	w.wantSteps("gone")
	w.stop()
	if got := w.get("/local/domain/0/backend/vbd/7"); got != "-" {
		t.Errorf("the directory is back: %q", got)
	}
	if got := w.files(); got != "" {
		t.Errorf("files %s", got)
	}
}

// TestNotResurrected: a device that the toolstack removes while the vbd writes stays removed.
func TestNotResurrected(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	n := 0
	w.xs.commit = func(*xenstore.Tx) {
		if n++; n == 2 { // that of Connected
			w.must(w.tool.Remove(t.Context(), backDir))
		}
	}
	w.wantSteps("init-wait open connect connected gone")
	if got := w.get(backDir); got != "-" {
		t.Errorf("the directory is back: %q", got)
	}
}

// TestDetachNotOverwritten: the toolstack's Closing is not overwritten by a step that was
// planned before.
func TestDetachNotOverwritten(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	n := 0
	w.xs.commit = func(*xenstore.Tx) {
		if n++; n == 2 {
			w.detach()
		}
	}
	w.wantSteps("init-wait open connect connected disconnect release closed release")
	w.wantState("6")
}

// TestMadeAgain: the toolstack removes the device and makes it again, and the vbd sees only
// the new one.
func TestMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.must(w.tool.Remove(t.Context(), backDir))
	w.must(w.tool.Remove(t.Context(), frontDir))
	w.attach()
	w.wantSteps("init-wait")
	w.eventually("the old rings are unmapped", func() bool { return w.host.held() == nothing })
	w.eventually("the disk is closed until the script of the new device is done", func() bool { return !w.locked() })
	w.plugIn()
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("open connect connected")
	w.works(0)
}

// stuck is a disk whose operations do not end until it is released.
type stuck struct {
	began    chan struct{}
	released chan struct{}
}

func (s *stuck) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func (s *stuck) WriteAt(p []byte, _ int64) (int, error) {
	close(s.began)
	<-s.released
	return len(p), nil
}

func (s *stuck) Sync() error                      { return nil }
func (s *stuck) Discard(int64, int64, bool) error { return nil }

// TestDiskHangs: a disk that does not end its operations keeps a guest from connecting
// again, since an old write could land on data that was written later. It does not keep the
// toolstack from removing the device.
func TestDiskHangs(t *testing.T) {
	w := newWorld(t)
	s := &stuck{began: make(chan struct{}), released: make(chan struct{})}
	w.v.disk.openFile = func(context.Context, disk.Options) (*disk.Disk, error) {
		return disk.New("stuck", disk.Geometry{Sectors: imageSectors}, s), nil
	}
	w.up(1, 0)
	w.begin(0, blkif.OpWrite, 0, 1)
	<-s.began
	w.frontState(xenbus.Closed)
	look := func(want string) {
		t.Helper()
		steps, _ := w.look()
		if got := strings.Join(steps, " "); got != want {
			t.Errorf("steps %q, want %q", got, want)
		}
	}
	look("disconnect")
	w.frontState(xenbus.Initialising)
	w.v.conn.ending.endBy = time.Now()
	look("")
	if got := w.v.status(); got.Waits != "the disk to end its operations" || !got.Connection.Ending {
		t.Errorf("status %+v", got)
	}
	w.detach()
	look("release closed")
	w.wantState("6")
	close(s.released)
	w.eventually("the connection has ended", func() bool { return w.host.held() == nothing })
}

// TestLockUntilEnd: a disk is locked until the last operation of a connection has ended, also
// when the vbd does not wait for that.
func TestLockUntilEnd(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	v := w.v
	c := v.conn.now
	v.conn.now, v.conn.ending, c.over = nil, c, make(chan struct{}) // as if operations were under way
	v.release()
	if !w.locked() {
		t.Error("the disk is free while a connection uses it")
	}
	c.data.Close()
	w.eventually("the disk is free", func() bool { return !w.locked() })
}

// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestTarget: the disk that the toolstack names is opened, in the way that it asks for.
func TestTarget(t *testing.T) {
	for _, tt := range []struct {
		name string
		t    target
		want disk.Options
		bad  string // part of the error
	}{
		{"a file", target{params: "/srv/a", mode: "w"}, disk.Options{Path: "/srv/a"}, ""},
		{"of blktap", target{params: "aio:/srv/a", mode: "w"}, disk.Options{Path: "/srv/a"}, ""},
		{"named by the script", target{params: "vg/a", physicalPath: "/dev/vg/a", mode: "w"}, disk.Options{Path: "/dev/vg/a"}, ""},
		{"read-only", target{params: "/srv/a", mode: "r"}, disk.Options{Path: "/srv/a", ReadOnly: true}, ""},
		{"without a mode", target{params: "/srv/a"}, disk.Options{Path: "/srv/a", ReadOnly: true}, ""},
		{"shared", target{params: "/srv/a", mode: "w!"}, disk.Options{Path: "/srv/a"}, ""},
		{"a cdrom", target{params: "/srv/a", mode: "w", deviceType: "cdrom"}, disk.Options{Path: "/srv/a", ReadOnly: true, CDROM: true}, ""},
		{"nothing", target{}, disk.Options{}, "no path"},
		{"another format", target{params: "vhd:/srv/a", mode: "w"}, disk.Options{}, "raw"},
	} {
		got, err := tt.t.options(disk.CacheDirect)
		if tt.bad != "" {
			if err == nil || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.bad)
			}
			continue
		}
		tt.want.Cache = disk.CacheDirect
		got.Waiting = nil
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", tt.name, err, diff)
		}
	}
}

// TestDiskMissing: a disk that is not there is an error, and the vbd waits in InitWait. It
// opens the disk when the toolstack names another one, or after a reset, or in time.
func TestDiskMissing(t *testing.T) {
	for name, repair := range map[string]func(w *world){
		"other params": func(w *world) { w.write(w.tool, backDir, "params", w.image) },
		"reset": func(w *world) {
			w.must(os.Rename(w.image, w.image+".x"))
			go func() { (<-w.v.mail.Calls)() }()
			if !w.v.Reset(t.Context()) {
				t.Error("not reset")
			}
		},
		"time": func(w *world) {
			w.must(os.Rename(w.image, w.image+".x"))
			if at := time.Until(w.v.alarm.At()); at <= 0 || at > reopenFailed {
				t.Errorf("the alarm is %v from now", at)
			}
			w.v.disk.retryAt = time.Now()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			w.attach("params", w.image+".x")
			w.plugIn()
			w.publish(1, 0)
			w.frontState(xenbus.Initialised)
			w.wantSteps("init-wait open")
			w.wantState("2")
			w.wantError("not found")
			if s := w.v.status(); s.Disk.Open || !strings.Contains(s.Waits, "disk") || s.Error == "" {
				t.Errorf("status %+v", s)
			}
			w.wantSteps("") // it does not keep itself busy
			repair(w)
			w.wantSteps("open connect connected")
			w.wantError("-")
			if name == "other params" {
				w.works(0)
			}
		})
	}
}

// TestDiskLocked: a vbd waits while another program has the lock of its disk.
func TestDiskLocked(t *testing.T) {
	w := newWorld(t)
	other, err := disk.Open(t.Context(), disk.Options{Path: w.image, Cache: disk.CacheWriteback})
	w.must(err)
	w.attach("hotplug-status", "connected")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	if steps, _ := w.look(); strings.Join(steps, " ") != "init-wait open" {
		t.Errorf("steps %v", steps)
	}
	e := <-w.v.disk.opened
	if e.waiting == nil || e.waiting.PID != os.Getpid() {
		t.Errorf("event %+v, want that of a disk that is locked by this process", e)
	}
	w.v.diskOpened(t.Context(), e)
	if s := w.v.status(); !strings.Contains(s.Waits, "lock") {
		t.Errorf("waits for %q", s.Waits)
	}
	if steps, _ := w.look(); len(steps) > 0 {
		t.Errorf("while the disk is being opened: %v", steps)
	}
	w.must(other.Close())
	w.await()
	w.wantSteps("connect connected")
	w.works(0)
}

// TestDetachWhileOpening: a toolstack that removes a device need not wait for its disk.
func TestDetachWhileOpening(t *testing.T) {
	w := newWorld(t)
	began, ended := make(chan struct{}), make(chan struct{})
	w.v.disk.openFile = func(ctx context.Context, _ disk.Options) (*disk.Disk, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}
	w.attach("hotplug-status", "connected")
	w.look()
	<-began
	w.detach()
	steps, _ := w.look()
	if got := strings.Join(steps, " "); got != "release closed" {
		t.Errorf("steps %q", got)
	}
	<-ended
	w.wantState("6")
}

// TestReadOnly: a guest with a read-only disk is told so, and its writes are refused.
func TestReadOnly(t *testing.T) {
	for _, tt := range []struct{ name, key, value, info string }{
		{"read-only", "mode", "r", "4"},
		{"cdrom", "device-type", "cdrom", "5"},
		{"removable cdrom", "device-type", "cdrom", "7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			w.attach("hotplug-status", "connected", tt.key, tt.value, "removable", bit(tt.info == "7"))
			w.publish(1, 0)
			w.frontState(xenbus.Initialised)
			w.wantSteps("init-wait open connect connected")
			w.wantKeys("info", tt.info, "feature-flush-cache", "0", "feature-barrier", "0", "feature-discard", "0", "discard-granularity", "-")
			id, _ := w.begin(0, blkif.OpWrite, 0, 1)
			if got := w.response(0); got.ID != id || got.Status == blkif.StatusOkay {
				t.Errorf("a write is answered with %+v", got)
			}
			w.io(0, blkif.OpRead, 0, 1)
			if s := w.v.status(); !s.Disk.ReadOnly || s.Disk.CDROM != (tt.info != "4") {
				t.Errorf("status %+v", s.Disk)
			}
		})
	}
}

// TestNoDiscard: the toolstack can forbid discards.
func TestNoDiscard(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected", "discard-enable", "0")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("init-wait open connect connected")
	w.wantKeys("feature-discard", "0", "discard-granularity", "-", "discard-secure", "-")
	if w.v.status().Disk.Discard {
		t.Error("the status has discards")
	}
}

// TestResize: the guest is told the new size of its disk, and can use it.
func TestResize(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	before := w.get(backDir + "/state")
	w.must(os.Truncate(w.image, 2*imageSectors*disk.SectorSize))
	w.v.resize()
	w.wantSteps("connected")
	w.wantKeys("state", before, "sectors", "512")
	w.io(0, blkif.OpWrite, imageSectors, 1)
	w.must(os.Truncate(w.image, imageSectors*disk.SectorSize))
	w.v.resize()
	w.wantSteps("connected")
	w.wantKeys("sectors", "256")
	id, _ := w.begin(0, blkif.OpWrite, imageSectors, 1)
	if got := w.response(0); got.ID != id || got.Status == blkif.StatusOkay {
		t.Errorf("a write beyond the end is answered with %+v", got)
	}
	w.wantSteps("")
}

// TestResizedWhileDown: a successor tells the guest the size that the disk has by now.
func TestResizedWhileDown(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.stop()
	w.must(os.Truncate(w.image, 2*imageSectors*disk.SectorSize))
	w.start()
	w.wantSteps("open connect connected")
	w.wantKeys("sectors", "512")
	w.works(0)
}

// TestOtherDisk: a disk that the toolstack replaces while a guest is connected to it is
// replaced when the guest connects anew.
func TestOtherDisk(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.io(0, blkif.OpWrite, 0, 7)
	other := w.image + ".other"
	w.must(os.WriteFile(other, make([]byte, 64*disk.SectorSize), 0o600))
	w.write(w.tool, backDir, "params", other)
	w.wantSteps("")
	w.wantKeys("sectors", "256")
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closing closed")
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait open")
	if w.locked() {
		t.Error("the old disk is locked")
	}
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.wantKeys("sectors", "64")
	if got := w.io(0, blkif.OpRead, 0, 1); got[0] != 0 {
		t.Errorf("read %d from the new disk", got[0])
	}
}

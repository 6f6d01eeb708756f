// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// run runs the vbd as a backend does, and tells it every change in its directory. stop
// stops the vbd and waits.
func (w *world) run() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	dir, err := w.tool.Watch(ctx, backDir)
	w.must(err)
	var wg sync.WaitGroup
	v := w.v
	wg.Go(func() { v.Run(ctx) })
	wg.Go(func() {
		for e := range dir.C() {
			v.Changed(strings.TrimPrefix(strings.TrimPrefix(e.Path, backDir), "/"))
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		<-v.Done()
		dir.Close()
		wg.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

// awaitState waits until the vbd shows a state.
func (w *world) awaitState(s xenbus.State) {
	w.t.Helper()
	w.awaitNode(backDir+"/state", s.Value())
}

// awaitNode waits until a node has a value; "-" is none.
func (w *world) awaitNode(path, want string) {
	w.t.Helper()
	watch, err := w.tool.Watch(w.t.Context(), path)
	w.must(err)
	defer watch.Close()
	over := time.After(limit)
	for w.get(path) != want {
		select {
		case <-watch.C():
		case <-over:
			w.t.Fatalf("%s is %q, awaited %q; error node: %q", path, w.get(path), want, w.get(errorKey))
		}
	}
}

// slack is added to time limits for a machine that is busy.
const slack = 3 * time.Second

// TestRun takes a vbd through its whole life by events alone.
func TestRun(t *testing.T) {
	w := newWorld(t)
	w.cfg.Grace, w.cfg.Poll = 50*time.Millisecond, 10*time.Millisecond
	w.restart()
	w.attach()
	w.run()
	w.awaitState(xenbus.InitWait)
	w.publish(2, 1)
	w.frontState(xenbus.Initialised)
	w.plugIn()
	w.awaitState(xenbus.Connected)
	w.frontState(xenbus.Connected)
	w.works(0)
	w.works(1)
	w.must(os.Truncate(w.image, 2*imageSectors*disk.SectorSize))
	w.awaitNode(backDir+"/sectors", "512")
	w.io(0, blkif.OpWrite, imageSectors, 1)

	w.rings[0].front.SetReqProd(4711)
	w.must(w.host.Send(w.rings[0].keys.port))
	w.eventually("quarantine", func() bool {
		s, _ := w.v.Status(context.Background())
		return s.Quarantine != "" && s.Connection == nil
	})
	w.wantHeld(nothing)
	w.frontState(xenbus.Closing)
	w.awaitState(xenbus.Closing)
	w.frontState(xenbus.Closed)
	w.awaitState(xenbus.Closed)
	w.frontState(xenbus.Initialising)
	w.awaitState(xenbus.InitWait)
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.awaitState(xenbus.Connected)
	w.works(0)
	s, ok := w.v.Status(context.Background())
	if !ok || s.State != xenbus.Connected || s.Quarantine != "" || len(s.Connection.Queues) != 1 || s.Waits != "" {
		t.Errorf("ok %t, status %+v", ok, s)
	}
	w.frontState(xenbus.Connected)
	w.detach()
	w.awaitState(xenbus.Closed) // the guest does not react
	w.must(w.tool.Remove(t.Context(), backDir))
	<-w.v.Done()
	if _, ok := w.v.Status(context.Background()); ok {
		t.Error("status of a vbd that has ended")
	}
	if w.v.Reset(context.Background()) || w.v.Resize(context.Background()) {
		t.Error("reset of a vbd that has ended")
	}
	w.v.Poke()
	w.v.SetStore(t.Context(), w.xs)
}

// TestDetachTime: a toolstack that detaches a disk with requests in flight whose disk does
// not answer, and whose guest does not react, gets its answer within libxl's 10 s.
func TestDetachTime(t *testing.T) {
	if got := DefaultGrace + DefaultDrain; got > 9*time.Second {
		t.Errorf("grace and drain take %v", got)
	}
	w := newWorld(t)
	w.cfg.Grace, w.cfg.Drain = 100*time.Millisecond, 200*time.Millisecond
	w.restart()
	s := &stuck{began: make(chan struct{}), released: make(chan struct{})}
	w.v.disk.openFile = func(context.Context, disk.Options) (*disk.Disk, error) {
		return disk.New("stuck", disk.Geometry{Sectors: imageSectors}, s), nil
	}
	w.attach("hotplug-status", "connected")
	w.run()
	w.awaitState(xenbus.InitWait)
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.awaitState(xenbus.Connected)
	w.frontState(xenbus.Connected)
	w.begin(0, blkif.OpWrite, 0, 1)
	<-s.began
	w.detach()
	began := time.Now()
	w.awaitState(xenbus.Closed)
	if took, want := time.Since(began), w.cfg.Grace+w.cfg.Drain; took < want || took > want+slack {
		t.Errorf("closed after %v, want %v", took, want)
	}
	close(s.released)
	w.eventually("the connection has ended", func() bool { return w.host.held() == nothing })
}

// TestStateStorm: a guest that writes its state all the time (XSA-349) costs a bounded
// number of requests to xenstored per second and no memory, and the toolstack is served
// meanwhile.
func TestStateStorm(t *testing.T) {
	w := newWorld(t)
	w.cfg.Grace = 100 * time.Millisecond
	w.restart()
	w.attach("hotplug-status", "connected")
	w.run()
	w.awaitState(xenbus.InitWait)
	w.publish(1, 0)

	const writers, writes = 4, 40_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	requests := w.v.cfg.Guest.Used().Requests
	began := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		c := w.connect(0)
		wg.Go(func() {
			for n := range writes / writers {
				s := []string{"1", "3", "4", "5", "6", "4", "7", "banana"}[(n+i)%8]
				if err := c.Write(t.Context(), frontDir+"/state", s); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	requests = w.v.cfg.Guest.Used().Requests - requests
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d writes in %v: %d requests, heap grew by %d KiB", writes, took, requests, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10)
	if most := 1.2 * budget.WorkBurst * (1 + took.Seconds()*budget.WorkRate/budget.WorkBurst); float64(requests) > most {
		t.Errorf("%d requests in %v, want at most %.0f", requests, took, most)
	}
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 4<<20 {
		t.Errorf("heap grew by %d bytes", grew)
	}
	w.frontState(xenbus.Connected)
	w.detach()
	detached := time.Now()
	w.awaitState(xenbus.Closed)
	if took := time.Since(detached); took > w.cfg.Grace+slack {
		t.Errorf("closed after %v, want %v", took, w.cfg.Grace)
	}
	w.wantHeld(nothing)
}

// TestStoreLost: requests are served while the connection to xenstore is lost, and the vbd
// handles the changes that it missed.
func TestStoreLost(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.run()
	w.awaitState(xenbus.InitWait)
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.awaitState(xenbus.Connected)
	// Otherwise the vbd may not know its last write when the connection is lost.
	for s, _ := w.v.Status(context.Background()); s.State != xenbus.Connected; {
		s, _ = w.v.Status(context.Background())
	}
	w.must(w.xs.Client.Close())
	w.works(0)
	w.frontState(xenbus.Closing)
	w.works(0)
	w.v.SetStore(t.Context(), &hookedStore{Client: w.connect(0)})
	w.awaitState(xenbus.Closing)
}

// TestStoreBusy: a failure of xenstored delays the vbd and harms nothing.
func TestStoreBusy(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.xs.fail = &xenstore.Error{Op: "TRANSACTION_START", Err: xenstore.ErrQuota}
	w.look()
	if w.v.alarm.At().IsZero() {
		t.Error("no alarm for another attempt")
	}
	w.wantError("no space left")
	w.xs.fail = nil
	w.wantSteps("init-wait open")
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"runtime"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/lab/powercut"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// TestLanes: guests that use a device at the same time share it by their weights.
func TestLanes(t *testing.T) {
	var l lanes
	d := powercut.New(1<<20, 1).Open()
	other := powercut.New(1<<20, 1).Open()
	a, b := NewGuest(0), NewGuest(0)
	la, lb, elsewhere := l.open(a, d), l.open(b, d), l.open(b, other)
	if again := l.open(a, d); again != la {
		t.Error("two lanes of a guest at a device")
	}
	now := time.Minute
	want := func(ln *lane, bound int64) {
		t.Helper()
		if ln.look(now); ln.limited.Load() != bound {
			t.Errorf("the bound is %d, want %d", ln.limited.Load(), bound)
		}
	}
	elsewhere.look(now)
	want(la, 0)
	want(lb, deviceUnits/2)
	want(la, deviceUnits/2)
	a.weigh(nil, 3)
	want(la, deviceUnits*3/4)
	want(lb, deviceUnits/4)
	a.weigh(nil, 15)
	want(lb, leastUnits)
	now += laneAge + 1
	want(lb, 0)
	now += laneAge / 2
	want(la, deviceUnits*15/16)

	if !la.take(deviceUnits, 0) {
		t.Error("a queue without an operation does not begin one")
	}
	if la.take(1, 1) {
		t.Error("a queue with operations begins one beyond the bound")
	}
	if !la.take(1, 0) {
		t.Error("another queue does not begin its first one")
	}
	la.give(deviceUnits)
	if !la.take(1, 1) {
		t.Error("there is room, and a queue does not begin an operation")
	}
	for _, ln := range []*lane{la, la, lb, elsewhere} {
		l.close(ln)
	}
	if len(l.all)+len(l.devices) != 0 {
		t.Errorf("%d lanes and %d devices are left", len(l.all), len(l.devices))
	}
}

// TestDeviceOf: files of one file system are on one device.
func TestDeviceOf(t *testing.T) {
	a, b := fileDisk(t, 4096, disk.CacheWriteback), fileDisk(t, 4096, disk.CacheWriteback)
	if deviceOf(a) != deviceOf(b) {
		t.Errorf("%+v and %+v", deviceOf(a), deviceOf(b))
	}
	if x, y := deviceOf(powercut.New(4096, 1).Open()), deviceOf(powercut.New(4096, 1).Open()); x == y {
		t.Error("two stores are one device")
	}
}

// TestDeviceIsShared: a guest that finds its part of a device used up waits for its own
// operations, and has all its requests answered.
func TestDeviceIsShared(t *testing.T) {
	const requests = 30
	hang := make(chan struct{})
	b := newBed(t, bedConfig{store: hooked(func(o powercut.Op) powercut.Fault {
		if o.Kind == powercut.Read {
			<-hang
		}
		return powercut.Fault{}
	})})
	b.connect()
	heavy := NewGuest(0)
	heavy.weigh(nil, MaxWeight)
	neighbour := b.conn.pool.lanes.open(heavy, b.cfg.Disk)
	defer b.conn.pool.lanes.close(neighbour)
	neighbour.seen.Store(int64(time.Hour)) // it goes on using the device
	b.conn.queues[0].lane.look(b.conn.pool.now())
	for i := range requests {
		b.put(b.request(blkif.OpRead, 0, i, 1, 0))
	}
	b.push()
	stats := b.conn.Stats(0)
	for deadline := time.Now().Add(patience); b.conn.Status(0).Operations == 0 || stats.Load(DeviceWaits) == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %d waits", b.conn.Status(0), stats.Load(DeviceWaits))
		}
	}
	if n := b.conn.Status(0).Operations; n > leastUnits {
		t.Errorf("%d operations are under way, at most %d", n, leastUnits)
	}
	close(hang)
	for id, rsp := range b.take(requests) {
		if rsp.Status != blkif.StatusOkay {
			t.Errorf("request %d: %v", id, rsp.Status)
		}
	}
	lane := b.conn.queues[0].lane
	b.disconnect()
	if n := lane.units.Load(); n != 0 {
		t.Errorf("%d units of the device are left", n)
	}
}

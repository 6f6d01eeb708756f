// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// A device serves the operations of all guests, and those that it has first, first. So a
// guest with many queues would fill it, and another guest's read would wait behind all that.
// While several guests use a device, their operations under way are bounded: by their weights
// they share deviceUnits. A guest that has a device for itself has no bound.
//
// A queue without an operation under way may always begin one. So a queue that finds the
// bound reached goes on when an operation of its own ends, and needs no other wake-up.

const (
	// deviceUnits bounds the operations under way of all guests at a device that several
	// use.
	deviceUnits = 128

	// leastUnits is the least bound of one guest.
	leastUnits = 16

	// unitBytes: an operation counts one unit, and one more for each of so many bytes.
	unitBytes = 64 << 10

	// lookTurns is the number of turns between two looks at the clock, and lookEvery the
	// least time between two looks at the other guests.
	lookTurns = 8
	lookEvery = 20 * time.Millisecond

	// laneAge is the time after which a guest that has not used a device is not counted
	// any more.
	laneAge = time.Second
)

// units returns the units of an operation of n bytes.
func units(n int) int64 { return 1 + int64(n)/unitBytes }

// deviceID names what serves the operations of a disk: a block device, also that which a file
// is on. Partitions of a device are one.
type deviceID struct {
	major, minor uint32
	store        *disk.Disk // a store that is not a file; nil: it is one
}

// deviceOf returns the device of a disk.
func deviceOf(d *disk.Disk) deviceID {
	if major, minor, adopted := d.Device(); adopted && d.FD() >= 0 {
		return deviceID{major: major, minor: minor}
	}
	switch id := d.Identity(); id.Backing {
	case disk.KindBlock:
		return wholeDevice(id.Major, id.Minor)
	case disk.KindFile:
		return wholeDevice(unix.Major(id.Device), unix.Minor(id.Device))
	default:
		return deviceID{store: d}
	}
}

// DeviceOf returns the numbers of the device of a disk, 0 for a store that is not a file.
func DeviceOf(d *disk.Disk) (major, minor uint32) {
	id := deviceOf(d)
	return id.major, id.minor
}

// wholeDevice returns the device that a partition belongs to, or the device itself.
func wholeDevice(major, minor uint32) deviceID {
	id := deviceID{major: major, minor: minor}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor) // a symbolic link
	if _, err := os.Stat(dir + "/partition"); err != nil {
		return id
	}
	b, err := os.ReadFile(dir + "/../dev")
	if err != nil {
		return id
	}
	whole := deviceID{}
	if _, err := fmt.Sscanf(string(b), "%d:%d", &whole.major, &whole.minor); err != nil {
		return id
	}
	return whole
}

// device has the guests that use a device.
type device struct {
	id    deviceID
	mu    sync.Mutex // guards changes of lanes
	lanes atomic.Pointer[[]*lane]
}

// lane is a guest's use of a device. All its queues there share it.
type lane struct {
	guest   *Guest
	device  *device
	users   int // queues; guarded by the pool's mutex
	units   atomic.Int64
	seen    atomic.Int64 // time of the last look in nanoseconds since the start of the pool; 0: never
	limited atomic.Int64 // bound of units; 0: none
}

// laneKey names a lane.
type laneKey struct {
	guest  *Guest
	device deviceID
}

// lanes are those of a pool.
type lanes struct {
	mu      sync.Mutex // guards all below
	all     map[laneKey]*lane
	devices map[deviceID]*device
}

// active reports whether the guest has used the device within a time.
func (ln *lane) active(now, within time.Duration) bool {
	seen := ln.seen.Load()
	return seen > 0 && now-time.Duration(seen) < within
}

// open returns the lane of a guest at the device of a disk, for one more queue.
func (l *lanes) open(g *Guest, d *disk.Disk) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := laneKey{g, deviceOf(d)}
	if ln := l.all[key]; ln != nil {
		ln.users++
		return ln
	}
	if l.all == nil {
		l.all, l.devices = map[laneKey]*lane{}, map[deviceID]*device{}
	}
	dev := l.devices[key.device]
	if dev == nil {
		dev = &device{id: key.device}
		l.devices[key.device] = dev
	}
	ln := &lane{guest: g, device: dev, users: 1}
	l.all[key] = ln
	dev.change(func(all []*lane) []*lane { return append(all, ln) })
	return ln
}

// close gives up a queue's use of a lane.
func (l *lanes) close(ln *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ln.users--; ln.users > 0 {
		return
	}
	delete(l.all, laneKey{ln.guest, ln.device.id})
	ln.device.change(func(all []*lane) (left []*lane) {
		for _, other := range all {
			if other != ln {
				left = append(left, other)
			}
		}
		if len(left) == 0 {
			delete(l.devices, ln.device.id)
		}
		return left
	})
}

// change replaces the list, which its readers share, by a changed copy.
func (d *device) change(f func([]*lane) []*lane) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*lane
	if old := d.lanes.Load(); old != nil {
		all = append(all, *old...)
	}
	all = f(all)
	d.lanes.Store(&all)
}

// now returns the time since the pool was made, which is not 0.
func (p *Pool) now() time.Duration { return time.Since(p.began) + 1 }

// shareDevice notes, every lookTurns turns and at most once in lookEvery, that the guest uses the
// device of the queue's disk.
func (q *queue) shareDevice() {
	if q.laneTurns++; q.laneTurns%lookTurns != 1 {
		return
	}
	if now := q.conn.pool.now(); now-q.laneAt >= lookEvery || q.laneAt == 0 {
		q.laneAt = now
		q.lane.look(now)
	}
}

// look notes that the guest uses the device, and sets its bound by the weights of the guests
// that have used the device lately.
func (ln *lane) look(now time.Duration) {
	ln.seen.Store(int64(now))
	all, guests, own := 0, 0, ln.guest.Weight()
	for _, other := range *ln.device.lanes.Load() {
		if other.active(now, laneAge) {
			guests++
			all += other.guest.Weight()
		}
	}
	bound := int64(0)
	if guests > 1 {
		bound = int64(max(deviceUnits*own/all, leastUnits))
	}
	ln.limited.Store(bound)
}

// take takes the units of an operation for a queue that has so many taken, and reports whether
// it may begin.
func (ln *lane) take(n, taken int64) bool {
	if bound := ln.limited.Load(); bound > 0 && taken > 0 && ln.units.Load()+n > bound {
		return false
	}
	ln.units.Add(n)
	return true
}

// give returns units.
func (ln *lane) give(n int64) { ln.units.Add(-n) }

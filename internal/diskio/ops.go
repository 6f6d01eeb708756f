// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

// The queueing methods do not allocate. They return false when Entries operations are
// under way: then take completions and queue again. Operations start with SubmitAndWait at
// the latest, and run in any order. user must be below UserLimit.

// Read queues a read of n bytes at offset off to addr.
func (e *Engine) Read(off uint64, addr uintptr, n uint32, user uint64) bool {
	if e.route == routeRing {
		if e.full() {
			return false
		}
		if buf := e.fixedBuffer(addr, n); buf >= 0 {
			return e.ring.ReadFixed(diskSlot, off, addr, n, uint16(buf), user)
		}
		return e.ring.Read(diskSlot, off, addr, n, user)
	}
	return e.off(op{kind: opRead, off: off, addr: addr, n: uint64(n), user: user})
}

// Write queues a write of n bytes at addr to offset off.
func (e *Engine) Write(off uint64, addr uintptr, n uint32, user uint64) bool {
	if e.route == routeRing {
		if e.full() {
			return false
		}
		if e.inline.takes(off, n) {
			return e.queueInline(op{disk: e.disk, kind: opWrite, off: off, addr: addr, n: uint64(n), user: user})
		}
		if buf := e.fixedBuffer(addr, n); buf >= 0 {
			return e.ring.WriteFixed(diskSlot, off, addr, n, uint16(buf), user)
		}
		return e.ring.Write(diskSlot, off, addr, n, user)
	}
	return e.off(op{kind: opWrite, off: off, addr: addr, n: uint64(n), user: user})
}

// Readv queues a read at offset off into the parts, at most MaxParts, of the array of
// struct iovec at iov (iouring.Iovecs). The array must stay as it is until the completion
// was taken.
func (e *Engine) Readv(off uint64, iov uintptr, parts uint32, user uint64) bool {
	if e.route == routeRing {
		return !e.full() && e.ring.Readv(diskSlot, off, iov, parts, user)
	}
	return e.off(op{kind: opReadv, off: off, addr: iov, n: uint64(parts), user: user})
}

// Writev queues a write of the parts at iov to offset off.
func (e *Engine) Writev(off uint64, iov uintptr, parts uint32, user uint64) bool {
	if e.route == routeRing {
		if e.full() {
			return false
		}
		if e.inline.takesParts(off, iov, parts) {
			return e.queueInline(op{disk: e.disk, kind: opWritev, off: off, addr: iov, n: uint64(parts), user: user})
		}
		return e.ring.Writev(diskSlot, off, iov, parts, user)
	}
	return e.off(op{kind: opWritev, off: off, addr: iov, n: uint64(parts), user: user})
}

// Sync queues a flush (fdatasync). It makes durable what was written by operations whose
// completions were taken before it was queued, by this engine or another one of the disk. It
// fails if the kernel has lost any data of the disk since this engine's last flush, also if
// that was reported to another engine.
func (e *Engine) Sync(user uint64) bool {
	if e.route == routeRing {
		return !e.full() && e.ring.Datasync(syncSlot, user)
	}
	return e.off(op{kind: opSync, user: user, sync: e.sync})
}

// Discard queues a discard of the n bytes at off. Res is 0, or -EOPNOTSUPP if the disk
// cannot do it. A long one may take minutes; SubmitAndWait and other operations do not
// wait for it.
func (e *Engine) Discard(off, n uint64, secure bool, user uint64) bool {
	if e.route == routeRing && e.disk.Kind() == disk.KindFile && !secure && !e.disk.ReadOnly() && n <= disk.DiscardChunk {
		return !e.full() && e.ring.Fallocate(diskSlot, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, user)
	}
	return e.off(op{kind: opDiscard, off: off, n: n, secure: secure, user: user})
}

// full returns whether no operation can be queued.
func (e *Engine) full() bool { return e.UnderWay() >= e.entries }

// StopDiscards ends long discards between two of their parts: they complete with
// -ECANCELED, as do those that are queued later, until SetDisk. Call it when the disk is to
// be closed.
func (e *Engine) StopDiscards() { e.discard.stop.Store(true) }

// off starts an operation outside of the ring.
func (e *Engine) off(o op) bool {
	if e.full() {
		return false
	}
	e.owed++
	o.disk = e.disk
	switch {
	case e.route == routeNone:
		e.local.put(Completion{User: o.user, Res: -int32(unix.EBADF)})
	case e.route == routeNull:
		e.local.put(Completion{User: o.user, Res: o.null()})
	case o.kind == opDiscard:
		e.discard.put(o)
	default:
		e.pool.put(o)
	}
	return true
}

// fixedBuffer returns the index of the registered buffer that has all of the memory, or -1.
func (e *Engine) fixedBuffer(addr uintptr, n uint32) int {
	for i := range e.fixed {
		if s := &e.fixed[i]; addr >= s.start && addr+uintptr(n) <= s.end {
			return i
		}
	}
	return -1
}

// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
)

type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opReadv
	opWritev
	opSync
	opDiscard
)

// op is an operation outside of the ring.
type op struct {
	disk   *disk.Disk
	kind   opKind
	secure bool
	off    uint64
	addr   uintptr // of the memory, or of the iovecs
	n      uint64  // bytes, or iovecs
	user   uint64
	sync   int // the file to flush, -1 for that of the disk
}

// run runs the operation to its end and returns its result. stop ends a discard early.
func (o *op) run(stop func() bool) int32 {
	if o.kind == opDiscard {
		return result(0, o.disk.DiscardRange(o.off, o.n, o.secure, stop))
	}
	if b := o.disk.Backing(); b != nil {
		return o.onBacking(b)
	}
	fd := uintptr(o.disk.FD())
	for {
		var n uintptr
		var errno unix.Errno
		switch o.kind {
		case opRead:
			n, _, errno = unix.Syscall6(unix.SYS_PREAD64, fd, o.addr, uintptr(o.n), uintptr(o.off), 0, 0)
		case opWrite:
			n, _, errno = unix.Syscall6(unix.SYS_PWRITE64, fd, o.addr, uintptr(o.n), uintptr(o.off), 0, 0)
		case opReadv:
			n, _, errno = unix.Syscall6(unix.SYS_PREADV, fd, o.addr, uintptr(o.n), uintptr(o.off), 0, 0)
		case opWritev:
			n, _, errno = unix.Syscall6(unix.SYS_PWRITEV, fd, o.addr, uintptr(o.n), uintptr(o.off), 0, 0)
		case opSync:
			if o.sync >= 0 {
				fd = uintptr(o.sync)
			}
			_, _, errno = unix.Syscall(unix.SYS_FDATASYNC, fd, 0, 0)
		}
		switch errno {
		case 0:
			return int32(n)
		case unix.EINTR:
		default:
			return -int32(errno)
		}
	}
}

// onBacking runs the operation on a store that is not a file.
func (o *op) onBacking(b Backing) int32 {
	switch o.kind {
	case opRead:
		return result(b.ReadAt(memory(o.addr, o.n), int64(o.off)))
	case opWrite:
		if o.disk.ReadOnly() {
			return -int32(unix.EBADF)
		}
		return result(b.WriteAt(memory(o.addr, o.n), int64(o.off)))
	case opSync:
		return result(0, b.Sync())
	}
	move := b.ReadAt
	if o.kind == opWritev {
		if o.disk.ReadOnly() {
			return -int32(unix.EBADF)
		}
		move = b.WriteAt
	}
	moved := 0
	for _, part := range iovecs(o.addr, o.n) {
		n, err := move(memory(part.base, part.len), int64(o.off)+int64(moved))
		moved += n
		if err != nil || uint64(n) < part.len {
			return result(moved, err)
		}
	}
	return int32(moved)
}

// null returns the result of the operation on a null store.
func (o *op) null() int32 {
	write := o.kind == opWrite || o.kind == opWritev || o.kind == opDiscard
	switch {
	case write && o.disk.ReadOnly():
		return -int32(unix.EBADF)
	case o.kind == opDiscard && o.secure:
		return -int32(unix.EOPNOTSUPP)
	case o.kind == opSync, o.kind == opDiscard:
		return 0
	}
	size := o.disk.Sectors() * disk.SectorSize
	if o.off >= size {
		return 0
	}
	left := size - o.off
	if o.kind == opRead || o.kind == opWrite {
		return o.nullPart(o.addr, min(o.n, left))
	}
	moved := int32(0)
	for _, part := range iovecs(o.addr, o.n) {
		moved += o.nullPart(part.base, min(part.len, left-uint64(moved)))
	}
	return moved
}

// nullPart reads or writes one part of memory, and returns its length.
func (o *op) nullPart(addr uintptr, n uint64) int32 {
	if o.kind != opWrite && o.kind != opWritev && !o.disk.NullLeaves() {
		clear(memory(addr, n))
	}
	return int32(n)
}

// result returns the result of n bytes moved before err: bytes that were moved count.
func result(n int, err error) int32 {
	if err == nil || n > 0 {
		return int32(n)
	}
	return failure(err)
}

// failure returns the result of an operation that failed without moving anything.
func failure(err error) int32 {
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 {
		return -int32(errno)
	}
	return -int32(unix.EIO)
}

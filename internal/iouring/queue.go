// SPDX-License-Identifier: Apache-2.0

package iouring

import "golang.org/x/sys/unix"

// The queueing methods make no system call and do not allocate. They return false when
// the ring is full: then call Submit, take the completions, and queue again.
//
// Memory is given by address. It must not be on the Go heap, and must stay mapped until
// Submit returns. An address that is not mapped completes with -EFAULT. Every operation
// is at offset 0, for files without a position.

// WriteFixed queues a write of n bytes at addr, inside registered buffer buf, to
// the file in slot.
func (r *Ring) WriteFixed(slot int, addr uintptr, n uint32, buf uint16, user uint64) bool {
	return r.queue(opWriteFixed, slot, addr, n, buf, user)
}

// ReadFixed queues a read of up to n bytes to addr, inside registered buffer buf.
func (r *Ring) ReadFixed(slot int, addr uintptr, n uint32, buf uint16, user uint64) bool {
	return r.queueRead(opReadFixed, slot, addr, n, buf, user)
}

// Write queues a write of n bytes at addr.
func (r *Ring) Write(slot int, addr uintptr, n uint32, user uint64) bool {
	return r.queue(opWrite, slot, addr, n, 0, user)
}

// Read queues a read of up to n bytes to addr.
func (r *Ring) Read(slot int, addr uintptr, n uint32, user uint64) bool {
	return r.queueRead(opRead, slot, addr, n, 0, user)
}

// Writev queues a write of the n parts at iov, for example Iovecs.At. The array
// may be reused after Submit.
func (r *Ring) Writev(slot int, iov uintptr, n uint32, user uint64) bool {
	return r.queue(opWritev, slot, iov, n, 0, user)
}

// Readv queues a read into the n parts at iov.
func (r *Ring) Readv(slot int, iov uintptr, n uint32, user uint64) bool {
	return r.queueRead(opReadv, slot, iov, n, 0, user)
}

// ReadFile queues a read of up to n bytes of the open file fd, which needs no slot, to addr.
// The file must be ready: Submit waits for a while, and cancels the read, if it is not.
func (r *Ring) ReadFile(fd int, addr uintptr, n uint32, user uint64) bool {
	return r.queueFile(opRead, fd, addr, n, user)
}

// WriteFile queues a write of n bytes at addr to the open file fd. The file must be ready.
func (r *Ring) WriteFile(fd int, addr uintptr, n uint32, user uint64) bool {
	return r.queueFile(opWrite, fd, addr, n, user)
}

func (r *Ring) queueFile(op uint8, fd int, addr uintptr, n uint32, user uint64) bool {
	if r.owed >= r.limit {
		return false
	}
	e := &r.sqes[r.tail&r.sqMask]
	*e = sqe{}
	e.opcode, e.fd = op, int32(fd)
	e.addr, e.len, e.userData = uint64(addr), n, user
	r.tail++
	r.owed++
	return true
}

// queueRead queues an operation that may have to wait. If the file does not accept
// RWF_NOWAIT, the batch ends with a request that cancels it.
func (r *Ring) queueRead(op uint8, slot int, addr uintptr, n uint32, buf uint16, user uint64) bool {
	ok := r.queue(op, slot, addr, n, buf, user)
	if ok && r.sqes[(r.tail-1)&r.sqMask].opFlags == 0 {
		r.cancel = true
	}
	return ok
}

func (r *Ring) queue(op uint8, slot int, addr uintptr, n uint32, buf uint16, user uint64) bool {
	if r.owed >= r.limit {
		return false
	}
	fd, flags := int32(-1), uint32(unix.RWF_NOWAIT) // no such slot: completes with -EBADF
	if uint(slot) < uint(len(r.rwFlags)) {
		fd, flags = int32(slot), r.rwFlags[slot]
	}
	// Field by field: the compiler would build a literal on the stack and copy it.
	e := &r.sqes[r.tail&r.sqMask]
	*e = sqe{}
	e.opcode, e.flags, e.fd = op, sqeFixedFile, fd
	e.addr, e.len = uint64(addr), n
	e.opFlags, e.userData, e.bufIndex = flags, user, buf
	r.tail++
	r.owed++
	return true
}

// queueCancel queues the request that cancels all waiting operations. It has no
// completion: with ALL its result is a count, so it cannot fail.
func (r *Ring) queueCancel() {
	r.sqes[r.tail&r.sqMask] = sqe{
		opcode:  opAsyncCancel,
		flags:   sqeCQESkipSuccess,
		fd:      -1,
		opFlags: cancelAny | cancelAll,
	}
	r.tail++
}

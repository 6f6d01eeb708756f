// SPDX-License-Identifier: Apache-2.0

package tap

import "golang.org/x/sys/unix"

// Queue is one queue of a [Device]: one file descriptor, non-blocking, which
// no poller of the Go runtime knows of.
//
// Read, Readv, Write and Writev are bare system calls: they neither allocate,
// nor lock, nor tell the scheduler, nor retry. They cannot block; the longest is a
// write of 64 KiB through the whole receive path of the host, some microseconds.
// Errors are bare unix.Errno values:
//
//	EAGAIN  no frame waits; or the send buffer is full. Try later. == ErrAgain
//	EIO     the device is down. The frame is dropped; a script may bring the
//	        device up at any time.
//	EINVAL  the frame is shorter than an Ethernet header, or its VnetHdr is
//	        invalid; on a read, the buffer is shorter than
//	        VnetHdrLen and the frame is lost.
//	EBADFD  the device was deleted: ErrGone.
//	EBUSY   the host is not ready for the frame, which is dropped. Only devices
//	        with NAPI queues do this; Create makes none, others can.
//	ENOMEM, ENOBUFS, EMSGSIZE
//	        the host has no memory for the frame, which is dropped.
//	EFAULT  the memory given is not there.
//
// A guest that provides the frames can cause every error a write knows, at line
// rate: count them, do not log them.
type Queue struct {
	fd    int
	index int
}

// NewQueue makes a Queue of the descriptor of one of a [Device] in another process, with its
// place. The descriptor stays the caller's.
func NewQueue(fd, index int) *Queue { return &Queue{fd: fd, index: index} }

// FD returns the queue's file descriptor, for epoll or an io_uring; -1 once the
// device has closed it. It is readable while a frame waits and has EPOLLERR
// set when the device is gone. Do not close it, and never make an os.File of it.
func (q *Queue) FD() int { return q.fd }

// Index returns the queue's place, counted from 0. It is the number by which the
// kernel knows it, to steering programs and as rx queue of the frames written.
func (q *Queue) Index() int { return q.index }

// MaxFrame bounds the length of what Read returns, without the VnetHdr: an IP
// packet of 64 KiB behind an Ethernet header with two VLAN tags. A host whose
// gso_max_size was raised beyond its default of 64 KiB ("BIG TCP") can send longer
// frames, which Read cuts.
const MaxFrame = 14 + 2*4 + 65535

// Read reads one frame, with the VnetHdr before it if the device has one, and
// returns its length. A frame that is longer than b is cut without notice: give it
// VnetHdrLen+MaxFrame, or what the offloads in force allow. An empty b reads
// nothing.
func (q *Queue) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return readFD(q.fd, b)
}

// Readv is Read into the pieces of iov, in order. The kernel takes no more than
// 1024.
func (q *Queue) Readv(iov []unix.Iovec) (int, error) {
	if len(iov) == 0 {
		return 0, nil
	}
	return readvFD(q.fd, iov)
}

// Write writes one frame, with a VnetHdr before it if the device has one. It
// is written whole or not at all; the length returned is that of b, or 0.
func (q *Queue) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, unix.EINVAL
	}
	return writeFD(q.fd, b)
}

// Writev is Write from the pieces of iov, in order. The kernel takes no more than
// 1024.
func (q *Queue) Writev(iov []unix.Iovec) (int, error) {
	if len(iov) == 0 {
		return 0, unix.EINVAL
	}
	return writevFD(q.fd, iov)
}

// purge drops the frames that wait, of which there are at most as many as the queue
// takes.
func (q *Queue) purge() {
	var b [VnetHdrLen + 1]byte // the rest of each is cut
	for {
		if _, err := q.Read(b[:]); err != nil {
			return
		}
	}
}

// close gives the queue up. To the owner of the queue, who has stopped using it,
// it answers EBADF from then on.
func (q *Queue) close() error {
	if q.fd < 0 {
		return nil
	}
	fd := q.fd
	q.fd = -1
	return unix.Close(fd)
}

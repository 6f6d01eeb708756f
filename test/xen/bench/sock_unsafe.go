// SPDX-License-Identifier: Apache-2.0

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// These calls wait in the kernel without notifying Go's scheduler. Its work would disturb
// the measurement of the packets' path.

func send(fd int, b []byte) (int, error) { return raw(unix.SYS_WRITE, fd, b) }
func recv(fd int, b []byte) (int, error) { return raw(unix.SYS_READ, fd, b) }

func raw(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// disconnect makes a UDP socket take datagrams from any sender again.
func disconnect(fd int) {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
}

// messages sends one frame several times with one call.
type messages struct {
	iov  unix.Iovec
	list []message
}

// message is struct mmsghdr.
type message struct {
	hdr  unix.Msghdr
	sent uint32
	_    [4]byte
}

func newMessages(b []byte, n int) *messages {
	m := &messages{list: make([]message, n)}
	m.iov.Base = &b[0]
	m.iov.SetLen(len(b))
	for i := range m.list {
		m.list[i].hdr.Iov = &m.iov
		m.list[i].hdr.Iovlen = 1
	}
	return m
}

func (m *messages) send(fd int) error {
	for left := m.list; len(left) > 0; {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&left[0])), uintptr(len(left)), 0, 0, 0)
		switch e {
		case 0:
			left = left[n:]
		case unix.EINTR:
		default:
			return e
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package nlsock

import (
	"errors"
	"os"
	"reflect"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// newSocket makes a socket of a family of netlink that receives the events of groups, a mask.
// If it fails nothing is left of the socket.
func newSocket(family int, groups uint32) (*nl.NetlinkSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, os.NewSyscallError("socket of netlink", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind a socket of netlink", err), unix.Close(fd))
	}
	s := new(nl.NetlinkSocket)
	set(s, "fd", int32(fd))
	set(s, "file", os.NewFile(uintptr(fd), "netlink"))
	set(s, "lsa", unix.SockaddrNetlink{Family: unix.AF_NETLINK}) // to the kernel
	return s, nil
}

// newHandle makes a handle that sends its requests through sockets, by family.
func newHandle(sockets map[int]*nl.SocketHandle) *netlink.Handle {
	h := new(netlink.Handle)
	set(h, "sockets", sockets)
	return h
}

// set gives a field of a struct of the library a value. It panics if the library has no such
// field, or one of another type, which a test finds.
func set[S, V any](s *S, field string, v V) {
	f := reflect.ValueOf(s).Elem().FieldByName(field)
	*reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Interface().(*V) = v
}

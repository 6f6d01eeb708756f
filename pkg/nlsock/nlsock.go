// SPDX-License-Identifier: Apache-2.0

package nlsock

import (
	"errors"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// timeout bounds the wait for each message of an answer. The kernel has the first one when the
// request was sent.
const timeout = 10 * time.Second

// maxIdle is the number of idle sockets that are kept of a family.
const maxIdle = 4

// conn is a socket, and a handle for it.
type conn struct {
	family int
	handle *netlink.Handle
	// sockets has one element. The handle has the same map.
	sockets map[int]*nl.SocketHandle
	kept    bool // it may be used again
}

// idle holds the sockets that no request uses, by family.
var idle = struct {
	sync.Mutex
	conns map[int][]*conn
}{conns: map[int][]*conn{}}

// home is the inode of the process's network namespace, 0 if it is not known yet.
var home struct {
	sync.Mutex
	inode uint64
}

// atHome reports whether the calling thread is in the network namespace of the process. If it
// cannot be known it is taken for another one.
func atHome() bool {
	var st unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &st) != nil {
		return false
	}
	here := st.Ino
	home.Lock()
	defer home.Unlock()
	if home.inode == 0 {
		if unix.Stat("/proc/self/ns/net", &st) != nil {
			return false
		}
		home.inode = st.Ino
	}
	return here == home.inode
}

// take returns a socket of a family in the network namespace of the calling thread.
func take(family int) (*conn, error) {
	kept := atHome()
	if kept {
		idle.Lock()
		list := idle.conns[family]
		if n := len(list); n > 0 {
			c := list[n-1]
			idle.conns[family] = list[:n-1]
			idle.Unlock()
			return c, nil
		}
		idle.Unlock()
	}
	s, err := newSocket(family, 0)
	if err != nil {
		return nil, err
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&limit), s.SetReceiveTimeout(&limit)); err != nil {
		s.Close()
		return nil, err
	}
	sockets := map[int]*nl.SocketHandle{family: {Socket: s}}
	return &conn{family: family, handle: newHandle(sockets), sockets: sockets, kept: kept}, nil
}

// give returns a socket after a request that ended with err.
func (c *conn) give(err error) {
	if c.kept && answered(err) {
		idle.Lock()
		defer idle.Unlock()
		if list := idle.conns[c.family]; len(list) < maxIdle {
			idle.conns[c.family] = append(list, c)
			return
		}
	}
	c.sockets[c.family].Close()
}

// answered reports whether err is certain to be an answer of the kernel, and a complete one.
func answered(err error) bool {
	return err == nil || errors.As(err, new(netlink.LinkNotFoundError)) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST)
}

// Do calls f with a handle for requests of NETLINK_ROUTE, in the network namespace of the
// calling thread. The handle is valid during the call only, and only on the calling goroutine.
func Do(f func(*netlink.Handle) error) error {
	c, err := take(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	err = f(c.handle)
	c.give(err)
	return err
}

// Execute carries out a request in the network namespace of the calling thread, like the
// method of it.
func Execute(req *nl.NetlinkRequest, family int, resType uint16) ([][]byte, error) {
	c, err := take(family)
	if err != nil {
		return nil, err
	}
	req.Sockets = c.sockets
	msgs, err := req.Execute(family, resType)
	c.give(err)
	return msgs, err
}

// LinkByName finds an interface by name. It fails with a netlink.LinkNotFoundError if there is
// none.
func LinkByName(name string) (l netlink.Link, err error) {
	err = Do(func(h *netlink.Handle) error { l, err = h.LinkByName(name); return err })
	return l, err
}

// LinkByIndex finds an interface by index. It fails with a netlink.LinkNotFoundError if there
// is none.
func LinkByIndex(index int) (l netlink.Link, err error) {
	err = Do(func(h *netlink.Handle) error { l, err = h.LinkByIndex(index); return err })
	return l, err
}

// LinkList lists the interfaces. With netlink.ErrDumpInterrupted the list may be incomplete.
func LinkList() (all []netlink.Link, err error) {
	err = Do(func(h *netlink.Handle) error { all, err = h.LinkList(); return err })
	return all, err
}

// LinkDel removes an interface.
func LinkDel(l netlink.Link) error {
	return Do(func(h *netlink.Handle) error { return h.LinkDel(l) })
}

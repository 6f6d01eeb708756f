// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// here is the place of a device that is in the network namespace of the calling
// thread.
const here = -1

// place is the network namespace of a device. Names and interface indices are valid only
// there.
type place struct {
	ns netns.NsHandle // the namespace; to be closed
	// id is the number that the namespace has in that of the calling thread
	// (RTM_NEWNSID), or here. Requests that have one (IFLA_TARGET_NETNSID) need
	// CAP_NET_ADMIN, and no right to enter the namespace. They can look and
	// delete; they cannot change anything.
	id int
}

// place finds the namespace of the device. There is no event for a move: for processes
// that have its queues, a device that was moved works as before.
//
// The kernel tells only a process with CAP_NET_ADMIN. For the owner of a device without it
// the device is in the namespace of the calling thread.
func (d *Device) place() (place, error) {
	fd, err := d.fd0()
	if err != nil {
		return place{}, err
	}
	r, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if errors.Is(err, unix.EPERM) {
		own, err := netns.Get()
		return place{ns: own, id: here}, err
	}
	if err != nil {
		return place{}, err
	}
	p := place{ns: netns.NsHandle(r), id: here}
	own, err := netns.Get()
	if err != nil {
		return place{}, errors.Join(err, p.ns.Close())
	}
	if !own.Equal(p.ns) {
		p.id, err = number(p.ns)
	}
	if err = errors.Join(err, own.Close()); err != nil {
		return place{}, errors.Join(err, p.ns.Close())
	}
	return p, nil
}

// number gives a namespace a number in that of the calling thread, unless it has one.
// The number is valid until one of the namespaces ends.
func number(ns netns.NsHandle) (id int, err error) {
	const any = -1
	err = nlsock.Do(func(h *netlink.Handle) error {
		for range 2 {
			if id, err = h.GetNetNsIdByFd(int(ns)); err != nil || id >= 0 {
				return err
			}
			if err = h.SetNetNsIdByFd(int(ns), any); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
		return fmt.Errorf("network namespace got no number: %w", unix.ENOENT)
	})
	return id, err
}

// Numbers returns the numbers of all network namespaces that have one in that of the
// calling thread: all namespaces in which a Device was found, and others.
func Numbers() ([]int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_DUMP)
	req.AddData(nl.NewRtGenMsg())
	msgs, err := nlsock.Execute(req, unix.NETLINK_ROUTE, unix.RTM_NEWNSID)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, err
	}
	var ids []int
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.NewRtGenMsg().Len():])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NETNSA_NSID && len(a.Value) == 4 {
				ids = append(ids, int(int32(nl.NativeEndian().Uint32(a.Value))))
			}
		}
	}
	return ids, nil
}

// LinkIn finds an interface by one of its names in the namespace with a number, or,
// if that is negative, in that of the calling thread. It fails with a
// netlink.LinkNotFoundError if there is none.
func LinkIn(id int, name string) (netlink.Link, error) {
	if id < 0 {
		return nlsock.LinkByName(name)
	}
	attr := nl.NewRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	return linkIn(id, 0, attr)
}

// linkIn finds an interface by index, or if that is 0 by another attribute.
func linkIn(id, index int, by ...nl.NetlinkRequestData) (netlink.Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	for _, a := range by {
		req.AddData(a)
	}
	if id >= 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	}
	msgs, err := nlsock.Execute(req, unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, unix.ENODEV) || err == nil && len(msgs) == 0:
		return nil, netlink.LinkNotFoundError{}
	case err != nil:
		return nil, err
	}
	return netlink.LinkDeserialize(nil, msgs[0])
}

// LinksIn lists the interfaces of the namespace with a number, or, if that is
// negative, of that of the calling thread.
func LinksIn(id int) ([]netlink.Link, error) {
	if id < 0 {
		return nlsock.LinkList()
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	msgs, err := nlsock.Execute(req, unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, err
	}
	var links []netlink.Link
	for _, m := range msgs {
		l, err := netlink.LinkDeserialize(nil, m)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, err
}

// DeleteIn removes an interface of the namespace with a number.
func DeleteIn(id int, link netlink.Link) error {
	if id < 0 {
		return nlsock.LinkDel(link)
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))))
	_, err := nlsock.Execute(req, unix.NETLINK_ROUTE, 0)
	return err
}

// Elsewhere reports whether the device is in another network namespace than the calling
// thread. If so, that namespace gets a number, by which [LinkIn] and a successor find
// the device. It fails with [ErrGone] when the device was deleted.
func (d *Device) Elsewhere() (bool, error) {
	p, err := d.place()
	if err != nil {
		return false, d.wrap("look for", err)
	}
	p.close()
	return p.id != here, nil
}

// close closes the handle of the namespace.
func (p *place) close() { _ = p.ns.Close() }

// look finds the device's namespace, and its interface there. The caller closes the
// place.
func (d *Device) look() (place, *netlink.Tuntap, error) {
	fd, err := d.fd0()
	if err != nil {
		return place{}, nil, err
	}
	for range openTries {
		name, err := ifName(fd)
		if err != nil {
			return place{}, nil, err
		}
		p, err := d.place()
		if err != nil {
			return place{}, nil, err
		}
		link, err := LinkIn(p.id, name)
		if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			p.close()
			return place{}, nil, err
		}
		// If it was renamed or moved meanwhile, another device may have had the
		// name there. One that has the name before and after had it in between.
		t, ok := link.(*netlink.Tuntap)
		again, err := ifName(fd)
		if ok && err == nil && again == name {
			d.name.Store(&name)
			d.index.Store(int32(t.Index))
			return p, t, nil
		}
		p.close()
		if err != nil {
			return place{}, nil, err
		}
	}
	return place{}, nil, errRenamed
}

// errNoEntry is [ErrElsewhere] with a remedy.
func errNoEntry() error {
	return withHint(ErrElsewhere, "move it back; or attach the vif anew, and move the interface before the guest connects")
}

// in runs f in the namespace, which needs CAP_SYS_ADMIN unless it is that of the
// calling thread. Files that f opens belong to the namespace. Without the right to enter it,
// in fails with [ErrElsewhere].
func (p *place) in(f func() error) error {
	if p.id == here {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	switch err := netns.Set(p.ns); {
	case errors.Is(err, unix.EPERM):
		return errNoEntry()
	case err != nil:
		return err
	}
	err = f()
	if back := netns.Set(own); back != nil {
		// The thread could enter, so it may return. If not, it must not run anything
		// else.
		panic(fmt.Sprintf("tap: cannot return to the network namespace: %v", back))
	}
	return err
}

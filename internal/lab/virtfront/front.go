// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// FrontConfig configures the front end of a guest of a real Xen.
type FrontConfig struct {
	Socket string
	Domid  xen.Domid
	// Flags are those of the regions.
	Flags uint32
	// Parts makes a region for each part of a ring and for what is between them, as
	// xen-vhost-frontend does.
	Parts bool
	// Restrict restricts the descriptors to a domain, if it is not 0.
	Restrict xen.Domid
	// RegionDomid is the domain in the regions, if it is not 0.
	RegionDomid xen.Domid
	// Beyond makes the last region longer, by bytes that the guest does not share.
	Beyond uint64
}

// RunFront hands the rings of a guest over to a back end and forwards events until the
// context or the guest's domain ends.
func RunFront(ctx context.Context, c FrontConfig, out io.Writer) (err error) {
	store, err := xenstore.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	l, err := ReadLayout(ctx, store, c.Domid)
	if err != nil {
		return err
	}
	device, err := c.openDevice()
	if err != nil {
		return err
	}
	bridge, err := newBridge(c.Domid, l.Ports)
	if err != nil {
		return errors.Join(err, unix.Close(device))
	}
	defer bridge.close()
	if c.Flags&vhostuser.RegionGrant != 0 {
		l.Features |= FeatureAccessPlatform
	}
	regions := c.regions(l)
	if c.Flags == vhostuser.RegionGrant {
		l.userAddresses(regions)
	}
	files := make([]int, len(regions))
	for i := range files {
		files[i] = device
	}
	s, err := connect(c.Socket, l.Features, regions, files, l, bridge.events)
	if err = errors.Join(err, unix.Close(device)); err != nil {
		return err
	}
	fmt.Fprintf(out, "started: %d regions with flags %#x\n", len(regions), c.Flags)
	gone, err := domainEnds(ctx, store, c.Domid)
	if err != nil {
		return errors.Join(err, s.close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if <-gone {
			fmt.Fprintln(out, "the domain is gone")
			cancel()
		}
	}()
	if err := bridge.run(ctx, s.fd); err != nil {
		return errors.Join(err, s.close())
	}
	return s.stop(out)
}

// openDevice opens the device for the guest's memory, restricted if that is asked for.
func (c *FrontConfig) openDevice() (int, error) {
	name := gntdev.DefaultPath
	if c.Flags&vhostuser.RegionForeign != 0 {
		name = privcmdPath
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	if c.Restrict != 0 && name == privcmdPath {
		if err := restrict(fd, c.Restrict); err != nil {
			return -1, errors.Join(fmt.Errorf("restrict %s: %w", name, err), unix.Close(fd))
		}
	}
	return fd, nil
}

// regions makes the table of the guest's memory.
func (c *FrontConfig) regions(l *Layout) []vhostuser.Region {
	var out []vhostuser.Region
	add := func(addr, end uint64) {
		if end <= addr {
			return
		}
		r := vhostuser.Region{Guest: addr, Size: end - addr, Flags: c.Flags, Domid: uint32(c.Domid)}
		if c.RegionDomid != 0 {
			r.Domid = uint32(c.RegionDomid)
		}
		out = append(out, r)
	}
	for i, a := range l.Areas {
		end := a.Addr + a.Size
		if i > 0 || !c.Parts {
			add(a.Addr, end)
			continue
		}
		at := a.Addr
		for _, r := range l.Rings {
			for _, p := range l.parts(r) {
				add(at, p.Addr)
				add(p.Addr, p.Addr+p.Size)
				at = p.Addr + p.Size
			}
		}
		add(at, end)
	}
	out[len(out)-1].Size += c.Beyond
	return out
}

// parts returns the parts of a split ring, in order.
func (l *Layout) parts(r RingAddrs) [3]Area {
	n := uint64(l.Size)
	return [3]Area{{r.Desc, 16 * n}, {r.Avail, 6 + 2*n}, {r.Used, 6 + 8*n}}
}

// userAddresses gives the regions addresses of a process, as the front end has them that
// maps the memory itself, and the rings too.
func (l *Layout) userAddresses(regions []vhostuser.Region) {
	at := uint64(0x7f00_0000_0000)
	for i := range regions {
		r := &regions[i]
		r.User = at + r.Guest%pageSize
		at += 1 << 30
	}
	user := func(addr uint64) uint64 {
		for _, r := range regions {
			if addr-r.Guest < r.Size {
				return r.User + addr - r.Guest
			}
		}
		return addr
	}
	for i, r := range l.Rings {
		l.Rings[i] = RingAddrs{user(r.Desc), user(r.Avail), user(r.Used)}
	}
}

// domainEnds returns a channel that is given true when the domain has ended, and closed
// when the context has.
func domainEnds(ctx context.Context, store *xenstore.Client, domid xen.Domid) (<-chan bool, error) {
	w, err := store.Watch(ctx, xenstore.ReleaseDomain)
	if err != nil {
		return nil, err
	}
	out := make(chan bool, 1)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-w.C():
				if !ok {
					return
				}
			}
			if known, err := store.IsIntroduced(ctx, domid); err == nil && !known {
				out <- true
				return
			}
		}
	}()
	return out, nil
}

// session is a front end whose rings are started.
type session struct {
	f  *vhostuser.Frontend
	fd int // of the connection, for polling only
}

// connect starts the rings of a layout.
func connect(socket string, features uint64, regions []vhostuser.Region, files []int, l *Layout, e [2]ringEvents) (*session, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	s := &session{f: vhostuser.NewFrontend(c)}
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { s.fd = int(fd) })
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.start(features, regions, files, l, e); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *session) start(features uint64, regions []vhostuser.Region, files []int, l *Layout, e [2]ringEvents) error {
	got, _, err := s.f.Negotiate(features, vhostuser.ProtocolNet|vhostuser.ProtocolXenMmap)
	if err != nil {
		return err
	}
	if missing := features &^ got &^ FeatureAccessPlatform; missing != 0 {
		return fmt.Errorf("the back end does not offer features %#x", missing)
	}
	if err := s.f.SetMemory(regions, files); err != nil {
		return err
	}
	base := uint32(0)
	if l.Features&FeaturePacked != 0 {
		base = 0x80008000
	}
	for i, r := range l.Rings {
		addr := vhostuser.VringAddr{Index: uint32(i), Descriptor: r.Desc, Used: r.Used, Available: r.Avail}
		if err := s.f.StartRing(addr, l.Size, base, int(e[i].kick), int(e[i].call)); err != nil {
			return err
		}
	}
	return nil
}

// stop stops the rings and reports where.
func (s *session) stop(out io.Writer) error {
	for i := range uint32(2) {
		base, err := s.f.StopRing(i)
		if err != nil {
			return errors.Join(fmt.Errorf("stop ring %d: %w", i, err), s.close())
		}
		fmt.Fprintf(out, "ring %d stopped at %d\n", i, base)
	}
	return s.close()
}

func (s *session) close() error { return s.f.Close() }

// ringEvents are the events of a ring. The back end waits for kick and signals call.
type ringEvents struct{ kick, call event }

// bridge forwards events between event channels and eventfds.
type bridge struct {
	bell   *portBell
	events [2]ringEvents
}

// newBridge binds the ports that a guest has offered.
func newBridge(domid xen.Domid, ports [2]evtchn.Port) (*bridge, error) {
	dev, err := evtchn.Open(evtchn.DefaultPath)
	if err != nil {
		return nil, err
	}
	b := &bridge{bell: &portBell{dev: dev}, events: [2]ringEvents{{-1, -1}, {-1, -1}}}
	fail := func(err error) (*bridge, error) {
		b.close()
		return nil, err
	}
	if err := dev.Restrict(domid); err != nil {
		return fail(err)
	}
	for i := range ports {
		e := &b.events[i]
		if e.kick, err = newEvent(); err != nil {
			return fail(err)
		}
		if e.call, err = newEvent(); err != nil {
			return fail(err)
		}
		if b.bell.ports[i], err = dev.BindInterdomain(domid, ports[i]); err != nil {
			return fail(err)
		}
	}
	return b, nil
}

func (b *bridge) close() {
	_ = b.bell.close()
	for _, e := range b.events {
		if e.kick >= 0 {
			_ = e.kick.close()
		}
		if e.call >= 0 {
			_ = e.call.close()
		}
	}
}

// run forwards events until the context ends. It fails if the back end closes the
// connection, whose descriptor is conn.
func (b *bridge) run(ctx context.Context, conn int) error {
	wake, err := newEvent()
	if err != nil {
		return err
	}
	stopped := context.AfterFunc(ctx, wake.signal)
	defer stopped()
	fds := []unix.PollFd{
		{Fd: int32(b.bell.fd()), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN},
		{Fd: int32(b.events[0].call), Events: unix.POLLIN}, {Fd: int32(b.events[1].call), Events: unix.POLLIN},
		{Fd: int32(conn), Events: unix.POLLRDHUP},
	}
	for ctx.Err() == nil {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if fds[4].Revents != 0 {
			return errors.New("the back end has closed the connection")
		}
		err := b.bell.take(func(port evtchn.Port) {
			for i, p := range b.bell.ports {
				if p == port {
					b.events[i].kick.signal()
				}
			}
		})
		if err != nil {
			return err
		}
		for i, e := range b.events {
			if e.call.clear() {
				if err := b.bell.ring(i); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

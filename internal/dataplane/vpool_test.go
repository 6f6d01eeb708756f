// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/xen"
)

// vhandler gives a device's messages to the data path.
type vhandler struct{ *VirtConn }

func (vhandler) SetStatus(uint8) error    { return nil }
func (vhandler) Reset() error             { return nil }
func (vhandler) SetMTU(uint16) error      { return nil }
func (h vhandler) SendRARP([6]byte) error { return h.VirtConn.SendRARP(udp(18, 77)) }

// grantFile maps regions of grants, which are the pages of a guest from firstRef on.
type grantFile struct {
	vhostuser.Kernel
	g      *vguest
	during atomic.Value // func() to call within the next copy
}

func (f *grantFile) Grants(int) (vhostuser.Grants, error) {
	return &grantDevice{standIn: newStandIn(f.g.tb, f.g.back), f: f}, nil
}

// grantDevice is a gntdev of a region.
type grantDevice struct {
	*standIn
	f *grantFile
}

func (d *grantDevice) Copy(segs []gntdev.Segment) error {
	if f, _ := d.f.during.Swap(func() {}).(func()); f != nil {
		f()
	}
	return d.standIn.Copy(segs)
}

func (d *grantDevice) Map(_ xen.Domid, refs []xen.Gref, _ gntdev.Prot) (*gntdev.Mapping, error) {
	at := int(refs[0]-firstRef) * 4096
	return gntdev.NewMapping(d.f.g.back[at:at+4096*len(refs)], func() error { return nil }), nil
}

func (d *grantDevice) Close() error { return nil }

// vlive is a device in a pool whose workers run, with the session of a front end.
type vlive struct {
	t       *testing.T
	pool    *Pool
	host    *host
	conn    *VirtConn
	notices chan Notice
	g       *vguest
	grants  *grantFile
	front   *vhostuser.Frontend
	served  chan error
}

func newVlive(t *testing.T, m mode, o vOptions, pairs int) *vlive {
	t.Helper()
	p, err := NewPool(Options{Workers: 2, NoUring: !m.uring, Warn: func(err error) { t.Error(err) }})
	must(t, err)
	t.Cleanup(p.Close)
	end := sharedTAP(t, pairs, m.vnet)
	end.host.tb = t
	must(t, end.tap.SetOffload(TapOffload(o.features)))
	return newVliveOn(t, p, end, m, o, 0, pairs)
}

// newVliveOn makes a device in a pool, on the queues of a TAP from first on.
func newVliveOn(t *testing.T, p *Pool, end sharedEnd, m mode, o vOptions, first, pairs int) *vlive {
	t.Helper()
	l := &vlive{t: t, pool: p, host: end.host, notices: make(chan Notice, 100), served: make(chan error, 1)}
	cfg := o.cfg
	cfg.VnetHdr = m.vnet
	cfg.Notice = func(n Notice) { l.notices <- n }
	for i := range pairs {
		cfg.Pairs = append(cfg.Pairs, VirtPair{end.tap.Queue(first + i)})
	}
	var err error
	l.conn, err = p.OpenVirt(cfg)
	must(t, err)
	t.Cleanup(l.conn.Close)
	l.g = newVguest(t, o)
	l.grants = &grantFile{g: l.g}
	l.connect()
	return l
}

// connect begins a session.
func (l *vlive) connect() {
	t := l.t
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	var conns [2]*net.UnixConn
	for i := range fds {
		conns[i], err = vhostuser.NewConn(fds[i])
		must(t, err)
	}
	b := vhostuser.NewBackend(conns[0], vhostuser.BackendConfig{
		Features:         VirtFeatures(true, true),
		ProtocolFeatures: vhostuser.ProtocolNet | vhostuser.ProtocolXenMmap,
		Rings:            2 * l.conn.Queues(), Mapper: l.grants,
	}, vhandler{l.conn})
	go func() { l.served <- b.Serve(context.Background()) }()
	l.front = vhostuser.NewFrontend(conns[1])
	_, _, err = l.front.Negotiate(l.g.o.features, vhostuser.ProtocolNet|vhostuser.ProtocolXenMmap)
	must(t, err)
	t.Cleanup(func() { _ = l.front.Close() })
}

// hangUp ends the session, as a front end that dies does, and waits for its end.
func (l *vlive) hangUp() {
	l.t.Helper()
	_ = l.front.Close()
	select {
	case <-l.served:
	case <-time.After(patience):
		l.t.Fatal("the session does not end")
	}
}

// share sends the guest's memory.
func (l *vlive) share() {
	l.t.Helper()
	r := vhostuser.Region{Guest: l.g.base, Size: vMemory, User: l.g.base}
	fd := l.g.fd
	if l.g.o.grants {
		r.Flags, r.Domid, r.User = vhostuser.RegionGrant|vhostuser.RegionNoAdvance, testDomid, 0
	}
	must(l.t, l.front.SetMemory([]vhostuser.Region{r}, []int{fd}))
}

// start starts both rings.
func (l *vlive) start() {
	l.t.Helper()
	for _, r := range []*vring{&l.g.rx, &l.g.tx} {
		a := vhostuser.VringAddr{Index: uint32(r.set.Index), Descriptor: r.set.Desc.Guest, Available: r.set.Avail.Guest, Used: r.set.Used.Guest}
		must(l.t, l.front.StartRing(a, r.set.Size, r.set.Base, r.kick, r.call))
		r.wake()
	}
}

// await waits until f is true, after a notification on fd or a moment.
func (l *vlive) await(fd int, f func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			l.t.Fatal("it does not happen")
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 10)
		eventCount(fd)
	}
}

// traffic moves packets both ways and compares them.
func (l *vlive) traffic(rounds int) {
	l.t.Helper()
	g := l.g
	for round := range rounds {
		for range 4 {
			if !g.put(vsent{frame: udp(100+round, uint16(round)), alone: true}) {
				l.t.Fatal("the tx ring is full")
			}
		}
		g.tx.push()
		sent := 0
		l.await(g.tx.call, func() bool { sent += g.sent(); return sent == 4 })
		if diff := diffFrames([][]byte{udp(100+round, uint16(round)), udp(100+round, uint16(round)), udp(100+round, uint16(round)), udp(100+round, uint16(round))}, l.host.frames()); diff != "" {
			l.t.Fatal(diff)
		}
		g.post(4)
		l.host.sendPlain(udp(3000, uint16(round)))
		var got []vgot
		l.await(g.rx.call, func() bool { got = append(got, g.received()...); return len(got) == 1 })
		if diff := diffFrames([][]byte{udp(3000, uint16(round))}, vframes(got)); diff != "" {
			l.t.Fatal(diff)
		}
	}
}

// TestVirtLive runs a device with real sessions: traffic, memory sent again, rings stopped
// and started, a front end that dies, and one that follows it.
func TestVirtLive(t *testing.T) {
	netns.NeedTUN(t)
	formats := []vOptions{
		{features: vModern, indirect: true}, {features: vModern, packed: true, indirect: true},
		{features: vModern, grants: true, indirect: true}, {features: vModern, grants: true, packed: true, indirect: true},
	}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		l := newVlive(t, m, o, 1)
		l.share()
		l.start()
		l.traffic(20)
		for range 3 {
			l.share()
			l.traffic(5)
		}
		if s := l.conn.State(0); !s.Rx.Live || !s.Tx.Live || s.Uring != m.uring {
			t.Errorf("state %+v", s)
		}
		for _, r := range []*vring{&l.g.rx, &l.g.tx} {
			base, err := l.front.StopRing(uint32(r.set.Index))
			must(t, err)
			r.set.Base = base
		}
		l.start()
		l.traffic(5)
		must(t, l.front.U64(vhostuser.SendRARP, 0x525400123456))
		var frames [][]byte
		l.await(l.g.tx.call, func() bool { frames = append(frames, l.host.frames()...); return len(frames) > 0 })
		if diff := diffFrames([][]byte{udp(18, 77)}, frames); diff != "" {
			t.Error(diff)
		}
		l.hangUp()
		if s := l.conn.State(0); s.Rx.Started || s.Tx.Started {
			t.Errorf("after the session: %+v", s)
		}
		if !o.packed {
			for _, r := range []*vring{&l.g.rx, &l.g.tx} {
				r.set.Base = uint32(binary.LittleEndian.Uint16(r.set.Used.Mem[2:]))
			}
			l.connect()
			l.share()
			l.start()
			l.traffic(5)
			l.hangUp()
		}
		if n := l.conn.Stats(0).Load(TxPackets); n == 0 || len(l.notices) > 0 {
			t.Errorf("%d packets, %d notices", n, len(l.notices))
		}
	})
}

// TestVirtSharesWorkers: two devices and a vif on the same workers.
func TestVirtSharesWorkers(t *testing.T) {
	inModes(t, vnetModes[:1], func(t *testing.T, m mode) {
		a := newVlive(t, m, vOptions{features: vModern}, 1)
		a.share()
		a.start()
		a.traffic(10)
		conn, err := a.pool.OpenVirt(VirtConfig{VnetHdr: true})
		must(t, err)
		conn.Close()
		if _, err := conn.StopRing(0); !errors.Is(err, ErrRingIndex) {
			t.Errorf("a ring of a device without pairs: %v", err)
		}
		if _, err := a.conn.StopRing(5); !errors.Is(err, ErrRingIndex) {
			t.Errorf("a ring that does not exist: %v", err)
		}
		a.traffic(10)
		a.conn.Close()
		a.conn.Close()
		if s := a.conn.State(0); s != (VirtState{}) {
			t.Errorf("state after Close: %+v", s)
		}
		if _, err := a.conn.StopRing(0); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestVirtCloseWhileBusy: Close returns in the middle of traffic, and nothing uses the
// guest's memory after it.
func TestVirtCloseWhileBusy(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		l := newVlive(t, m, o, 1)
		l.share()
		for range 10 {
			for _, r := range []*vring{&l.g.rx, &l.g.tx} {
				l.g.renew(r)
			}
			l.start()
			for range 60 {
				l.g.put(vsent{frame: udp(30000, 1)})
			}
			l.g.tx.push()
			l.g.post(100)
			for range 20 {
				l.host.sendPlain(udp(9000, 1))
			}
			if _, err := l.front.StopRing(1); err != nil {
				t.Fatal(err)
			}
			if _, err := l.front.StopRing(0); err != nil {
				t.Fatal(err)
			}
			must(t, unix.Madvise(l.g.mem, unix.MADV_DONTNEED))
			l.host.drain()
		}
		for _, r := range []*vring{&l.g.rx, &l.g.tx} {
			l.g.renew(r)
		}
		l.start()
		l.g.tx.push()
		l.hangUp()
	})
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// badGrants fails copies of some pages, or whole calls.
type badGrants struct {
	Copier
	page uint64 // guest page whose copies fail
	all  bool
}

func (c *badGrants) Copy(segs []gntdev.Segment) error {
	if c.all {
		return unix.EFAULT
	}
	err := c.Copier.Copy(segs)
	for i := range segs {
		if _, ref, _ := segs[i].Foreign(); uint64(ref) == c.page {
			segs[i].SetStatus(gntdev.StatusBadPage)
		}
	}
	return err
}

// TestVirtGrantsFail: a packet whose copy fails is dropped and counted, its chains come back,
// and others are not affected.
func TestVirtGrantsFail(t *testing.T) {
	inFormats(t, vnetModes, []vOptions{{features: vModern, grants: true}, {features: vModern, grants: true, packed: true}}, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		bad := &badGrants{}
		for i := range g.memory.regions {
			r := &g.memory.regions[i]
			if bad.Copier == nil {
				bad.Copier = r.grants
			}
			r.grants = bad
		}
		good := udp(500, 1)
		g.put(vsent{frame: good})
		bad.page = uint64(vhostuser.Gref(g.base + vData + uint64(g.nextTx%90*0x12000)))
		g.put(vsent{frame: udp(9000, 2)})
		g.put(vsent{frame: good})
		g.tx.push()
		b.settle()
		if diff := diffFrames([][]byte{good, good}, b.host.frames()); diff != "" {
			t.Error(diff)
		}
		if n := g.sent(); n != 3 || b.stat(DropTxGrant) != 1 {
			t.Errorf("%d chains came back, %v", n, b.stats(Drop))
		}

		g.post(20)
		bad.page = uint64(vhostuser.Gref(g.base + vPosted + 0x3000)) // of the second buffer
		b.host.sendPlain(good, good, good)
		b.settle()
		got := g.received()
		if len(got) != 3 || len(got[1].Frame) != 0 || b.stat(DropRxGrant) != 1 || b.stat(RxPackets) != 2 {
			t.Errorf("%d packets, %v", len(got), b.stats(Drop, Traffic))
		}
		bad.all = true
		g.send(vsent{frame: good}, vsent{frame: good})
		b.host.sendPlain(good)
		b.settle()
		if n := g.sent(); n != 2 || b.stat(DropTxGrant) != 3 || b.stat(DropRxGrant) != 2 || len(g.received()) != 1 {
			t.Errorf("whole calls: %d chains came back, %v", n, b.stats(Drop))
		}
		if b.breach() != nil {
			t.Error(b.breach())
		}
	})
}

// TestVirtReadsToLostMemory: a large packet that is read into memory that is gone costs the
// device. The kernel does not report that it could not write to the buffers.
func TestVirtReadsToLostMemory(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		g.post(200)
		f := partial(tcp(4, 30000))
		b.host.send(hostFrame{vnetOf(f, 1448), f.Bytes()})
		b.settle()
		if len(g.received()) != 1 || !b.queue().reader.large.last {
			t.Fatal("no large packet is expected")
		}
		must(t, unix.Ftruncate(g.fd, vPosted))
		b.host.send(hostFrame{vnetOf(f, 1448), f.Bytes()})
		b.settle()
		if err := b.breach(); !errors.Is(err, ErrMemoryGone) {
			t.Errorf("breach %v", err)
		}
	})
}

// TestVirtRefusals: what a front end asks for and cannot have.
func TestVirtRefusals(t *testing.T) {
	inFormats(t, vnetModes[:1], vPlain, func(t *testing.T, m mode, o vOptions) {
		l := newVlive(t, m, o, 1)
		l.share()
		for _, r := range []*vring{&l.g.rx, &l.g.tx} {
			if _, err := l.conn.StopRing(r.set.Index); !errors.Is(err, ErrRingStopped) {
				t.Errorf("stop: %v", err)
			}
			if err := l.conn.UpdateRing(r.set); !errors.Is(err, ErrRingStopped) {
				t.Errorf("update: %v", err)
			}
			bad := r.set
			bad.Size = 0
			if err := l.conn.StartRing(bad, l.conn.memory.table, nil); reasonOf(err) != virtqueue.ReasonSize {
				t.Errorf("no descriptors: %v", err)
			}
			bad = r.set
			file, err := unix.MemfdCreate("no event", unix.MFD_CLOEXEC)
			must(t, err)
			bad.Kick = file
			if err := l.conn.StartRing(bad, l.conn.memory.table, nil); !errors.Is(err, unix.EPERM) {
				t.Errorf("a kick that epoll refuses: %v", err)
			}
			must(t, unix.Close(file))
		}
		l.start()
		l.traffic(3)
		if err := l.conn.StartRing(l.g.rx.set, l.conn.memory.table, nil); !errors.Is(err, ErrRingStarted) {
			t.Errorf("start again: %v", err)
		}
		// A log for a while.
		log, err := virtqueue.NewLog(make([]byte, (vBase+vMemory)/4096/8))
		must(t, err)
		must(t, l.conn.SetLog(log))
		l.traffic(3)
		must(t, l.conn.SetLog(nil))
		// Parts that do not fit break their ring.
		short := l.g.tx.set
		short.Used.Mem = short.Used.Mem[:2]
		must(t, l.conn.SetMemory(l.conn.memory.table, []vhostuser.Ring{short}))
		if n := <-l.notices; n.Kind != Breach || reasonOf(n.Err) != virtqueue.ReasonRing {
			t.Errorf("notice %+v", n)
		}
		if s := l.conn.State(0); reasonOf(s.Tx.Err) != virtqueue.ReasonRing || s.Rx.Err != nil {
			t.Errorf("state %+v", s)
		}
		must(t, l.conn.SetMemory(l.conn.memory.table, []vhostuser.Ring{short})) // again
		l.hangUp()
	})
}

// TestVirtSlowCopy: while a grant copy for one device sleeps, packets of another one on its
// worker move. The slow one goes on when its copy is over, on another thread.
func TestVirtSlowCopy(t *testing.T) {
	formats := []vOptions{{features: vModern, grants: true, indirect: true}, {features: vModern, grants: true, packed: true}}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		p, err := NewPool(Options{Workers: 1, NoUring: !m.uring, Warn: func(err error) { t.Error(err) }})
		must(t, err)
		t.Cleanup(p.Close)
		end := sharedTAP(t, 2, m.vnet)
		end.host.tb = t
		must(t, end.tap.SetOffload(TapOffload(0)))
		other := o
		other.grants = false
		a := newVliveOn(t, p, end, m, o, 0, 1)
		b := newVliveOn(t, p, end, m, other, 1, 1)
		for _, l := range []*vlive{a, b} {
			l.share()
			l.start()
			l.send(5)
		}
		inCopy, goOn := make(chan struct{}), make(chan struct{})
		a.grants.during.Store(func() { close(inCopy); <-goOn })
		a.g.send(vsent{frame: udp(100, 1)})
		<-inCopy
		for range 50 {
			b.send(2)
		}
		must(t, p.Ping(t.Context()))
		close(goOn)
		n := 0
		a.await(a.g.tx.call, func() bool { n += a.g.sent(); return n == 1 })
		a.host.drain()
		for range 20 {
			a.send(3)
			b.send(3)
		}
		if a.conn.Stats(0).Load(SlowCopies) == 0 || b.conn.Stats(0).Load(SlowCopies) != 0 {
			t.Errorf("%d slow copies, %d of the other", a.conn.Stats(0).Load(SlowCopies), b.conn.Stats(0).Load(SlowCopies))
		}
		a.hangUp()
		b.hangUp()
		a.conn.Close()
		b.conn.Close()
	})
}

// send sends n packets from the guest, and waits until they are at the host.
func (l *vlive) send(n int) {
	l.t.Helper()
	for i := range n {
		l.g.put(vsent{frame: udp(100, uint16(i)), alone: true})
	}
	l.g.tx.push()
	done := 0
	l.await(l.g.tx.call, func() bool { done += l.g.sent(); return done == n })
	if got := l.host.drain(); got != n {
		l.t.Fatalf("%d packets at the host, want %d", got, n)
	}
}

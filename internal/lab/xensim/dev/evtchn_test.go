// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

func (x *fakeXen) evtchn(t testing.TB, d *hyp.Domain) *Evtchn {
	t.Helper()
	e, err := OpenEvtchn(x.hv, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// read returns the ports that a process reads from the pipe.
func (e *Evtchn) read(t testing.TB) []uint32 {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Read(e.Pipe(), b)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var ports []uint32
	for b = b[:n]; len(b) > 0; b = b[4:] {
		ports = append(ports, binary.NativeEndian.Uint32(b))
	}
	return ports
}

func wantPorts(t testing.TB, what string, got []uint32, want ...uint32) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: ports (-want +got):\n%s", what, diff)
	}
}

func TestPortsArriveInOrderAndStayMasked(t *testing.T) {
	x := newXen(t)
	fe, be := x.evtchn(t, x.guest), x.evtchn(t, x.dom0)
	var fp, bp [3]uint32
	for i := range fp {
		fp[i], _ = fe.BindUnbound(0)
		bp[i], _ = be.BindInterdomain(x.guest.ID(), fp[i])
	}
	wantPorts(t, "after bind", be.read(t), bp[:]...)
	for _, p := range bp {
		be.Unmask(p)
	}
	fe.Notify(fp[2])
	fe.Notify(fp[0])
	fe.Notify(fp[2])
	wantPorts(t, "two of three", be.read(t), bp[2], bp[0])
	wantPorts(t, "nothing more", be.read(t))
	be.Unmask(bp[2])
	wantPorts(t, "the one that came while masked", be.read(t), bp[2])
	fe.Unmask(bp[0]) // not a port of fe, or another port of it
	wantPorts(t, "unmasked by another process", be.read(t))
}

func TestPortsOfAnotherFile(t *testing.T) {
	x := newXen(t)
	a, b := x.evtchn(t, x.guest), x.evtchn(t, x.guest)
	port, _ := a.BindUnbound(0)
	wantErrno(t, "notify through another file", b.Notify(port), unix.ENOTCONN)
	wantErrno(t, "unbind through another file", b.Unbind(port), unix.ENOTCONN)
	wantErrno(t, "unbind of a port there cannot be", b.Unbind(1<<17), unix.EINVAL)
	wantErrno(t, "unbind", a.Unbind(port), 0)
	wantErrno(t, "unbind again", a.Unbind(port), unix.ENOTCONN)
	wantErrno(t, "notify after unbind", a.Notify(port), unix.ENOTCONN)
}

func TestRestrict(t *testing.T) {
	x := newXen(t)
	fe, be := x.evtchn(t, x.guest), x.evtchn(t, x.dom0)
	one, _ := fe.BindUnbound(0)
	two, _ := fe.BindUnbound(0)
	old, errno := be.BindUnbound(x.guest.ID())
	wantErrno(t, "offer", errno, 0)
	for _, domid := range []xen.Domid{0, hyp.FirstReserved, 0xffff} {
		wantErrno(t, "restrict to a domain that cannot be", be.Restrict(domid), unix.EINVAL)
	}
	wantErrno(t, "restrict", be.Restrict(x.guest.ID()), 0)
	wantErrno(t, "restrict again", be.Restrict(x.guest.ID()), unix.EACCES)
	wantErrno(t, "restrict to nonsense after all", be.Restrict(0), unix.EACCES)
	_, errno = be.BindInterdomain(x.guest.ID(), one)
	wantErrno(t, "bind to that domain", errno, 0)
	_, errno = be.BindInterdomain(99, two)
	wantErrno(t, "bind to another domain", errno, unix.EACCES)
	_, errno = be.BindUnbound(x.guest.ID())
	wantErrno(t, "offer", errno, unix.EACCES)
	wantErrno(t, "notify on a port from before", be.Notify(old), 0)
	wantErrno(t, "unbind of a port from before", be.Unbind(old), 0)
}

func TestEventQueuedBeforeUnbindStillComes(t *testing.T) {
	x := newXen(t)
	fe, be := x.evtchn(t, x.guest), x.evtchn(t, x.dom0)
	fp, _ := fe.BindUnbound(0)
	bp, _ := be.BindInterdomain(x.guest.ID(), fp)
	be.Unbind(bp)
	wantPorts(t, "after unbind", be.read(t), bp)
}

// TestQueueOverflows binds and unbinds ports faster than they are read. The queue fills
// with stale numbers and overflows, as the kernel's does.
func TestQueueOverflows(t *testing.T) {
	x := newXen(t)
	fe, be := x.evtchn(t, x.guest), x.evtchn(t, x.dom0)
	fp, _ := fe.BindUnbound(0)
	keep, _ := fe.BindUnbound(0)
	kept, _ := be.BindInterdomain(x.guest.ID(), keep)
	for range ringMin - 1 {
		bp, errno := be.BindInterdomain(x.guest.ID(), fp)
		wantErrno(t, "bind", errno, 0)
		be.Unbind(bp)
	}
	if got := len(be.read(t)); got != ringMin {
		t.Fatalf("%d ports queued, want %d: all that fit", got, ringMin)
	}
	for range ringMin + 1 {
		bp, _ := be.BindInterdomain(x.guest.ID(), fp)
		be.Unbind(bp)
	}
	wantPorts(t, "overflown", be.read(t), wire.Overflow)
	be.Unmask(kept)
	fe.Notify(keep)
	wantPorts(t, "until reset", be.read(t))
	be.Reset()
	fe.Notify(keep)
	wantPorts(t, "masked, since its event was lost", be.read(t))
	be.Unmask(kept)
	wantPorts(t, "unmasked", be.read(t), kept)
}

func TestQueueHasRoomForAllPorts(t *testing.T) {
	x := newXen(t)
	fe, be := x.evtchn(t, x.guest), x.evtchn(t, x.dom0)
	const n = 500
	for range n {
		fp, _ := fe.BindUnbound(0)
		_, errno := be.BindInterdomain(x.guest.ID(), fp)
		wantErrno(t, "bind", errno, 0)
	}
	if got := len(be.read(t)); got != n {
		t.Errorf("%d ports queued, want %d", got, n)
	}
}

func TestCloseOfAFileUnbindsItsPorts(t *testing.T) {
	x := newXen(t)
	fe := x.evtchn(t, x.guest)
	be, err := OpenEvtchn(x.hv, x.dom0)
	if err != nil {
		t.Fatal(err)
	}
	fp, _ := fe.BindUnbound(0)
	be.BindInterdomain(x.guest.ID(), fp)
	be.Close()
	if n := x.dom0.Info().Ports; n != 0 {
		t.Errorf("%d ports left", n)
	}
	again := x.evtchn(t, x.dom0)
	_, errno := again.BindInterdomain(x.guest.ID(), fp)
	wantErrno(t, "bind by the successor", errno, 0)
}

// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
)

// next waits for the next ports of e.
func next(t testing.TB, e *simclient.Events) []evtchn.Port {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, 10000); err == unix.EINTR {
			continue
		} else if err != nil || fds[0].Revents&unix.POLLIN == 0 {
			t.Fatalf("no event: poll says %#x, %v", fds[0].Revents, err)
		}
		break
	}
	var buf [16]evtchn.Port
	n, err := e.Pending(buf[:])
	ok(t, err)
	return append([]evtchn.Port{}, buf[:n]...)
}

// settle waits until all one-way calls through e have arrived: it makes a call with a reply
// behind them.
func settle(e *simclient.Events) { _ = e.Unbind(1 << 16) }

// none checks that e has no event after all calls through f have arrived.
func none(t testing.TB, what string, e, f *simclient.Events) {
	t.Helper()
	settle(f)
	var buf [16]evtchn.Port
	if n, err := e.Pending(buf[:]); n != 0 || err != nil {
		t.Errorf("%s: ports %v, %v; want none", what, buf[:n], err)
	}
}

func TestEvents(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	fe, be := s.events(guest), s.events(s.dom0)
	fp := must(fe.BindUnbound(0))(t)
	bp := must(be.BindInterdomain(guest.Domid(), fp))(t)
	want := []evtchn.Port{bp}
	if diff := cmp.Diff(want, next(t, be)); diff != "" {
		t.Errorf("event of the bind (-want +got):\n%s", diff)
	}
	ok(t, fe.Notify(fp))
	ok(t, fe.Notify(fp))
	none(t, "while masked", be, fe)
	ok(t, be.Unmask(want))
	if diff := cmp.Diff(want, next(t, be)); diff != "" {
		t.Errorf("after unmask (-want +got):\n%s", diff)
	}
	ok(t, be.Unmask(want))
	none(t, "two events while masked are one", be, be)
	ok(t, be.Notify(bp))
	if diff := cmp.Diff([]evtchn.Port{fp}, next(t, fe)); diff != "" {
		t.Errorf("the other way (-want +got):\n%s", diff)
	}
	ok(t, be.Unbind(bp))
	ok(t, fe.Notify(fp))
	bp2 := must(be.BindInterdomain(guest.Domid(), fp))(t)
	if diff := cmp.Diff([]evtchn.Port{bp2}, next(t, be)); diff != "" {
		t.Errorf("event of the second bind (-want +got):\n%s", diff)
	}
}

func TestEventErrors(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{MaxEventChannels: 3})
	fe, be, other := s.events(guest), s.events(s.dom0), s.events(s.dom0)
	fp := must(fe.BindUnbound(0))(t)
	bp := must(be.BindInterdomain(guest.Domid(), fp))(t)
	must(fe.BindUnbound(0))(t)
	must(fe.BindUnbound(0))(t)
	_, bindErr := be.BindInterdomain(guest.Domid(), 0)
	_, busyErr := other.BindInterdomain(guest.Domid(), fp)
	_, srchErr := other.BindInterdomain(99, 1)
	_, fullErr := fe.BindUnbound(0)
	ok(t, other.Restrict(guest.Domid()))
	_, offerErr := other.BindUnbound(guest.Domid())
	_, accessErr := other.BindInterdomain(7, 1)
	for _, tc := range []struct {
		name string
		err  error
		want evtchn.Error
	}{
		{"bind to port 0", bindErr, evtchn.Error{Op: "bind", Domid: guest.Domid(), Err: unix.EINVAL}},
		{"bind to a port that is taken", busyErr, evtchn.Error{Op: "bind", Domid: guest.Domid(), Port: fp, Err: unix.EINVAL}},
		{"bind to no domain", srchErr, evtchn.Error{Op: "bind", Domid: 99, Port: 1, Err: unix.ESRCH}},
		{"no port left", fullErr, evtchn.Error{Op: "offer", Err: unix.ENOSPC}},
		{"offer by a restricted file", offerErr, evtchn.Error{Op: "offer", Domid: guest.Domid(), Err: unix.EACCES}},
		{"bind by a restricted file", accessErr, evtchn.Error{Op: "bind", Domid: 7, Port: 1, Err: unix.EACCES}},
		{"restrict again", other.Restrict(guest.Domid()), evtchn.Error{Op: "restrict", Domid: guest.Domid(), Err: unix.EACCES}},
		{"notify on a port of another file", other.Notify(bp), evtchn.Error{Op: "notify", Port: bp, Err: unix.ENOTCONN}},
		{"notify on port 0", be.Notify(0), evtchn.Error{Op: "notify", Err: unix.EINVAL}},
		{"unbind of a port of another file", other.Unbind(bp), evtchn.Error{Op: "unbind", Port: bp, Err: unix.ENOTCONN}},
		{"unbind of port 0", be.Unbind(0), evtchn.Error{Op: "unbind", Err: unix.EINVAL}},
		{"unmask of port 0", be.Unmask([]evtchn.Port{bp, 0}), evtchn.Error{Op: "unmask", Err: unix.EINVAL}},
	} {
		var got *evtchn.Error
		if !errors.As(tc.err, &got) {
			t.Errorf("%s: error is a %T: %v", tc.name, tc.err, tc.err)
			continue
		}
		if diff := cmp.Diff(tc.want, *got, cmpopts.IgnoreFields(evtchn.Error{}, "Hint")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	ok(t, be.Unmask(nil))
	ok(t, be.Unbind(bp))
	if err := be.Notify(bp); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("notify after unbind: %v, want ENOTCONN", err)
	}
}

func TestOverflowUntilReset(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	fe, be := s.events(guest), s.events(s.dom0)
	fp := must(fe.BindUnbound(0))(t)
	bp := must(be.BindInterdomain(guest.Domid(), fp))(t)
	ok(t, s.ctl.OverflowEvents(0))
	var buf [4]evtchn.Port
	for range 2 {
		if _, err := be.Pending(buf[:]); !errors.Is(err, evtchn.ErrOverflow) {
			t.Errorf("pending: %v, want ErrOverflow", err)
		}
	}
	ok(t, be.Reset())
	none(t, "after reset", be, be)
	ok(t, fe.Notify(fp))
	none(t, "masked since its event was lost", be, fe)
	ok(t, be.Unmask([]evtchn.Port{bp}))
	if diff := cmp.Diff([]evtchn.Port{bp}, next(t, be)); diff != "" {
		t.Errorf("after unmask (-want +got):\n%s", diff)
	}
}

func TestPendingFillsWhatItIsGiven(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	fe, be := s.events(guest), s.events(s.dom0)
	var want, got []evtchn.Port
	for range 10 {
		fp := must(fe.BindUnbound(0))(t)
		want = append(want, must(be.BindInterdomain(guest.Domid(), fp))(t))
	}
	buf := make([]evtchn.Port, 4)
	for _, n := range []int{4, 4, 2, 0} {
		k := must(be.Pending(buf))(t)
		if k != n {
			t.Errorf("%d ports, want %d", k, n)
		}
		got = append(got, buf[:k]...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if n, err := be.Pending(nil); n != 0 || err != nil {
		t.Errorf("into nothing: %d, %v", n, err)
	}
	ok(t, be.Unmask(make1000(want[0])))
}

// make1000 returns more ports than one message takes.
func make1000(p evtchn.Port) []evtchn.Port {
	ports := make([]evtchn.Port, 3000)
	for i := range ports {
		ports[i] = p
	}
	return ports
}

func TestClosedEvents(t *testing.T) {
	s := startSim(t)
	e := s.events(s.dom0)
	p := must(e.BindUnbound(1))(t)
	ok(t, e.Close())
	ok(t, e.Close())
	if fd := e.FD(); fd != -1 {
		t.Errorf("descriptor %d after close", fd)
	}
	_, bindErr := e.BindUnbound(1)
	_, pendErr := e.Pending(make([]evtchn.Port, 1))
	for name, err := range map[string]error{
		"bind": bindErr, "pending": pendErr, "notify": e.Notify(p), "unbind": e.Unbind(p),
		"unmask": e.Unmask([]evtchn.Port{p}), "restrict": e.Restrict(1), "reset": e.Reset(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
	s.until("the port is closed", func() bool { return s.info(0).Ports == 0 })
}

// TestClosedMeansUnbound: a backend closes its channels and binds the same remote ports
// again for a new connection.
func TestClosedMeansUnbound(t *testing.T) {
	s := simProcess(t) // the scheduler is a real one
	guest := s.guest(simclient.DomainConfig{})
	fe := s.events(guest)
	fp := must(fe.BindUnbound(0))(t)
	for range 200 {
		be := must(s.dom0.Events())(t)
		must(be.BindInterdomain(guest.Domid(), fp))(t)
		ok(t, be.Close())
	}
}

func TestNotifyAllocatesNothing(t *testing.T) {
	s := simProcess(t)
	guest := s.guest(simclient.DomainConfig{})
	fe, be := s.events(guest), s.events(s.dom0)
	fp := must(fe.BindUnbound(0))(t)
	bp := []evtchn.Port{must(be.BindInterdomain(guest.Domid(), fp))(t)}
	buf := make([]evtchn.Port, 8)
	n := testing.AllocsPerRun(50, func() {
		_ = fe.Notify(fp)
		_, _ = be.Pending(buf)
		_ = be.Unmask(bp)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestListOfDomains(t *testing.T) {
	s := startSim(t)
	var want []xen.Domid
	for i := range 150 { // more than two replies hold
		if i > 0 {
			want = append(want, must(s.ctl.CreateDomain(simclient.DomainConfig{Name: "guest", Pages: 4}))(t))
		} else {
			want = append(want, 0)
		}
	}
	var got []xen.Domid
	for _, d := range must(s.ctl.Domains())(t) {
		got = append(got, d.Domid)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("domains (-want +got):\n%s", diff)
	}
	ok(t, s.ctl.Destroy(5))
	if _, err := s.ctl.Domain(5); !errors.Is(err, unix.ENOENT) {
		t.Errorf("destroyed domain: %v, want ENOENT", err)
	}
	want = append(want[:5], want[6:]...)
	if n := len(must(s.ctl.Domains())(t)); n != len(want) {
		t.Errorf("%d domains, want %d", n, len(want))
	}
}

func TestControlErrors(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	if _, err := guest.Control(); !errors.Is(err, unix.EPERM) {
		t.Errorf("control by a guest: %v, want EPERM", err)
	}
	if _, err := simclient.Dial(s.dir, 99); !errors.Is(err, unix.ESRCH) {
		t.Errorf("dial of no domain: %v, want ESRCH", err)
	}
	if _, err := simclient.Dial(t.TempDir(), 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("dial of no simulation: %v, want ENOENT", err)
	}
	if _, err := s.ctl.CreateDomain(simclient.DomainConfig{Pages: -1}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("domain of -1 pages: %v, want EINVAL", err)
	}
	for name, tc := range map[string]struct {
		err  error
		want unix.Errno
	}{
		"destroy of dom0":      {s.ctl.Destroy(0), unix.EPERM},
		"pause of dom0":        {s.ctl.Pause(0), unix.EINVAL},
		"destroy of no domain": {s.ctl.Destroy(99), unix.ESRCH},
		"pause of no domain":   {s.ctl.Pause(99), unix.ESRCH},
		"DOMID_SELF":           {s.ctl.Unpause(0x7ff0), unix.ESRCH},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %v", name, tc.err, tc.want)
		}
	}
}

func TestPausedGuestMakesNoHypercall(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{Paused: true})
	fe := s.events(guest)
	bound := make(chan evtchn.Port)
	go func() {
		p, _ := fe.BindUnbound(0)
		bound <- p
	}()
	if i := s.info(guest.Domid()); !i.Paused || i.Ports != 0 {
		t.Errorf("paused guest: %+v", i)
	}
	ok(t, s.ctl.Unpause(guest.Domid()))
	port := <-bound

	be := s.events(s.dom0)
	bp := must(be.BindInterdomain(guest.Domid(), port))(t)
	ok(t, s.ctl.Pause(guest.Domid()))
	ok(t, be.Notify(bp))
	none(t, "while paused", fe, be)
	ok(t, s.ctl.Unpause(guest.Domid()))
	if diff := cmp.Diff([]evtchn.Port{port}, next(t, fe)); diff != "" {
		t.Errorf("after unpause (-want +got):\n%s", diff)
	}
	// Destroying a paused domain ends its waiting processes, too.
	ok(t, s.ctl.Pause(guest.Domid()))
	errs := make(chan error)
	go func() { errs <- fe.Unbind(port) }()
	ok(t, s.ctl.Destroy(guest.Domid()))
	if err := <-errs; !errors.Is(err, simclient.ErrGone) {
		t.Errorf("unbind: %v, want ErrGone", err)
	}
}

func TestShutdownDomainWaitsToBeDestroyed(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	xs := must(s.dom0.Xenstore())(t)
	defer xs.Close()
	ok(t, xs.Introduce(t.Context(), guest.Domid(), 0, 1))
	w := must(xs.Watch(t.Context(), xenstore.ReleaseDomain))(t)
	<-w.C() // the first one says that the watch is set
	ok(t, s.ctl.Shutdown(guest.Domid()))
	<-w.C()
	ok(t, s.ctl.Unpause(guest.Domid()))
	if i := s.info(guest.Domid()); !i.Shutdown || !i.Paused {
		t.Errorf("it runs again: %+v", i)
	}
	ok(t, s.ctl.Destroy(guest.Domid()))
	<-w.C()
}

func TestXenstoreOfAGuest(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	dom0 := must(s.dom0.Xenstore())(t)
	defer dom0.Close()
	home := xenstore.DomainPath(guest.Domid())
	ok(t, dom0.Write(t.Context(), home+"/name", "web01"))
	ok(t, dom0.SetPermissions(t.Context(), home, []xenstore.Perm{{Domid: 0}, {Domid: guest.Domid(), Access: xenstore.AccessRead}}))
	ok(t, dom0.SetPermissions(t.Context(), home+"/name", []xenstore.Perm{{Domid: 0}, {Domid: guest.Domid(), Access: xenstore.AccessRead}}))
	ok(t, dom0.Introduce(t.Context(), guest.Domid(), 0, 1))

	xs := must(guest.Xenstore())(t)
	defer xs.Close()
	if xs.Kind() != xenstore.Xenbus || dom0.Kind() != xenstore.Socket {
		t.Errorf("kinds are %v and %v", xs.Kind(), dom0.Kind())
	}
	if got := must(xs.Read(t.Context(), "name"))(t); got != "web01" {
		t.Errorf("name is %q", got)
	}
	if err := xs.Write(t.Context(), "name", "evil"); !errors.Is(err, unix.EACCES) {
		t.Errorf("write to what it may read: %v, want EACCES", err)
	}
	ok(t, s.ctl.Destroy(guest.Domid()))
	<-xs.Done()
}

func TestCounters(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 2, true))(t)
	fe, be := s.events(guest), s.events(s.dom0)
	fp := must(fe.BindUnbound(0))(t)
	bp := must(be.BindInterdomain(guest.Domid(), fp))(t)
	for range 3 { // one is delivered, one is pending, one merges with the pending one
		ok(t, be.Notify(bp))
	}
	none(t, "bystander", s.events(s.dom0), be)
	dev := s.grants(s.dom0)
	m := must(dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite))(t)
	if ops := s.info(0).Counters.GrantOps(); ops != 2 {
		t.Errorf("%d grant operations, want 2", ops)
	}
	m.Bytes()[0] = 1 // costs none
	arena := must(gntdev.NewArena(4096))(t)
	defer arena.Close()
	segs := make([]gntdev.Segment, 20)
	for i := range segs {
		segs[i].FromGuest(guest.Domid(), pages.Refs()[i%2], 0, arena.Bytes()[:10])
	}
	ok(t, dev.Copy(segs))
	ok(t, m.Unmap())
	got, want := s.info(0).Counters, simclient.Counters{
		GrantMaps: 2, GrantUnmaps: 2, GrantCopyCalls: 2, GrantCopyOps: 20, GrantCopyBytes: 200,
		EventBinds: 1, EventSends: 3, EventsDelivered: 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dom0 (-want +got):\n%s", diff)
	}
	got, want = s.info(guest.Domid()).Counters, simclient.Counters{
		GrantedMaps: 2, GrantedUnmaps: 2, GrantedCopies: 20,
		EventBinds: 1, EventsDelivered: 1, EventsCoalesced: 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("guest (-want +got):\n%s", diff)
	}
}

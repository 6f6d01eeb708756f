// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// grantDevice, pageDevice, ownDevice and eventDevice are the methods that *gntdev.Device,
// *gntalloc.Device and *evtchn.Device have in common with their doubles.
type grantDevice interface {
	Copy(segs []gntdev.Segment) error
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

type pageDevice interface {
	Alloc(domid xen.Domid, n int, writable bool) (*gntalloc.Pages, error)
}

// ownDevice is the device of the domain in which the test runs.
type ownDevice interface {
	AllocAt(mem []byte, domid xen.Domid, writable bool) (*gntalloc.Pages, error)
}

type eventDevice interface {
	FD() int
	BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error)
	BindUnbound(domid xen.Domid) (evtchn.Port, error)
	Unbind(port evtchn.Port) error
	Notify(port evtchn.Port) error
	Pending(buf []evtchn.Port) (int, error)
	Unmask(ports []evtchn.Port) error
	Restrict(domid xen.Domid) error
	Close() error
}

// domains is a guest and dom0 as their devices show them.
type domains struct {
	domid       xen.Domid // of the guest
	grants      grantDevice
	pages       pageDevice
	own         ownDevice
	back, front eventDevice
	restricted  eventDevice // another one of dom0's
}

// TestGuestForTestsIsAsStrict does the same to the embedded Xen and to the guest of
// package xentest, which must have the same to say.
func TestGuestForTestsIsAsStrict(t *testing.T) {
	s := startSim(t)
	c := s.guest(simclient.DomainConfig{GntallocLimit: 16})
	embedded := domains{
		c.Domid(), s.grants(s.dom0), s.pages(c), s.pages(s.dom0), s.events(s.dom0), s.events(c), s.events(s.dom0),
	}
	g := xentest.Start(t, c.Domid())
	open := func(f func() (*xentest.Evtchn, error)) *xentest.Evtchn {
		e := must(f())(t)
		t.Cleanup(func() { e.Close() })
		return e
	}
	double := domains{
		c.Domid(), g.Gntdev(), g.Gntalloc(), xentest.StartOwn(t, 16), open(g.OpenEvtchn), open(g.OpenGuestEvtchn), open(g.OpenEvtchn),
	}
	for name, f := range map[string]func(testing.TB, domains) []string{"grants": grantAnswers, "own pages": ownAnswers, "events": eventAnswers} {
		t.Run(name, func(t *testing.T) {
			want := f(t, embedded)
			if diff := cmp.Diff(want, f(t, double)); diff != "" {
				t.Errorf("answers (-embedded Xen +xentest):\n%s", diff)
			}
			for _, line := range want {
				t.Log(line)
			}
		})
	}
}

// grantAnswers maps and copies pages of all kinds.
func grantAnswers(t testing.TB, d domains) (got []string) {
	a := must(gntdev.NewArena(gntdev.PageSize))(t)
	defer a.Close()
	rw := must(d.pages.Alloc(0, 2, true))(t)
	ro := must(d.pages.Alloc(0, 1, false))(t)
	other := must(d.pages.Alloc(d.domid+1, 1, true))(t)
	freed := must(d.pages.Alloc(0, 1, true))(t)
	freedRefs := freed.Refs()
	ok(t, freed.Free())
	defer rw.Free()
	defer ro.Free()
	defer other.Free()
	const beyond = 1 << 24
	for _, c := range []struct {
		name  string
		domid xen.Domid
		refs  []xen.Gref
	}{
		{"writable", d.domid, rw.Refs()},
		{"read-only", d.domid, ro.Refs()},
		{"one of two read-only", d.domid, []xen.Gref{rw.Refs()[0], ro.Refs()[0]}},
		{"granted to another domain", d.domid, other.Refs()},
		{"freed", d.domid, freedRefs},
		{"beyond the table", d.domid, []xen.Gref{beyond}},
		{"no such domain", d.domid + 1, rw.Refs()[:1]},
	} {
		for _, prot := range []gntdev.Prot{gntdev.ReadOnly, gntdev.ReadWrite} {
			m, err := d.grants.Map(c.domid, c.refs, prot)
			got = append(got, fmt.Sprintf("map %s, %v: %v", c.name, prot, err))
			if err == nil {
				ok(t, m.Unmap())
			}
		}
		for _, ref := range c.refs {
			segs := make([]gntdev.Segment, 3)
			segs[0].FromGuest(c.domid, ref, 0, a.Bytes())
			segs[1].ToGuest(c.domid, ref, 4095, a.Bytes()[:1])
			segs[2].FromGuest(c.domid, ref, 0, a.Bytes()[:0])
			err := d.grants.Copy(segs)
			got = append(got, fmt.Sprintf("copy %s: %v %v %v, %v", c.name, segs[0].Status(), segs[1].Status(), segs[2].Status(), err))
		}
	}
	var across [1]gntdev.Segment
	across[0].ToGuest(d.domid, rw.Refs()[0], 4095, a.Bytes()[:2])
	return append(got, fmt.Sprintf("copy across a page end: %v", d.grants.Copy(across[:])))
}

// ownAnswers copies between pages of the guest and pages that dom0 has granted.
func ownAnswers(t testing.TB, d domains) (got []string) {
	a := must(gntdev.NewArena(8 * gntdev.PageSize))(t)
	defer a.Close()
	mem := a.Bytes()
	place := func(i int) []byte { return mem[i*gntdev.PageSize:][:gntdev.PageSize] }
	copy(place(0), "in the way")
	rw := must(d.own.AllocAt(mem[:2*gntdev.PageSize], 0, true))(t)
	defer rw.Free()
	ro := must(d.own.AllocAt(place(2), 0, false))(t)
	defer ro.Free()
	other := must(d.own.AllocAt(place(3), d.domid, true))(t)
	defer other.Free()
	freed := must(d.own.AllocAt(place(4), 0, true))(t)
	freedRef := freed.Refs()[0]
	copy(place(4), "granted once")
	ok(t, freed.Free())
	got = append(got, fmt.Sprintf("contents: %q, %q", place(0)[:10], place(4)[:12]))

	guest := must(d.pages.Alloc(0, 1, true))(t)
	defer guest.Free()
	guestRO := must(d.pages.Alloc(0, 1, false))(t)
	defer guestRO.Free()
	const beyond = 1 << 30
	copy(guest.Bytes(), "from the guest")
	copy(mem[gntdev.PageSize:], "to the guest")
	for _, c := range []struct {
		name string
		own  xen.Gref
		ref  xen.Gref
	}{
		{"both good", rw.Refs()[1], guest.Refs()[0]},
		{"own page read-only", ro.Refs()[0], guest.Refs()[0]},
		{"own page granted to the guest", other.Refs()[0], guest.Refs()[0]},
		{"own page freed", freedRef, guest.Refs()[0]},
		{"own gref beyond the table", beyond, guest.Refs()[0]},
		{"guest's page read-only", rw.Refs()[1], guestRO.Refs()[0]},
		{"guest's gref beyond the table", rw.Refs()[1], beyond},
		{"both beyond the table", beyond, beyond},
		{"own page freed, the guest's beyond the table", freedRef, beyond},
	} {
		for _, domid := range []xen.Domid{d.domid, d.domid + 1} {
			segs := make([]gntdev.Segment, 3)
			segs[0].ToGuestFromOwn(domid, c.ref, 100, c.own, 3, 9)
			segs[1].FromGuestToOwn(domid, c.ref, 5, c.own, 200, 9)
			segs[2].FromGuestToOwn(domid, c.ref, 4096, c.own, 4096, 0)
			err := d.grants.Copy(segs)
			got = append(got, fmt.Sprintf("copy %s, domain %d: %v %v %v, %v", c.name, domid-d.domid,
				segs[0].Status(), segs[1].Status(), segs[2].Status(), err))
			got = append(got, fmt.Sprintf("now: %q %q", guest.Bytes()[100:109], mem[gntdev.PageSize+200:][:9]))
			clear(guest.Bytes()[100:109])
		}
	}
	// From an own page to an own page, and to an address.
	copy(mem[gntdev.PageSize:], "to itself")
	segs := make([]gntdev.Segment, 4)
	segs[0].FromGuestToOwn(xen.DomidSelf, rw.Refs()[1], 0, rw.Refs()[0], 7, 9)
	segs[1].FromGuestToOwn(xen.DomidSelf, rw.Refs()[1], 0, rw.Refs()[1], 100, 9)
	segs[2].FromGuest(xen.DomidSelf, rw.Refs()[1], 3, place(7)[:6])
	segs[3].FromGuest(xen.DomidSelf, freedRef, 3, place(7)[:6])
	err := d.grants.Copy(segs)
	got = append(got, fmt.Sprintf("copy own to own: %v %v %v %v, %v: %q %q %q", segs[0].Status(), segs[1].Status(), segs[2].Status(), segs[3].Status(), err,
		mem[7:16], mem[gntdev.PageSize+100:][:9], place(7)[:6]))
	var across [1]gntdev.Segment
	across[0].ToGuestFromOwn(d.domid, guest.Refs()[0], 0, rw.Refs()[0], 4095, 2)
	return append(got, fmt.Sprintf("copy across the end of an own page: %v", d.grants.Copy(across[:])))
}

// eventAnswers binds ports in all wrong ways and in the right one, and sends events.
func eventAnswers(t testing.TB, d domains) (got []string) {
	say := func(what string, err error) { got = append(got, fmt.Sprintf("%s: %v", what, err)) }
	bind := func(what string, e eventDevice, domid xen.Domid, remote evtchn.Port) evtchn.Port {
		p, err := e.BindInterdomain(domid, remote)
		say(fmt.Sprintf("bind %s: port %d", what, p), err)
		return p
	}
	pending := func(what string, e eventDevice) {
		fds := []unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 10000); err != nil {
			t.Fatal(err)
		}
		var buf [4]evtchn.Port
		n, err := e.Pending(buf[:])
		say(fmt.Sprintf("%s: pending %v", what, buf[:n]), err)
	}
	say("restrict to dom0", d.restricted.Restrict(0))
	ok(t, d.restricted.Restrict(d.domid))
	say("restrict again", d.restricted.Restrict(d.domid))
	front := must(d.front.BindUnbound(0))(t)
	forOther := must(d.front.BindUnbound(d.domid + 1))(t)
	_, err := d.restricted.BindUnbound(d.domid)
	say("offer with a restricted device", err)

	bind("port 0", d.back, d.domid, 0)
	bind("a port that is not there", d.back, d.domid, 77)
	bind("a port for another domain", d.back, d.domid, forOther)
	bind("of no domain", d.back, d.domid+1, front)
	bind("of another domain, restricted", d.restricted, d.domid+1, front)
	back := bind("a port", d.back, d.domid, front)
	bind("a port that is bound", d.restricted, d.domid, front)
	pending("after bind", d.back)
	ok(t, d.front.Notify(front))
	ok(t, d.front.Notify(front))
	ok(t, d.back.Unmask([]evtchn.Port{back}))
	pending("unmasked", d.back)
	ok(t, d.back.Notify(back))
	pending("the other way", d.front)

	say("notify 0", d.back.Notify(0))
	say("notify of another device's port", d.restricted.Notify(back))
	say("notify of no port", d.back.Notify(99))
	say("unmask 0", d.back.Unmask([]evtchn.Port{0}))
	say("unmask of no port", d.back.Unmask([]evtchn.Port{99}))
	say("unbind of another device's port", d.restricted.Unbind(back))
	ok(t, d.back.Unbind(back))
	say("unbind again", d.back.Unbind(back))
	say("notify an end that is gone", d.front.Notify(front))
	back = bind("again", d.restricted, d.domid, front)
	ok(t, d.front.Close())
	say("notify a device that is gone", d.restricted.Notify(back))
	bind("a port that is gone", d.back, d.domid, front)
	ok(t, d.restricted.Close())
	say("notify after close", d.restricted.Notify(back))
	return got
}

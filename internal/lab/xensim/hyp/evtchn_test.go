// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// upcalls is a domain's kernel that records its events.
type upcalls []uint32

func (u *upcalls) Event(port uint32) { *u = append(*u, port) }

func (u *upcalls) take() []uint32 {
	got := *u
	*u = nil
	return got
}

func wantEvents(t testing.TB, what string, u *upcalls, want ...uint32) {
	t.Helper()
	if got := u.take(); !slices.Equal(got, want) {
		t.Errorf("%s: events on ports %v, want %v", what, got, want)
	}
}

func wantErrno(t testing.TB, what string, got, want unix.Errno) {
	t.Helper()
	if got != want {
		t.Errorf("%s: errno %d (%v), want %d", what, got, got, want)
	}
}

// pair has two domains with a channel between them, without a pending event.
type pair struct {
	h           *Hypervisor
	front, back *Domain
	fe, be      upcalls
	fp, bp      uint32
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{h: newXen(t)}
	p.front, p.back = newGuest(t, p.h), p.h.Domain(0, 0)
	var errno unix.Errno
	p.fp, errno = p.front.AllocUnbound(0, &p.fe)
	wantErrno(t, "offer", errno, 0)
	p.bp, errno = p.back.BindInterdomain(p.front.ID(), p.fp, &p.be)
	wantErrno(t, "bind", errno, 0)
	return p
}

func TestBindRaisesAnEvent(t *testing.T) {
	p := newPair(t)
	wantEvents(t, "backend after bind", &p.be, p.bp)
	wantEvents(t, "frontend after bind", &p.fe)
}

func TestEventIsMaskedUntilUnmasked(t *testing.T) {
	p := newPair(t)
	p.be.take()
	// The first event of the port, from its binding, has masked it.
	p.front.Send(p.fp)
	p.front.Send(p.fp)
	wantEvents(t, "while masked", &p.be)
	p.back.Unmask(p.bp)
	wantEvents(t, "two events while masked", &p.be, p.bp)
	p.back.Unmask(p.bp)
	wantEvents(t, "unmask without an event", &p.be)
	p.front.Send(p.fp)
	wantEvents(t, "while not masked", &p.be, p.bp)
	if c := p.back.Info().Counters; c.EventsCoalesced != 1 || c.EventsDelivered != 3 {
		t.Errorf("%d delivered, %d coalesced; want 3 and 1", c.EventsDelivered, c.EventsCoalesced)
	}
}

func TestEventOnUnboundPortIsLost(t *testing.T) {
	p := newPair(t)
	lonely, errno := p.front.AllocUnbound(0, &p.fe)
	wantErrno(t, "offer", errno, 0)
	wantErrno(t, "send", p.front.Send(lonely), 0)
	if c := p.front.Info().Counters; c.EventsDropped != 1 {
		t.Errorf("%d dropped, want 1", c.EventsDropped)
	}
}

func TestCloseLeavesThePeerUnbound(t *testing.T) {
	p := newPair(t)
	p.be.take()
	wantErrno(t, "close", p.back.CloseChannel(p.bp), 0)
	wantErrno(t, "close again", p.back.CloseChannel(p.bp), unix.EINVAL)
	wantErrno(t, "send to an unconnected port", p.front.Send(p.fp), 0)
	wantErrno(t, "send on a closed port", p.back.Send(p.bp), unix.EINVAL)

	other := newGuest(t, p.h)
	_, errno := other.BindInterdomain(p.front.ID(), p.fp, &upcalls{})
	wantErrno(t, "bind by another domain", errno, unix.EINVAL)
	again, errno := p.back.BindInterdomain(p.front.ID(), p.fp, &p.be)
	wantErrno(t, "bind again", errno, 0)
	if again != p.bp {
		t.Errorf("port %d, want the lowest free one, %d", again, p.bp)
	}
	wantEvents(t, "backend after bind", &p.be, again)
}

func TestBindErrors(t *testing.T) {
	p := newPair(t)
	dead := newGuest(t, p.h)
	offered, _ := dead.AllocUnbound(0, &p.fe)
	grant(dead, ref, permit, 0, table)
	g, _ := p.back.Acquire(dead, ref, false, ForMap)
	dead.Kill()
	defer g.Release()
	forOther, _ := p.front.AllocUnbound(7, &p.fe)
	for _, tc := range []struct {
		name  string
		domid xen.Domid
		port  uint32
		want  unix.Errno
	}{
		{"no such domain", 99, 1, unix.ESRCH},
		{"port 0", p.front.ID(), 0, unix.EINVAL},
		{"port never opened", p.front.ID(), 77, unix.EINVAL},
		{"largest port", p.front.ID(), ^uint32(0), unix.EINVAL},
		{"port that is connected", p.front.ID(), p.fp, unix.EINVAL},
		{"port offered to another domain", p.front.ID(), forOther, unix.EINVAL},
		{"port of a dying domain", dead.ID(), offered, unix.EINVAL},
	} {
		before := p.back.Info().Ports
		_, errno := p.back.BindInterdomain(tc.domid, tc.port, &p.be)
		wantErrno(t, tc.name, errno, tc.want)
		if after := p.back.Info().Ports; after != before {
			t.Errorf("%s: %d ports, %d before", tc.name, after, before)
		}
	}
}

func TestPortsOfADomainAreBounded(t *testing.T) {
	h := newXen(t)
	d := newGuest(t, h)
	for i := range small.MaxEventChannels {
		port, errno := d.AllocUnbound(0, nil)
		wantErrno(t, "offer", errno, 0)
		if port != uint32(i+1) {
			t.Fatalf("port %d, want %d: the lowest free one", port, i+1)
		}
	}
	_, errno := d.AllocUnbound(0, nil)
	wantErrno(t, "one more", errno, unix.ENOSPC)
	d.CloseChannel(3)
	port, errno := d.AllocUnbound(0, nil)
	wantErrno(t, "after one was closed", errno, 0)
	if port != 3 {
		t.Errorf("port %d, want 3", port)
	}
}

func TestDomainConnectsToItself(t *testing.T) {
	h := newXen(t)
	d := newGuest(t, h)
	var u upcalls
	a, errno := d.AllocUnbound(DomidSelf, &u)
	wantErrno(t, "offer", errno, 0)
	b, errno := d.BindInterdomain(DomidSelf, a, &u)
	wantErrno(t, "bind", errno, 0)
	wantEvents(t, "bind", &u, b)
	d.Send(b)
	wantEvents(t, "send", &u, a)
	wantErrno(t, "close", d.CloseChannel(a), 0)
	wantErrno(t, "close", d.CloseChannel(b), 0)
	if n := d.Info().Ports; n != 0 {
		t.Errorf("%d ports left", n)
	}
}

func TestDeathClosesPorts(t *testing.T) {
	p := newPair(t)
	p.be.take()
	p.front.Kill()
	wantErrno(t, "send to the dead", p.back.Send(p.bp), 0)
	wantEvents(t, "backend", &p.be)
	if i := p.back.Info(); i.Ports != 1 || i.Interdomain != 0 {
		t.Errorf("%d ports, %d connected; want the one port, unbound", i.Ports, i.Interdomain)
	}
	_, errno := p.front.AllocUnbound(0, &p.fe)
	wantErrno(t, "offer by the dead", errno, unix.EINVAL)
}

func TestPausedDomainHearsNothing(t *testing.T) {
	p := newPair(t)
	p.be.take()
	p.front.Pause()
	p.front.Pause()
	p.back.Send(p.bp)
	wantEvents(t, "while paused", &p.fe)
	cancel := make(chan struct{})
	running := make(chan bool)
	go func() { running <- p.front.WaitRunning(cancel) }()
	p.front.Unpause()
	wantEvents(t, "after it was unpaused", &p.fe, p.fp)
	if !<-running {
		t.Error("WaitRunning says the domain is dead")
	}
	p.front.Pause()
	close(cancel)
	if p.front.WaitRunning(cancel) {
		t.Error("WaitRunning says the domain runs")
	}
	go func() { running <- p.front.WaitRunning(nil) }()
	p.front.Kill()
	if <-running {
		t.Error("WaitRunning says the dead domain runs")
	}
}

func TestDomainThatShutDownStaysStopped(t *testing.T) {
	h := newXen(t)
	d := newGuest(t, h)
	if !d.Shutdown() || d.Shutdown() {
		t.Error("want the first Shutdown to say so, and only that")
	}
	d.Unpause()
	if i := d.Info(); !i.Paused || !i.Shutdown {
		t.Errorf("it runs again: %+v", i)
	}
}

func TestConfigIsChecked(t *testing.T) {
	h := newXen(t)
	for name, cfg := range map[string]wire.DomainConfig{
		"long name":              {Name: string(make([]byte, 65))},
		"negative memory":        {Pages: -1},
		"absurd memory":          {Pages: maxPages + 1},
		"absurd grant table":     {MaxGrantFrames: maxGrantFrames + 1},
		"negative ports":         {MaxEventChannels: -1},
		"more ports than exist":  {MaxEventChannels: 1 << 17},
		"absurd maptrack frames": {MaxMaptrackFrames: maxMaptrackFrames + 1},
	} {
		if _, err := h.Create(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d, err := h.Create(wire.DomainConfig{})
	if err != nil {
		t.Fatal(err)
	}
	want := wire.DomainConfig{Pages: 16384, MaxGrantFrames: 64, MaxMaptrackFrames: 1024, MaxEventChannels: 1023}
	if d.Config() != want {
		t.Errorf("defaults are %+v, want %+v", d.Config(), want)
	}
}

// TestEventModel: in any sequence of operations of two domains on a channel, every event is
// delivered or pending exactly once.
func TestEventModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, err := New(small)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		front, err := h.Create(small)
		if err != nil {
			t.Fatal(err)
		}
		back := h.Domain(0, 0)
		var fe, be upcalls
		fp, _ := front.AllocUnbound(0, &fe)
		var bp uint32 // 0: not bound

		// The model of one port.
		type port struct{ pending, masked bool }
		var mf, mb port
		var wantF, wantB int
		raise := func(p *port, count *int) {
			p.pending = true
			if !p.masked {
				p.pending, p.masked = false, true
				*count++
			}
		}
		unmask := func(p *port, count *int) {
			p.masked = false
			if p.pending {
				p.pending, p.masked = false, true
				*count++
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"bind": func(t *rapid.T) {
				port, errno := back.BindInterdomain(front.ID(), fp, &be)
				if (errno == 0) != (bp == 0) {
					t.Fatalf("bind: %v, bound before to %d", errno, bp)
				}
				if errno == 0 {
					bp = port
					raise(&mb, &wantB)
				}
			},
			"close": func(t *rapid.T) {
				if bp != 0 {
					back.CloseChannel(bp)
					bp, mb = 0, port{}
				}
			},
			"front sends": func(t *rapid.T) {
				front.Send(fp)
				if bp != 0 {
					raise(&mb, &wantB)
				}
			},
			"back sends": func(t *rapid.T) {
				if bp != 0 {
					back.Send(bp)
					raise(&mf, &wantF)
				}
			},
			"front unmasks": func(t *rapid.T) { front.Unmask(fp); unmask(&mf, &wantF) },
			"back unmasks": func(t *rapid.T) {
				if bp != 0 {
					back.Unmask(bp)
					unmask(&mb, &wantB)
				}
			},
			"": func(t *rapid.T) {
				if len(fe) != wantF || len(be) != wantB {
					t.Fatalf("events delivered: front %d, back %d; want %d and %d", len(fe), len(be), wantF, wantB)
				}
			},
		})
	})
}

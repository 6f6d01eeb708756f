// SPDX-License-Identifier: Apache-2.0

package xentest_test

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

const domid = 7

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func gnttab(t testing.TB, g *xentest.Guest) *xentest.Gntdev {
	t.Helper()
	d, err := g.OpenGntdev()
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func events(t testing.TB, open func() (*xentest.Evtchn, error)) *xentest.Evtchn {
	t.Helper()
	e, err := open()
	must(t, err)
	t.Cleanup(func() { e.Close() })
	return e
}

// faults reports whether f touches memory that it may not touch.
func faults(f func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	f()
	return false
}

// TestGrefs: what a map and a copy of each kind of gref have to say, in Xen's words.
func TestGrefs(t *testing.T) {
	g := xentest.Start(t, domid)
	d := gnttab(t, g)
	g.GrantAt(20, gntdev.ReadWrite)
	g.GrantAt(21, gntdev.ReadOnly)
	g.GrantAt(22, gntdev.ReadWrite)
	must(t, g.Revoke(22))
	a, err := gntdev.NewArena(gntdev.PageSize)
	must(t, err)
	defer a.Close()

	const (
		ok    = gntdev.StatusOkay
		bad   = gntdev.StatusBadGntref
		dom   = gntdev.StatusBadDomain
		fail  = gntdev.StatusGeneralError
		denid = gntdev.StatusPermissionDenied
	)
	for _, c := range []struct {
		name                         string
		domid                        xen.Domid
		ref                          xen.Gref
		read, write, mapRead, mapAll gntdev.Status
	}{
		{"granted", domid, 20, ok, ok, ok, ok},
		{"granted read-only", domid, 21, ok, fail, ok, denid},
		{"revoked", domid, 22, fail, fail, fail, fail},
		{"never granted", domid, 23, bad, bad, bad, bad},
		{"of another domain", 8, 20, dom, dom, dom, dom},
	} {
		var segs [2]gntdev.Segment
		segs[0].FromGuest(c.domid, c.ref, 0, a.Bytes()[:1])
		segs[1].ToGuest(c.domid, c.ref, 0, a.Bytes()[:1])
		must(t, d.Copy(segs[:]))
		if segs[0].Status() != c.read || segs[1].Status() != c.write {
			t.Errorf("%s: copies: %v, %v", c.name, segs[0].Status(), segs[1].Status())
		}
		for prot, want := range map[gntdev.Prot]gntdev.Status{gntdev.ReadOnly: c.mapRead, gntdev.ReadWrite: c.mapAll} {
			m, err := d.Map(c.domid, []xen.Gref{c.ref}, prot)
			if want == ok {
				must(t, err)
				must(t, m.Unmap())
				continue
			}
			if !errors.Is(err, want) || !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s: map %v: %v, want %v", c.name, prot, err, want)
			}
		}
	}
	_, err = d.Map(domid, []xen.Gref{20, 21}, gntdev.ReadWrite)
	const want = "gntdev: map: domid 7 gref 21 (#1): GNTST_permission_denied: invalid argument; the guest granted this page read-only"
	if err == nil || err.Error() != want {
		t.Errorf("map of two: %v\nwant: %s", err, want)
	}
	if u := g.Usage(); u.Pages != 0 {
		t.Errorf("%v", u)
	}
}

// TestMapping: pages stand side by side, are the guest's, and end with Unmap.
func TestMapping(t *testing.T) {
	g := xentest.Start(t, domid)
	d := gnttab(t, g)
	one, first := g.Grant(gntdev.ReadWrite)
	two, second := g.Grant(gntdev.ReadOnly)
	if one != 8 || two != 9 {
		t.Errorf("grefs %d and %d, want 8 and 9: those below are the toolstack's", one, two)
	}
	m, err := d.Map(domid, []xen.Gref{two, one, two}, gntdev.ReadOnly)
	must(t, err)
	first[0], second[0] = 1, 2
	mem := m.Bytes()
	if got := []byte{mem[0], mem[gntdev.PageSize], mem[2*gntdev.PageSize]}; !cmp.Equal(got, []byte{2, 1, 2}) {
		t.Errorf("pages begin with %v", got)
	}
	if !faults(func() { mem[0] = 1 }) {
		t.Error("wrote to a read-only mapping")
	}
	if err := g.Revoke(one); !errors.Is(err, xentest.ErrInUse) || !g.InUse(one) {
		t.Errorf("revoke: %v", err)
	}
	if err := g.SetProt(one, gntdev.ReadOnly); !errors.Is(err, xentest.ErrInUse) {
		t.Errorf("change: %v", err)
	}
	must(t, d.Close())
	must(t, m.Unmap())
	must(t, m.Unmap())
	if !faults(func() { first[0] = mem[0] }) {
		t.Error("read an unmapped page")
	}
	must(t, g.Revoke(one))
	if g.Page(one) != nil || g.InUse(one) {
		t.Error("the grant is left")
	}
	if _, err := d.Map(domid, []xen.Gref{two}, gntdev.ReadOnly); !errors.Is(err, gntdev.ErrClosed) {
		t.Errorf("map after close: %v", err)
	}
	if again, page := g.Grant(gntdev.ReadWrite); again != one || page[0] != 0 {
		t.Errorf("gref %d, page begins with %d; want the free gref and a cleared page", again, page[0])
	}
}

func TestCopy(t *testing.T) {
	g := xentest.Start(t, domid)
	d := gnttab(t, g)
	ref, page := g.Grant(gntdev.ReadWrite)
	copy(page[4090:], "abcdef")
	a, err := gntdev.NewArena(gntdev.PageSize)
	must(t, err)
	defer a.Close()
	segs := make([]gntdev.Segment, 3)
	segs[0].FromGuest(domid, ref, 4090, a.Bytes()[:6])
	segs[1].ToGuest(domid, ref, 0, a.Bytes()[1:][:5])
	segs[2].FromGuest(domid, ref+1, 0, a.Bytes()[:0]) // of nothing
	must(t, d.Copy(segs))
	for i := range segs {
		must(t, segs[i].Status().Err())
	}
	if string(page[:5]) != "bcdef" {
		t.Errorf("%q", page[:5])
	}
	if n := testing.AllocsPerRun(100, func() { must(t, d.Copy(segs)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	segs[1].ToGuest(domid, ref, 4092, a.Bytes()[1:][:5])
	if err := d.Copy(segs); !errors.Is(err, unix.EINVAL) {
		t.Errorf("across the end of the page: %v", err)
	}
	hidden, err := unix.Mmap(-1, 0, gntdev.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	defer func() { must(t, unix.Munmap(hidden)) }()
	segs[1].FromGuest(domid, ref, 0, hidden[:5])
	if err := d.Copy(segs); !errors.Is(err, unix.EFAULT) || segs[0].Status() != gntdev.StatusGeneralError {
		t.Errorf("to no memory: %v, status %v", err, segs[0].Status())
	}
	must(t, g.Gntdev().Close())
	must(t, g.Gntdev().Copy(segs[:1]))
	must(t, d.Close())
	if err := d.Copy(segs[:1]); !errors.Is(err, gntdev.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if got := g.Counts(); got.CopyCalls != 104 || got.Copies != 310 {
		t.Errorf("%+v", got)
	}
}

// TestFaults: an ordered fault strikes once, an interceptor as long as it is there.
func TestFaults(t *testing.T) {
	g := xentest.Start(t, domid)
	d, e := gnttab(t, g), events(t, g.OpenEvtchn)
	ref, _ := g.Grant(gntdev.ReadWrite)
	port := g.Offer()
	a, err := gntdev.NewArena(gntdev.PageSize)
	must(t, err)
	defer a.Close()
	copies := func() (gntdev.Status, error) {
		var seg [1]gntdev.Segment
		seg[0].FromGuest(domid, ref, 0, a.Bytes()[:1])
		err := d.Copy(seg[:])
		return seg[0].Status(), err
	}
	maps := func() error {
		m, err := d.Map(domid, []xen.Gref{ref}, gntdev.ReadOnly)
		if err == nil {
			err = m.Unmap()
		}
		return err
	}
	g.FailRef(xentest.OpCopy, ref, gntdev.StatusEagain)
	if st, err := copies(); st != gntdev.StatusEagain || err != nil {
		t.Errorf("copy: %v, %v", st, err)
	}
	g.FailRef(xentest.OpCopy, ref, unix.EFAULT)
	if st, err := copies(); st != gntdev.StatusGeneralError || !errors.Is(err, unix.EFAULT) {
		t.Errorf("copy: %v, %v", st, err)
	}
	if st, err := copies(); st != gntdev.StatusOkay || err != nil {
		t.Errorf("copy after the faults: %v, %v", st, err)
	}
	g.FailRef(xentest.OpMap, ref, gntdev.StatusNoSpace)
	if err := maps(); !errors.Is(err, gntdev.StatusNoSpace) {
		t.Errorf("map: %v", err)
	}
	g.FailRef(xentest.OpUnmap, ref, unix.EIO)
	if err := maps(); !errors.Is(err, unix.EIO) {
		t.Errorf("unmap: %v", err)
	}
	g.FailPort(xentest.OpBind, port, unix.ENOSPC)
	if _, err := e.BindInterdomain(domid, port); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("bind: %v", err)
	}
	g.FailPort(xentest.OpBind, port, unix.ENOSPC)
	g.FailPort(xentest.OpBind, port, nil)
	local, err := e.BindInterdomain(domid, port)
	must(t, err)
	g.FailPort(xentest.OpNotify, local, unix.EIO)
	if err := e.Notify(local); !errors.Is(err, unix.EIO) || g.Events(port) != 0 {
		t.Errorf("notify: %v, %d events", err, g.Events(port))
	}

	var calls []xentest.Call
	g.Intercept(func(c xentest.Call) error {
		calls = append(calls, c)
		switch c.Op {
		case xentest.OpOpenEvtchn:
			return unix.EMFILE
		case xentest.OpMap:
			return g.SetProt(ref, gntdev.ReadOnly) // it may use the guest
		}
		return nil
	})
	must(t, maps())
	for range 2 {
		if _, err := g.OpenEvtchn(); !errors.Is(err, unix.EMFILE) {
			t.Errorf("open: %v", err)
		}
	}
	g.Intercept(nil)
	must(t, maps())
	want := []xentest.Call{{Op: xentest.OpMap, Ref: ref}, {Op: xentest.OpUnmap, Ref: ref}, {Op: xentest.OpOpenEvtchn}, {Op: xentest.OpOpenEvtchn}}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// TestLeftovers: a test that leaves something behind fails.
func TestLeftovers(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(g *xentest.Guest)
		want  string
	}{
		{"nothing", func(g *xentest.Guest) { g.Grant(gntdev.ReadWrite); g.Offer() }, ""},
		{"a device", func(g *xentest.Guest) { _, _ = g.OpenGntdev() }, "left of domain 7: 0 pages mapped, 1 devices open, 0 ports bound"},
		{"a page", func(g *xentest.Guest) {
			d, _ := g.OpenGntdev()
			ref, _ := g.Grant(gntdev.ReadOnly)
			_, _ = d.Map(domid, []xen.Gref{ref, ref}, gntdev.ReadOnly)
			d.Close()
		}, "left of domain 7: 2 pages mapped, 0 devices open, 0 ports bound"},
		{"a fault", func(g *xentest.Guest) {
			g.FailRef(xentest.OpCopy, 9, gntdev.StatusEagain)
		}, "this fault of domain 7 was ordered and did not happen: GNTST_eagain of "},
		{"a port", func(g *xentest.Guest) {
			e, _ := g.OpenEvtchn()
			_, _ = e.BindInterdomain(domid, g.Offer())
		}, "left of domain 7: 0 pages mapped, 1 devices open, 1 ports bound"},
	} {
		r := &recorder{}
		c.leave(xentest.Start(r, domid))
		r.end()
		if c.want == "" && r.errors != nil || c.want != "" && (len(r.errors) != 1 || !strings.HasPrefix(r.errors[0], "xentest: "+c.want)) {
			t.Errorf("%s: %q, want %q", c.name, r.errors, c.want)
		}
	}
}

// recorder is a test that may fail.
type recorder struct {
	errors []string
	end    func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...) }
func (r *recorder) Cleanup(f func())          { r.end = f }

func wantPending(t testing.TB, what string, e *xentest.Evtchn, want ...evtchn.Port) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	must(t, err)
	if (n > 0) != (len(want) > 0) {
		t.Errorf("%s: poll says %d", what, n)
	}
	buf := make([]evtchn.Port, 8)
	n, err = e.Pending(buf)
	must(t, err)
	if diff := cmp.Diff(append([]evtchn.Port{}, want...), buf[:n]); diff != "" {
		t.Errorf("%s: pending (-want +got):\n%s", what, diff)
	}
}

// TestEvents follows events through a channel, with the frontend on a device.
func TestEvents(t *testing.T) {
	g := xentest.Start(t, domid)
	back, front := events(t, g.OpenEvtchn), events(t, g.OpenGuestEvtchn)
	fp, err := front.BindUnbound(xen.Dom0)
	must(t, err)
	must(t, front.Notify(fp)) // lost
	must(t, back.Restrict(domid))
	bp, err := back.BindInterdomain(domid, fp)
	must(t, err)
	wantPending(t, "after bind", back, bp)
	wantPending(t, "front after bind", front)
	for range 2 {
		must(t, front.Notify(fp))
	}
	wantPending(t, "masked", back)
	must(t, back.Unmask([]evtchn.Port{bp, 99}))
	wantPending(t, "unmasked", back, bp)
	must(t, back.Unmask([]evtchn.Port{bp}))
	wantPending(t, "two events are one", back)
	must(t, back.Notify(bp))
	wantPending(t, "front", front, fp)
	if n, sent := g.Events(fp), g.Sent(fp); n != 1 || sent != 3 {
		t.Errorf("%d events and %d sent, want 1 and 3", n, sent)
	}

	must(t, g.Send(fp))
	back.Overflow()
	if _, err := back.Pending(make([]evtchn.Port, 1)); !errors.Is(err, evtchn.ErrOverflow) {
		t.Errorf("after an overflow: %v", err)
	}
	must(t, back.Reset())
	must(t, g.Send(fp))
	wantPending(t, "its port is still masked", back)
	must(t, back.Unmask([]evtchn.Port{bp}))
	wantPending(t, "until it is unmasked", back, bp)

	must(t, back.Unbind(bp))
	must(t, front.Notify(fp)) // lost
	again, err := back.BindInterdomain(domid, fp)
	must(t, err)
	if again != bp {
		t.Errorf("port %d, want the lowest free one, %d", again, bp)
	}
	wantPending(t, "after the second bind", back, bp)
	must(t, front.Close())
	must(t, back.Notify(bp)) // lost
	must(t, back.Close())
	if back.FD() != -1 {
		t.Errorf("fd %d of a closed device", back.FD())
	}
	must(t, back.Close())
}

func TestPortErrors(t *testing.T) {
	g := xentest.Start(t, domid)
	e, other, front := events(t, g.OpenEvtchn), events(t, g.OpenEvtchn), events(t, g.OpenGuestEvtchn)
	g.OfferAt(5)
	g.OfferAt(6)
	forOther, err := front.BindUnbound(9)
	must(t, err)
	bound, err := e.BindInterdomain(domid, 5)
	must(t, err)
	must(t, other.Restrict(domid))
	gone, err := g.OpenEvtchn()
	must(t, err)
	must(t, gone.Close())
	bind := func(d *xentest.Evtchn, id xen.Domid, p evtchn.Port) error {
		_, err := d.BindInterdomain(id, p)
		return err
	}
	_, offer := other.BindUnbound(domid)
	for i, c := range []struct{ got, want error }{
		{bind(e, domid, 0), unix.EINVAL},
		{bind(e, domid, 5), unix.EINVAL}, // bound already
		{bind(other, domid, 5), unix.EINVAL},
		{bind(e, domid, 77), unix.EINVAL},
		{bind(e, domid, forOther), unix.EINVAL},
		{bind(e, 8, 6), unix.ESRCH},
		{bind(other, 8, 6), unix.EACCES},
		{bind(gone, domid, 6), evtchn.ErrClosed},
		{offer, unix.EACCES},
		{other.Restrict(domid), unix.EACCES},
		{e.Restrict(0), unix.EINVAL},
		{e.Notify(0), unix.EINVAL},
		{e.Notify(bound + 1), unix.ENOTCONN},
		{other.Notify(bound), unix.ENOTCONN},
		{other.Unbind(bound), unix.ENOTCONN},
		{gone.Notify(bound), evtchn.ErrClosed},
		{gone.Reset(), evtchn.ErrClosed},
		{gone.Unmask([]evtchn.Port{1}), evtchn.ErrClosed},
		{e.Unmask([]evtchn.Port{bound, 0}), unix.EINVAL},
		{g.Send(77), unix.EINVAL},
	} {
		var typed *evtchn.Error
		if !errors.Is(c.got, c.want) || !errors.As(c.got, &typed) {
			t.Errorf("#%d: %v, want %v", i, c.got, c.want)
		}
	}
	if err := bind(e, domid, 5); !strings.Contains(err.Error(), "in use already") {
		t.Errorf("no hint: %v", err)
	}
	g.Withdraw(5)
	must(t, e.Notify(bound)) // lost
	if got := g.Usage(); got != (xentest.Usage{Devices: 3, Ports: 2}) {
		t.Errorf("%v", got)
	}
}

// TestOffered: a test that plays the guest's end without a device.
func TestOffered(t *testing.T) {
	g := xentest.Start(t, domid)
	e := events(t, g.OpenEvtchn)
	port := g.Offer()
	local, err := e.BindInterdomain(domid, port)
	must(t, err)
	wantPending(t, "after bind", e, local)
	for range 3 {
		must(t, e.Notify(local))
	}
	<-g.Wake(port)
	if n := g.Events(port); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	select {
	case <-g.Wake(port):
		t.Error("events do not coalesce")
	default:
	}
	if g.Events(99) != 0 || g.Sent(99) != 0 || g.Wake(99) != nil {
		t.Error("a port that is not there has events")
	}
}

func TestGntalloc(t *testing.T) {
	g := xentest.Start(t, domid)
	back := gnttab(t, g)
	must(t, g.Gntalloc().Close())
	d, err := g.OpenGntalloc()
	must(t, err)
	g.GrantAt(9, gntdev.ReadWrite)
	p, err := d.Alloc(xen.Dom0, 3, false)
	must(t, err)
	if diff := cmp.Diff([]xen.Gref{8, 10, 11}, p.Refs()); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	p.Bytes()[2*gntdev.PageSize] = 5
	m, err := back.Map(domid, p.Refs(), gntdev.ReadOnly)
	must(t, err)
	if m.Bytes()[2*gntdev.PageSize] != 5 {
		t.Error("another page")
	}
	if _, err := back.Map(domid, p.Refs(), gntdev.ReadWrite); !errors.Is(err, gntdev.StatusPermissionDenied) {
		t.Errorf("map for writing: %v", err)
	}
	must(t, p.Free())
	for _, ref := range p.Refs() {
		if used, _ := d.InUse(ref); !used {
			t.Errorf("gref %d is not in use", ref)
		}
	}
	must(t, m.Unmap())
	if _, err := back.Map(domid, p.Refs()[:1], gntdev.ReadOnly); !errors.Is(err, gntdev.StatusGeneralError) {
		t.Errorf("map of a freed page: %v", err)
	}
	elsewhere, err := d.Alloc(3, 1, true)
	must(t, err)
	if _, err := back.Map(domid, elsewhere.Refs(), gntdev.ReadOnly); !errors.Is(err, gntdev.StatusGeneralError) {
		t.Errorf("map of a page granted to another domain: %v", err)
	}
	must(t, elsewhere.Free())
	if _, err := d.Alloc(0, gntalloc.MaxPages+1, true); !errors.Is(err, unix.EINVAL) {
		t.Errorf("too many: %v", err)
	}
	g.FailRef(xentest.OpAlloc, 0, unix.ENOSPC)
	if _, err := d.Alloc(0, 1, true); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	must(t, d.Close())
	if _, err := d.Alloc(0, 1, true); !errors.Is(err, gntalloc.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestSharedMemory: a guest on the memory of another one has the same pages.
func TestSharedMemory(t *testing.T) {
	g := xentest.Start(t, domid)
	copy(g.GrantRun(1000, 2, gntdev.ReadWrite)[gntdev.PageSize:], "there")
	fd, err := unix.Dup(g.File())
	must(t, err)
	same, err := xentest.On(domid, fd)
	must(t, err)
	if same.Page(1001) != nil {
		t.Error("its grants are not its own")
	}
	if page := same.GrantRun(1000, 2, gntdev.ReadOnly)[gntdev.PageSize:]; string(page[:5]) != "there" {
		t.Errorf("%q", page[:5])
	}
	must(t, same.Close())
	if got := g.Memory()[gntdev.PageSize:][:5]; string(got) != "there" {
		t.Errorf("%q", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestBackendKilled: the resources of a killed backend are released, and its successor gets
// them again. A restart of the daemon relies on this.
func TestBackendKilled(t *testing.T) {
	s := simProcess(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 3, true))(t)
	fe := s.events(guest)
	own := s.pages(s.dom0)
	port := must(fe.BindUnbound(0))(t)
	env := fmt.Sprintf("XENSIM_TEST_ARGS=%d %d %d", guest.Domid(), pages.Refs()[0], port)

	for range 3 {
		pages.Bytes()[0] = 1
		cmd, line := child(t, s.dir, "backend", env)
		if pages.Bytes()[0] != 2 {
			t.Fatal("the backend did not write to the page")
		}
		g, d := s.info(guest.Domid()), s.info(0)
		if g.GrantsInUse != 3 || d.Maps != 3 || d.Interdomain != 1 {
			t.Fatalf("while it lives (port %s): guest %+v, dom0 %+v", line, g, d)
		}
		ok(t, cmd.Process.Signal(unix.SIGKILL))
		_ = cmd.Wait()
		s.until("the dead backend's grants and ports are free", func() bool {
			g, d := s.info(guest.Domid()), s.info(0)
			return g.GrantsInUse == 0 && g.Pins == 0 && d.Maps == 0 && d.Ports == 0
		})
		s.until("the dead backend's own pages are free", func() bool {
			p, err := own.Alloc(0, ownPages, true)
			return err == nil && p.Free() == nil
		})
		if i := s.info(guest.Domid()); i.Ports != 1 || i.Interdomain != 0 {
			t.Errorf("the guest's port is not unbound again: %+v", i)
		}
		ok(t, fe.Notify(port)) // not connected
		settle(fe)
	}
	ok(t, pages.Free())
	if n := s.info(guest.Domid()).Counters.EventsDropped; n != 3 {
		t.Errorf("%d events dropped, want 3", n)
	}
}

// args returns the numbers in the environment of a child.
func args(v ...any) error {
	_, err := fmt.Sscan(os.Getenv("XENSIM_TEST_ARGS"), v...)
	return err
}

// ownPages is the number of pages that a backend grants to itself. There are not enough for
// two.
const ownPages = 700

// backendChild holds a backend's resources: a mapping, own pages, a port.
func backendChild(dir string) error {
	var domid xen.Domid
	var first xen.Gref
	var remote evtchn.Port
	if err := args(&domid, &first, &remote); err != nil {
		return err
	}
	conn, err := simclient.Dial(dir, 0)
	if err != nil {
		return err
	}
	grants, err := conn.Grants()
	if err != nil {
		return err
	}
	m, err := grants.Map(domid, []xen.Gref{first, first + 1, first + 2}, gntdev.ReadWrite)
	if err != nil {
		return err
	}
	m.Bytes()[0] = 2
	own, err := conn.Pages()
	if err != nil {
		return err
	}
	arena, err := gntdev.NewArena(ownPages * gntdev.PageSize)
	if err != nil {
		return err
	}
	if _, err := own.AllocAt(arena.Bytes(), 0, true); err != nil {
		return err
	}
	events, err := conn.Events()
	if err != nil {
		return err
	}
	port, err := events.BindInterdomain(domid, remote)
	if err != nil {
		return err
	}
	wait(port)
	return nil
}

// TestGuestProcessKilled: the death of a guest's process ends its grants, except those in
// use, which end when the backend releases them.
func TestGuestProcessKilled(t *testing.T) {
	s := simProcess(t)
	guest := s.guest(simclient.DomainConfig{GntallocLimit: 8})
	cmd, line := child(t, s.dir, "guest", fmt.Sprintf("XENSIM_TEST_ARGS=%d", guest.Domid()))
	var first xen.Gref
	must(fmt.Sscan(line, &first))(t)
	dev := s.grants(s.dom0)
	m := must(dev.Map(guest.Domid(), []xen.Gref{first}, gntdev.ReadOnly))(t)
	ok(t, cmd.Process.Signal(unix.SIGKILL))
	_ = cmd.Wait()
	table := s.memory(guest).Table()
	s.until("the dead process's port is closed and its grants are taken back", func() bool {
		return s.info(guest.Domid()).Ports == 0 && table.Head(first+1).Flags() == 0
	})

	if string(m.Bytes()[:5]) != "hello" {
		t.Error("the mapped page has lost its contents")
	}
	if _, err := dev.Map(guest.Domid(), []xen.Gref{first + 1}, gntdev.ReadOnly); !errors.Is(err, unix.EINVAL) {
		t.Errorf("map of a grant that went with the process: %v, want EINVAL", err)
	}
	alloc := s.pages(guest)
	if _, err := alloc.Alloc(0, 8, true); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("all pages while one is in use: %v, want ENOSPC", err)
	}
	ok(t, m.Unmap())
	p := must(alloc.Alloc(0, 8, true))(t)
	ok(t, p.Free())
}

func guestChild(dir string) error {
	var domid xen.Domid
	if err := args(&domid); err != nil {
		return err
	}
	conn, err := simclient.Dial(dir, domid)
	if err != nil {
		return err
	}
	alloc, err := conn.Pages()
	if err != nil {
		return err
	}
	pages, err := alloc.Alloc(0, 8, true)
	if err != nil {
		return err
	}
	copy(pages.Bytes(), "hello")
	events, err := conn.Events()
	if err != nil {
		return err
	}
	if _, err := events.BindUnbound(0); err != nil {
		return err
	}
	wait(pages.Refs()[0])
	return nil
}

func TestDomainDestroyedWhileMapped(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	id := guest.Domid()
	pages := must(s.pages(guest).Alloc(0, 2, true))(t)
	refs := pages.Refs()
	pages.Bytes()[0] = 42
	fe := s.events(guest)
	port := must(fe.BindUnbound(0))(t)
	dev, be := s.grants(s.dom0), s.events(s.dom0)
	m := must(dev.Map(id, refs[:1], gntdev.ReadWrite))(t)
	bp := must(be.BindInterdomain(id, port))(t)

	ok(t, s.ctl.Destroy(id))
	ok(t, s.ctl.Destroy(id))
	<-guest.Done()
	if i := s.info(id); !i.Dying || i.GrantsInUse != 1 {
		t.Errorf("not a zombie: %+v", i)
	}
	if m.Bytes()[0] != 42 {
		t.Error("the mapped page has lost its contents")
	}
	ok(t, be.Notify(bp))
	if _, err := dev.Map(id, refs[1:], gntdev.ReadWrite); !errors.Is(err, unix.EINVAL) {
		t.Errorf("map: %v, want EINVAL", err)
	}
	arena := must(gntdev.NewArena(4096))(t)
	defer arena.Close()
	segs := make([]gntdev.Segment, 1)
	segs[0].FromGuest(id, refs[1], 0, arena.Bytes()[:8])
	ok(t, dev.Copy(segs))
	if st := segs[0].Status(); st != gntdev.StatusBadPage {
		t.Errorf("copy: %v, want %v", st, gntdev.StatusBadPage)
	}

	// The guest's own processes are disconnected.
	if err := fe.Notify(port); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("notify by the dead: %v, want ErrGone", err)
	}
	if _, err := fe.Pending(make([]evtchn.Port, 1)); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("pending of the dead: %v, want ErrGone", err)
	}
	if _, err := simclient.Dial(s.dir, id); !errors.Is(err, unix.ESRCH) {
		t.Errorf("dial of a zombie: %v, want ESRCH", err)
	}
	if err := pages.Free(); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("free by the dead: %v, want ErrGone", err)
	}

	ok(t, m.Unmap())
	if _, err := s.ctl.Domain(id); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the zombie after the last unmap: %v, want ENOENT", err)
	}
}

// TestOwnPagesOfADriverDomain: copies need pages that were granted to the number of the domain
// that copies. They end with the domain.
func TestOwnPagesOfADriverDomain(t *testing.T) {
	s := startSim(t)
	guest, driver := s.guest(simclient.DomainConfig{}), s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(driver.Domid(), 1, true))(t)
	copy(pages.Bytes(), "from the guest")
	arena := must(gntdev.NewArena(3 * gntdev.PageSize))(t)
	defer arena.Close()
	at := func(i int) []byte { return arena.Bytes()[i*gntdev.PageSize:][:gntdev.PageSize] }
	dev := s.pages(driver)
	own := must(dev.AllocAt(at(0), driver.Domid(), true))(t)
	toDom0 := must(dev.AllocAt(at(1), 0, true))(t)
	ofDom0 := must(s.pages(s.dom0).AllocAt(at(2), driver.Domid(), true))(t)
	segs := make([]gntdev.Segment, 3)
	for i, p := range []xen.Gref{own.Refs()[0], toDom0.Refs()[0], ofDom0.Refs()[0] + 1} {
		segs[i].FromGuestToOwn(guest.Domid(), pages.Refs()[0], 5, p, 8, 9)
	}
	ok(t, s.grants(driver).Copy(segs))
	got := []gntdev.Status{segs[0].Status(), segs[1].Status(), segs[2].Status()}
	if diff := cmp.Diff([]gntdev.Status{gntdev.StatusOkay, gntdev.StatusGeneralError, gntdev.StatusGeneralError}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if string(at(0)[8:17]) != "the guest" {
		t.Errorf("copied %q", at(0)[8:17])
	}
	ok(t, s.ctl.Destroy(driver.Domid()))
	if err := own.Free(); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("free by the dead: %v, want ErrGone", err)
	}
	if at(0)[8] != 0 {
		t.Error("the memory was not cleared")
	}
	ok(t, ofDom0.Free())
	ok(t, pages.Free())
}

// TestBackendDomainDestroyed: a driver domain that dies releases the grants of the guests
// that it served.
func TestBackendDomainDestroyed(t *testing.T) {
	s := startSim(t)
	guest, driver := s.guest(simclient.DomainConfig{}), s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(driver.Domid(), 2, true))(t)
	m := must(s.grants(driver).Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite))(t)
	ok(t, s.ctl.Destroy(driver.Domid()))
	if i := s.info(guest.Domid()); i.Pins != 0 {
		t.Errorf("%d pins after the backend domain has died", i.Pins)
	}
	if err := m.Unmap(); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("unmap by the dead: %v, want ErrGone", err)
	}
	ok(t, pages.Free())
}

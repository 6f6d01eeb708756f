// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMappedPagesAreTheGuests(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	alloc := s.pages(guest)
	a := must(alloc.Alloc(0, 2, true))(t)
	b := must(alloc.Alloc(0, 2, true))(t)
	ok(t, a.Free())
	c := must(alloc.Alloc(0, 3, true))(t) // not where a was
	refs := []xen.Gref{c.Refs()[2], b.Refs()[1], b.Refs()[0], c.Refs()[0]}
	pages := [][]byte{c.Bytes()[2*4096:], b.Bytes()[4096:], b.Bytes(), c.Bytes()}
	for i, p := range pages {
		p[100] = byte(10 + i)
	}
	m := must(s.grants(s.dom0).Map(guest.Domid(), refs, gntdev.ReadWrite))(t)
	if len(m.Bytes()) != 4*4096 {
		t.Fatalf("%d bytes mapped", len(m.Bytes()))
	}
	for i, p := range pages {
		if got := m.Bytes()[i*4096+100]; got != byte(10+i) {
			t.Errorf("page %d reads %d, want %d", i, got, 10+i)
		}
		m.Bytes()[i*4096+200] = byte(20 + i)
		if p[200] != byte(20+i) {
			t.Errorf("what was written to page %d did not arrive", i)
		}
	}
	ok(t, m.Unmap())
	ok(t, m.Unmap())
	if n := s.info(guest.Domid()).Pins; n != 0 {
		t.Errorf("%d pins after unmap", n)
	}
}

func TestReadOnlyMappingStaysReadOnly(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 1, false))(t)
	dev := s.grants(s.dom0)
	_, err := dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite)
	if !errors.Is(err, unix.EINVAL) || !errors.Is(err, gntdev.StatusPermissionDenied) {
		t.Errorf("map for writing: %v, want EINVAL and why", err)
	}
	m := must(dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadOnly))(t)
	if err := unix.Mprotect(m.Bytes(), unix.PROT_READ|unix.PROT_WRITE); err != unix.EACCES {
		t.Errorf("mprotect to writable: %v, want EACCES", err)
	}
	ok(t, m.Unmap())
}

func TestMapErrorNamesTheReference(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 2, true))(t)
	dev := s.grants(s.dom0)
	_, err := dev.Map(guest.Domid(), []xen.Gref{pages.Refs()[0], 99999, pages.Refs()[1]}, gntdev.ReadOnly)
	var e *gntdev.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is a %T: %v", err, err)
	}
	want := gntdev.Error{Op: "map", Index: 1, Domid: guest.Domid(), Ref: 99999, Status: gntdev.StatusBadGntref, Err: unix.EINVAL}
	if diff := cmp.Diff(want, *e); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	for _, refs := range [][]xen.Gref{nil, make([]xen.Gref, 1<<20)} {
		if _, err := dev.Map(guest.Domid(), refs, gntdev.ReadOnly); !errors.Is(err, unix.EINVAL) {
			t.Errorf("map of %d refs: %v, want EINVAL", len(refs), err)
		}
	}
	if i := s.info(guest.Domid()); i.Pins != 0 {
		t.Errorf("%d pins left", i.Pins)
	}
}

func TestCopy(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 2, true))(t)
	refs := pages.Refs()
	arena := must(gntdev.NewArena(3 * 4096))(t)
	defer arena.Close()
	for i := range pages.Bytes() {
		pages.Bytes()[i] = byte(i * 13)
	}
	dev := s.grants(s.dom0)
	segs := make([]gntdev.Segment, 4)
	segs[0].FromGuest(guest.Domid(), refs[0], 10, arena.Bytes()[4000:][:200])
	segs[1].FromGuest(guest.Domid(), 99999, 0, arena.Bytes()[8192:][:10])
	segs[2].ToGuest(guest.Domid(), refs[1], 50, arena.Bytes()[4000:][:100])
	segs[3].FromGuest(guest.Domid(), 99999, 0, arena.Bytes()[8192:][:0])
	ok(t, dev.Copy(segs))
	var got []gntdev.Status
	for i := range segs {
		got = append(got, segs[i].Status())
	}
	want := []gntdev.Status{gntdev.StatusOkay, gntdev.StatusBadGntref, gntdev.StatusOkay, gntdev.StatusOkay}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if !bytes.Equal(arena.Bytes()[4000:4200], pages.Bytes()[10:210]) {
		t.Error("copied in the wrong bytes")
	}
	if !bytes.Equal(pages.Bytes()[4096+50:4096+150], pages.Bytes()[10:110]) {
		t.Error("copied out the wrong bytes")
	}
	ok(t, dev.Copy(nil))
}

func TestCopyThatFailsAsAWhole(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 1, true))(t)
	dev := s.grants(s.dom0)
	arena := must(gntdev.NewArena(4096))(t)
	defer arena.Close()
	hidden := must(unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS))(t)
	defer func() { ok(t, unix.Munmap(hidden)) }()
	for _, tc := range []struct {
		name string
		bad  func(*gntdev.Segment)
		want unix.Errno
	}{
		{"page end passed", func(s *gntdev.Segment) { s.FromGuest(guest.Domid(), pages.Refs()[0], 4000, arena.Bytes()[:97]) }, unix.EINVAL},
		{"no direction", func(s *gntdev.Segment) { *s = gntdev.Segment{} }, unix.EINVAL},
		{"local memory not there", func(s *gntdev.Segment) { s.FromGuest(guest.Domid(), pages.Refs()[0], 0, hidden[:10]) }, unix.EFAULT},
	} {
		segs := make([]gntdev.Segment, 3)
		for i := range segs {
			segs[i].FromGuest(guest.Domid(), pages.Refs()[0], 0, arena.Bytes()[:10])
		}
		tc.bad(&segs[1])
		if err := dev.Copy(segs); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if tc.want == unix.EFAULT && segs[0].Status() != gntdev.StatusGeneralError {
			t.Errorf("%s: first segment's status is %v", tc.name, segs[0].Status())
		}
	}
}

func TestCopyOfMoreSegmentsThanAMessageHolds(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 1, true))(t)
	arena := must(gntdev.NewArena(16384))(t)
	defer arena.Close()
	for i := range pages.Bytes() {
		pages.Bytes()[i] = byte(i * 3)
	}
	segs := make([]gntdev.Segment, 10000)
	for i := range segs {
		segs[i].FromGuest(guest.Domid(), pages.Refs()[0], uint16(i%4096), arena.Bytes()[i:][:1])
	}
	segs[9999].FromGuest(guest.Domid(), 77777, 0, arena.Bytes()[:1])
	ok(t, s.grants(s.dom0).Copy(segs))
	for i := range segs[:9999] {
		if segs[i].Status() != gntdev.StatusOkay || arena.Bytes()[i] != pages.Bytes()[i%4096] {
			t.Fatalf("segment %d: %v, byte %d", i, segs[i].Status(), arena.Bytes()[i])
		}
	}
	if st := segs[9999].Status(); st != gntdev.StatusBadGntref {
		t.Errorf("the last one: %v", st)
	}
}

// TestCloseBeforeUnmap: as with a device node, a mapping outlives its file.
func TestCloseBeforeUnmap(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	alloc := s.pages(guest)
	pages := must(alloc.Alloc(0, 1, true))(t)
	dev := s.grants(s.dom0)
	m := must(dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite))(t)
	ok(t, dev.Close())
	ok(t, dev.Close())
	ok(t, alloc.Close())
	m.Bytes()[0] = 1
	if pages.Bytes()[0] != 1 || s.info(guest.Domid()).Pins != 1 {
		t.Error("the page is not mapped any more")
	}
	if _, err := dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite); !errors.Is(err, os.ErrClosed) {
		t.Errorf("map after close: %v, want ErrClosed", err)
	}
	if err := dev.Copy(make([]gntdev.Segment, 0)); err != nil {
		t.Errorf("copy of nothing: %v", err)
	}
	var seg [1]gntdev.Segment
	seg[0].FromGuest(guest.Domid(), 0, 0, m.Bytes()[:1])
	if err := dev.Copy(seg[:]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("copy after close: %v, want ErrClosed", err)
	}
	if _, err := alloc.Alloc(0, 1, true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("alloc after close: %v, want ErrClosed", err)
	}
	ok(t, m.Unmap())
	ok(t, pages.Free())
	if i := s.info(guest.Domid()); i.Pins != 0 {
		t.Errorf("%d pins left", i.Pins)
	}
}

func TestForcedFaults(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 3, true))(t)
	dev := s.grants(s.dom0)
	ok(t, s.ctl.AddFault(guest.Domid(), simclient.Fault{Op: "map", Ref: pages.Refs()[1], Status: -7, Count: 1}))
	_, err := dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite)
	if !errors.Is(err, gntdev.StatusNoDeviceSpace) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("map: %v", err)
	}
	m := must(dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite))(t)
	ok(t, m.Unmap())
	ok(t, s.ctl.AddFault(guest.Domid(), simclient.Fault{Op: "map", Ref: pages.Refs()[1], Status: -7}))
	ok(t, s.ctl.ClearFaults(guest.Domid()))
	m = must(dev.Map(guest.Domid(), pages.Refs(), gntdev.ReadWrite))(t)
	ok(t, m.Unmap())
	for _, f := range []simclient.Fault{{Op: "walk"}, {Op: "map", Status: 1}, {Op: "copy", Delay: -1},
		{Op: "call", Ref: 3, Status: -14, Delay: 1}, {Op: "call", Ref: wire.AnyRef}} {
		if err := s.ctl.AddFault(guest.Domid(), f); !errors.Is(err, unix.EINVAL) {
			t.Errorf("fault %+v: %v, want EINVAL", f, err)
		}
	}
}

// TestSlowGuestHoldsUpItselfAlone: an endless copy of one guest's page delays only the
// thread that makes it.
func TestSlowGuestHoldsUpItselfAlone(t *testing.T) {
	slowDone := make(chan error, 1)
	t.Cleanup(func() { <-slowDone }) // after the simulation, whose end ends the wait
	s := startSim(t)
	slow, quick := s.guest(simclient.DomainConfig{}), s.guest(simclient.DomainConfig{})
	sp, qp := must(s.pages(slow).Alloc(0, 1, true))(t), must(s.pages(quick).Alloc(0, 1, true))(t)
	dev := s.grants(s.dom0)
	m := must(dev.Map(slow.Domid(), sp.Refs(), gntdev.ReadWrite))(t)
	for _, op := range []wire.FaultOp{wire.FaultCopy, wire.FaultMap} {
		ok(t, s.ctl.AddFault(slow.Domid(), simclient.Fault{Op: op, Ref: sp.Refs()[0], Delay: time.Hour, Count: 1}))
	}
	arena := must(gntdev.NewArena(4096))(t)
	go func() {
		var seg [1]gntdev.Segment
		seg[0].FromGuest(slow.Domid(), sp.Refs()[0], 0, arena.Bytes()[:1])
		err := dev.Copy(seg[:])
		slowDone <- errors.Join(err, arena.Close())
	}()
	s.until("the slow copy is under way", func() bool { return s.info(slow.Domid()).Pins == 2 })

	var seg [1]gntdev.Segment
	seg[0].ToGuest(quick.Domid(), qp.Refs()[0], 0, arena.Bytes()[100:][:1])
	ok(t, dev.Copy(seg[:]))
	ok(t, must(dev.Map(quick.Domid(), qp.Refs(), gntdev.ReadOnly))(t).Unmap())
	ok(t, m.Unmap())
	if n := s.info(slow.Domid()).Pins; n != 1 {
		t.Errorf("%d pins: the slow copy is over", n)
	}
}

// TestRawMemory has a guest write its grant table itself.
func TestRawMemory(t *testing.T) {
	s := startSim(t)
	guest := s.guest(simclient.DomainConfig{Pages: 16, MaxGrantFrames: 2})
	mem := s.memory(guest)
	first, end := mem.Frames()
	if first != 2 || end != 18 {
		t.Errorf("pages %d to %d, want 2 to 18", first, end)
	}
	const ref = gnttab.RefsPerFrame + 3
	mem.Table().Set(ref, gnttab.Entry{Flags: gnttab.PermitAccess, Frame: end - 1})
	copy(mem.Frame(end-1), "raw")
	dev := s.grants(s.dom0)
	if _, err := dev.Map(guest.Domid(), []xen.Gref{ref}, gntdev.ReadOnly); !errors.Is(err, gntdev.StatusBadGntref) {
		t.Errorf("map before the table has that frame: %v", err)
	}
	ok(t, mem.SetupTable(2))
	if err := mem.SetupTable(3); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a table of 3 frames: %v, want EINVAL", err)
	}
	m := must(dev.Map(guest.Domid(), []xen.Gref{ref}, gntdev.ReadOnly))(t)
	if string(m.Bytes()[:3]) != "raw" {
		t.Error("mapped another page")
	}
	if mem.Table().Revoke(ref) {
		t.Error("could take back a grant in use")
	}
	ok(t, m.Unmap())
	if !mem.Table().Revoke(ref) {
		t.Error("cannot take back a grant that is not in use")
	}
}

func TestCopyAllocatesNothing(t *testing.T) {
	s := simProcess(t)
	guest := s.guest(simclient.DomainConfig{})
	pages := must(s.pages(guest).Alloc(0, 64, true))(t)
	arena := must(gntdev.NewArena(64 * 4096))(t)
	defer arena.Close()
	dev := s.grants(s.dom0)
	segs := make([]gntdev.Segment, 64)
	n := testing.AllocsPerRun(50, func() {
		for i := range segs {
			segs[i].FromGuest(guest.Domid(), pages.Refs()[i], 0, arena.Bytes()[4096*i:][:1500])
		}
		if err := dev.Copy(segs); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

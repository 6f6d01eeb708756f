// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// seg is struct gntdev_grant_copy_segment in the layout of C.
type seg [SegmentSize]byte

func newSeg(source, dest uint64, n uint16, flags uint16) (s seg) {
	binary.LittleEndian.PutUint64(s[0:], source)
	binary.LittleEndian.PutUint64(s[8:], dest)
	binary.LittleEndian.PutUint16(s[16:], n)
	binary.LittleEndian.PutUint16(s[18:], flags)
	return s
}

func foreign(domid xen.Domid, ref xen.Gref, off uint16) uint64 {
	return uint64(ref) | uint64(off)<<32 | uint64(domid)<<48
}

func toLocal(ref xen.Gref, off uint16, local []byte) seg {
	return newSeg(foreign(1, ref, off), addr(local), uint16(len(local)), 1)
}

func fromLocal(local []byte, ref xen.Gref, off uint16) seg {
	return newSeg(addr(local), foreign(1, ref, off), uint16(len(local)), 2)
}

func copySegs(g *Gntdev, segs ...seg) ([]gntdev.Status, unix.Errno) {
	var b []byte
	for _, s := range segs {
		b = append(b, s[:]...)
	}
	status := make([]gntdev.Status, len(segs))
	return status, g.NewCopier().Copy(b, status)
}

// local returns n bytes that start at a page.
func local(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

func pattern(b []byte, seed int) {
	for i := range b {
		b[i] = byte(i*7 + seed)
	}
}

func TestCopyMovesExactlyTheBytesAskedFor(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	pattern(x.page(0), 1)
	mem := local(t, 8192)
	pattern(mem, 2)

	st, errno := copySegs(g,
		toLocal(writable, 100, mem[4000:4200]), // crosses the end of a local page
		toLocal(readOnly, 4095, mem[10:11]),
		toLocal(writable, 0, mem[0:0]),
	)
	wantErrno(t, "from guest", errno, 0)
	if diff := cmp.Diff([]gntdev.Status{0, 0, 0}, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	want := make([]byte, len(mem))
	pattern(want, 2)
	copy(want[4000:4200], x.page(0)[100:])
	want[10] = x.page(0)[4095]
	if !bytes.Equal(mem, want) {
		t.Error("local memory is not what it should be")
	}

	wantPage := bytes.Clone(x.page(1))
	copy(wantPage[7:], mem[4090:4100])
	_, errno = copySegs(g, fromLocal(mem[4090:4100], writable+1, 7))
	wantErrno(t, "to guest", errno, 0)
	if !bytes.Equal(x.page(1), wantPage) {
		t.Error("the guest's page is not what it should be")
	}
	x.wantUnused(t)

	c := x.dom0.Info().Counters
	if c.GrantCopyOps != 2+1+2 || c.GrantCopyCalls != 2 || c.GrantCopyBytes != 200+1+10 {
		t.Errorf("counted %d operations in %d hypercalls with %d bytes, want 5, 2 and 211",
			c.GrantCopyOps, c.GrantCopyCalls, c.GrantCopyBytes)
	}
	if n := x.guest.Info().Counters.GrantedCopies; n != 3 {
		t.Errorf("%d copies of the guest's grants, want 3", n)
	}
}

func TestSegmentsOfACopyFailOneByOne(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	pattern(x.page(0), 1)
	mem := local(t, 4096)
	st, errno := copySegs(g,
		toLocal(writable, 0, mem[0:100]),
		toLocal(99999, 0, mem[100:200]),                    // behind the table
		toLocal(500, 0, mem[200:300]),                      // never granted
		newSeg(foreign(99, writable, 0), addr(mem), 10, 1), // no such domain
		fromLocal(mem[0:100], readOnly+1, 0),               // may only be read
		fromLocal(mem[0:100], writable+1, 0),
		toLocal(99999, 4090, mem[300:300]), // of length 0: not checked
		toLocal(writable, 100, mem[400:500]),
	)
	wantErrno(t, "copy", errno, 0)
	want := []gntdev.Status{gntdev.StatusOkay, gntdev.StatusBadGntref, gntdev.StatusGeneralError, gntdev.StatusBadDomain,
		gntdev.StatusGeneralError, gntdev.StatusOkay, gntdev.StatusOkay, gntdev.StatusOkay}
	if diff := cmp.Diff(want, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	// In order: the first segments' data is the source of later ones.
	if !bytes.Equal(x.page(1)[:100], x.page(0)[:100]) || !bytes.Equal(mem[400:500], x.page(0)[100:200]) {
		t.Error("the good segments were not carried out in order")
	}
	x.wantUnused(t)
}

func TestCopyFailsAsAWhole(t *testing.T) {
	mem := local(t, 4096)
	ro := local(t, 4096)
	if err := unix.Mprotect(ro, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	none := local(t, 8192)
	if err := unix.Mprotect(none[4096:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		bad  seg
		want unix.Errno
	}{
		{"foreign offset and length pass the page's end", toLocal(writable, 4000, mem[:97]), unix.EINVAL},
		{"the same with a length of 0", newSeg(foreign(1, writable, 4097), addr(mem), 0, 1), unix.EINVAL},
		{"the same towards the guest", fromLocal(mem[:2], writable, 4095), unix.EINVAL},
		{"neither side a grant", newSeg(addr(mem), addr(mem), 10, 0), unix.EINVAL},
		{"local memory not there", newSeg(foreign(1, writable, 0), 4096, 10, 1), unix.EFAULT},
		{"local memory not writable", toLocal(writable, 0, ro[:10]), unix.EFAULT},
		{"second local page not there", toLocal(writable, 0, none[4090:4100]), unix.EFAULT},
		{"second local page not readable", fromLocal(none[4090:4100], writable, 0), unix.EFAULT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newXen(t)
			_, errno := copySegs(x.gntdev(), toLocal(writable, 0, mem[:4]), tc.bad, toLocal(writable, 0, mem[:4]))
			wantErrno(t, "copy", errno, tc.want)
			x.wantUnused(t)
		})
	}
	x := newXen(t)
	if _, errno := copySegs(x.gntdev(), fromLocal(ro[:10], writable, 0)); errno != 0 {
		t.Errorf("copy from read-only local memory: %v", errno)
	}
	for _, struck := range []xen.Gref{wire.AnyRef, writable + 1} {
		x.guest.AddFault(wire.Fault{Op: wire.FaultCall, Ref: struck, Status: -int16(unix.EFAULT), Count: 1})
		if struck != wire.AnyRef {
			_, errno := copySegs(x.gntdev(), toLocal(writable, 0, mem[:4]))
			wantErrno(t, "copy of another page than that of the fault", errno, 0)
		}
		for _, want := range []unix.Errno{unix.EFAULT, 0} {
			_, errno := copySegs(x.gntdev(), toLocal(writable, 0, mem[:4]), toLocal(writable+1, 0, mem[4:8]))
			wantErrno(t, "copy with a fault ordered", errno, want)
		}
	}
	x.wantUnused(t)
}

func TestCopyOfADyingDomain(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	index, _ := g.Map(1, []xen.Gref{writable})
	v, _, errno := g.Mmap(index, 1, true)
	wantErrno(t, "mmap", errno, 0)
	pattern(x.page(0), 3)
	x.guest.Kill()

	mem := local(t, 4096)
	st, errno := copySegs(g, toLocal(writable+1, 0, mem[:10]), fromLocal(mem[:10], writable+2, 0))
	wantErrno(t, "copy", errno, 0)
	if diff := cmp.Diff([]gntdev.Status{gntdev.StatusBadPage, gntdev.StatusBadPage}, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	index, errno = g.Map(1, []xen.Gref{writable})
	wantErrno(t, "map", errno, 0)
	_, _, errno = g.Mmap(index, 1, true)
	wantErrno(t, "mmap", errno, unix.EINVAL)

	wantErrno(t, "munmap", g.Munmap(v.VMA), 0)
	if x.hv.Domain(1, 0) != nil {
		t.Error("the zombie is still there")
	}
	st, errno = copySegs(g, toLocal(writable, 0, mem[:10]))
	wantErrno(t, "copy from a domain that does not exist", errno, 0)
	if st[0] != gntdev.StatusBadDomain {
		t.Errorf("copy from a domain that does not exist: %v, want %v", st[0], gntdev.StatusBadDomain)
	}
}

func TestCopyFromGrantToGrant(t *testing.T) {
	x := newXen(t)
	pattern(x.page(0), 5)
	st, errno := copySegs(x.gntdev(),
		newSeg(foreign(1, writable, 10), foreign(1, writable+1, 20), 100, 3),
		newSeg(foreign(1, writable, 10), foreign(1, readOnly+2, 20), 100, 3),
	)
	wantErrno(t, "copy", errno, 0)
	if diff := cmp.Diff([]gntdev.Status{gntdev.StatusOkay, gntdev.StatusGeneralError}, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if !bytes.Equal(x.page(1)[20:120], x.page(0)[10:110]) {
		t.Error("the bytes are not there")
	}
	x.wantUnused(t)
}

// TestCopyUsesOneReferenceManyTimes copies more segments of one reference than it may have
// uses at once. Each use ends before the next begins.
func TestCopyUsesOneReferenceManyTimes(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	defer g.Close()
	// Mappings take up most of the 128 uses.
	for range 100 {
		index, _ := g.Map(1, []xen.Gref{writable})
		_, _, errno := g.Mmap(index, 1, false)
		wantErrno(t, "mmap", errno, 0)
	}
	mem := local(t, 4096)
	var segs []seg
	for i := range 300 {
		segs = append(segs, toLocal(writable, uint16(i), mem[i:i+1]))
	}
	pattern(x.page(0), 9)
	st, errno := copySegs(g, segs...)
	wantErrno(t, "copy", errno, 0)
	if diff := cmp.Diff(make([]gntdev.Status, 300), st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if !bytes.Equal(mem[:300], x.page(0)[:300]) {
		t.Error("the bytes are not there")
	}
}

func TestGrantIsInUseDuringACopy(t *testing.T) {
	x := newXen(t)
	g := x.gntdev()
	x.guest.AddFault(wire.Fault{Op: wire.FaultCopy, Ref: writable, Delay: 1 << 40, Count: 1})
	mem := local(t, 4096)
	done := make(chan unix.Errno)
	go func() {
		_, errno := copySegs(g, fromLocal(mem[:10], writable, 0))
		done <- errno
	}()
	inUse := gnttab.PermitAccess | gnttab.Reading | gnttab.Writing
	for x.guest.Table().Head(writable).Flags() != inUse {
		runtime.Gosched()
	}
	if x.guest.Table().Revoke(writable) {
		t.Error("the guest could take the grant back")
	}
	x.hv.Interrupt()
	wantErrno(t, "copy", <-done, 0)
	if !x.guest.Table().Revoke(writable) {
		t.Error("the guest cannot take the grant back afterwards")
	}
}

func TestProcessThatMayNotBeReached(t *testing.T) {
	word := []uint32{wire.Probed}
	if got, err := Process(os.Getpid()).Probe(addrOf(word)); err != nil || got != wire.Probed {
		t.Errorf("own memory: %#x, %v", got, err)
	}
	if _, err := Process(os.Getpid()).Probe(8); err != unix.EFAULT {
		t.Errorf("memory that is not there: %v, want EFAULT", err)
	}
	if _, err := Process(1 << 30).Probe(addrOf(word)); err != unix.ESRCH {
		t.Errorf("no such process: %v, want ESRCH", err)
	}
}

// FuzzCopy: for any input of a process, a copy ends with an errno or statuses, and releases
// everything.
func FuzzCopy(f *testing.F) {
	s := newSeg(foreign(1, writable, 100), 1<<40, 1500, 1)
	f.Add(s[:])
	s = newSeg(1<<40, foreign(1, writable, 4000), 97, 2)
	f.Add(s[:])
	s = newSeg(foreign(1, writable, 0), foreign(1, writable, 50), 100, 3)
	f.Add(append(s[:], s[:]...))
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		x := newXen(t)
		// A pid without a process, so that no memory is hit by chance.
		g := OpenGntdev(x.hv, x.dom0, Process(1<<30))
		status := make([]gntdev.Status, len(b)/SegmentSize)
		errno := g.NewCopier().Copy(b, status)
		for i, st := range status {
			if errno == 0 && (st > 0 || st < gntdev.StatusNoSpace) {
				t.Errorf("segment %d has status %d", i, st)
			}
		}
		x.wantUnused(t)
	})
}

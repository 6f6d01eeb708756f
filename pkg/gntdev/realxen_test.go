// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

const dom0 = 0

// remote is the guest as the back end's domain sees it.
type remote struct {
	domid xen.Domid
	home  string
	calls int
	lost  bool // it did not answer in time
}

// call has the guest do something and returns its answer.
func (r *remote) call(t *testing.T, format string, args ...any) string {
	t.Helper()
	r.calls++
	call := fmt.Sprintf(format, args...)
	number := strconv.Itoa(r.calls)
	if _, err := xenstore("write", r.home+"/data/call", number+" "+call); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		reply, err := xenstore("read", r.home+"/data/reply")
		if n, rest, _ := strings.Cut(reply, " "); err == nil && n == number {
			return rest
		}
	}
	r.lost = true
	t.Fatalf("the guest does not answer %q", call)
	return ""
}

// must is call for what has to succeed.
func (r *remote) must(t *testing.T, format string, args ...any) string {
	t.Helper()
	reply := r.call(t, format, args...)
	if strings.HasPrefix(reply, "error") {
		t.Fatalf("guest: "+format+": %s", append(args, reply)...)
	}
	return reply
}

// alloc has the guest grant us pages, page i filled with the pattern of seed i.
func (r *remote) alloc(t *testing.T, n int, writable bool) (set int, refs []xen.Gref) {
	t.Helper()
	w := 0
	if writable {
		w = 1
	}
	words := strings.Fields(r.must(t, "alloc %d %d %d", dom0, n, w))
	for i, word := range words {
		v, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			set = v
			continue
		}
		refs = append(refs, xen.Gref(v))
	}
	if len(refs) != n {
		t.Fatalf("the guest granted %d pages, want %d", len(refs), n)
	}
	return set, refs
}

const (
	// consoleRef is a page of every guest that its toolstack granted to dom0.
	consoleRef xen.Gref = 0
	// freeRef beyond the refs the guest gave us lie ones that are in its
	// table and not granted.
	freeRef xen.Gref = 200
	// unusedRef is in the table of no small guest.
	unusedRef xen.Gref = 999999
)

func TestRealXenBackend(t *testing.T) {
	needRole(t, "backend")
	id, err := strconv.ParseUint(os.Getenv(guestEnv), 10, 16)
	if err != nil {
		t.Fatalf("%s must be the guest's domid: %v", guestEnv, err)
	}
	r := &remote{domid: xen.Domid(id), home: "/local/domain/" + strconv.FormatUint(id, 10)}
	dev, err := Open(DefaultPath)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	arena, err := NewArena(256 * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	b := &backend{remote: r, dev: dev, arena: arena}

	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"the guest's limit of pages", b.allocLimit},
		{"copy from the guest", b.copyFromGuest},
		{"copy to the guest", b.copyToGuest},
		{"a bad ref costs its own segment only", b.copyBadRef},
		{"copy to a page granted read-only", b.copyReadOnly},
		{"a crossing segment fails the whole ioctl", b.copyCrossing},
		{"bad local memory fails the whole ioctl", b.copyBadLocal},
		{"map read-write", b.mapReadWrite},
		{"map read-only", b.mapReadOnly},
		{"map with a bad ref names it", b.mapBadRef},
		{"a record maps once", b.mapRecord},
		{"unmap after close", b.unmapAfterClose},
		{"a mapped page outlives the guest's free", b.mapFreed},
		{"events", b.events},
		{"event queued before unbind", b.eventsUnbind},
		{"event overflow", b.eventsOverflow},
		{"restricted events", b.eventsRestrict},
		{"port closed by either side", b.eventsClosed},
		{"costs", b.costs},
		{"guest destroyed while mapped", b.destroyed},
	} {
		if t.Run(c.name, c.test); r.lost {
			t.Fatal("the guest is lost")
		}
	}
}

type backend struct {
	*remote
	dev   *Device
	arena *Arena
}

// matches says how many of the bytes follow the pattern of seed from offset off.
func matches(mem []byte, seed, off int) int {
	for i := range mem {
		if mem[i] != pattern(seed, off+i) {
			return i
		}
	}
	return len(mem)
}

// check has the guest look at its pages.
func (b *backend) check(t *testing.T, set, seed, pages int) {
	t.Helper()
	if got, want := b.must(t, "check %d %d", set, seed), strconv.Itoa(pages*PageSize); got != want {
		t.Errorf("the guest finds %s right bytes, want %s", got, want)
	}
}

func (b *backend) allocLimit(t *testing.T) {
	for range 2 {
		set := b.must(t, "reserve %d 1000", dom0)
		if got := b.call(t, "reserve %d 25", dom0); !strings.Contains(got, "xen_gntalloc.limit") {
			t.Errorf("25 pages more than 1000: %s", got)
		}
		b.must(t, "free %s", set)
	}
	t.Log(b.call(t, "reserve %d 1025", dom0))
}

func (b *backend) copyFromGuest(t *testing.T) {
	_, refs := b.alloc(t, 3, true)
	for _, c := range []struct {
		name               string
		page, off, n, dest int
	}{
		{"a whole page", 1, 0, PageSize, 0},
		{"one byte", 2, 4095, 1, 10},
		{"nothing", 2, 4096, 0, 10},
		{"across a page end of ours", 1, 7, 1500, PageSize - 100},
		{"a whole page across a page end", 0, 0, PageSize, 1},
	} {
		clear(b.arena.Bytes())
		segs := make([]Segment, 1)
		segs[0].FromGuest(b.domid, refs[c.page], uint16(c.off), b.arena.Bytes()[c.dest:][:c.n])
		if err := b.dev.Copy(segs); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := firstError(segs); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := matches(b.arena.Bytes()[c.dest:][:c.n], c.page, c.off); got != c.n {
			t.Errorf("%s: %d of %d bytes are right", c.name, got, c.n)
		}
	}
}

func (b *backend) copyToGuest(t *testing.T) {
	set, refs := b.alloc(t, 8, true)
	// All pages in one call, each with the pattern of another seed, most of
	// them from local memory that is not page aligned.
	segs := make([]Segment, 2*len(refs))
	for i, ref := range refs {
		at := i * (PageSize + 100)
		for j := range PageSize {
			b.arena.Bytes()[at+j] = pattern(100+i, j)
		}
		segs[2*i].ToGuest(b.domid, ref, 0, b.arena.Bytes()[at:][:1000])
		segs[2*i+1].ToGuest(b.domid, ref, 1000, b.arena.Bytes()[at+1000:][:PageSize-1000])
	}
	if err := b.dev.Copy(segs); err != nil {
		t.Fatal(err)
	}
	if err := firstError(segs); err != nil {
		t.Fatal(err)
	}
	b.check(t, set, 100, len(refs))
}

func (b *backend) copyBadRef(t *testing.T) {
	_, refs := b.alloc(t, 1, true)
	const n = 40 // more than two of the kernel's batches
	segs := make([]Segment, n)
	want := make([]Status, n)
	for i := range segs {
		segs[i].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[i*PageSize:][:64])
	}
	segs[5].FromGuest(b.domid, unusedRef, 0, b.arena.Bytes()[5*PageSize:][:64])
	want[5] = StatusBadGntref
	segs[17].FromGuest(b.domid, consoleRef, 0, b.arena.Bytes()[17*PageSize:][:64])
	segs[18].ToGuest(b.domid, refs[0]+freeRef, 0, b.arena.Bytes()[18*PageSize:][:64])
	want[18] = StatusGeneralError
	segs[30].FromGuest(30000, refs[0], 0, b.arena.Bytes()[30*PageSize:][:64])
	want[30] = StatusBadDomain
	segs[31].FromGuest(b.domid, unusedRef, 0, b.arena.Bytes()[31*PageSize:][:0])
	if err := b.dev.Copy(segs); err != nil {
		t.Fatal(err)
	}
	got := make([]Status, n)
	for i := range segs {
		got[i] = segs[i].Status()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	t.Log(firstError(segs))
}

func (b *backend) copyReadOnly(t *testing.T) {
	set, refs := b.alloc(t, 1, false)
	segs := make([]Segment, 2)
	segs[0].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[:100])
	segs[1].ToGuest(b.domid, refs[0], 0, b.arena.Bytes()[PageSize:][:100])
	if err := b.dev.Copy(segs); err != nil {
		t.Fatal(err)
	}
	if segs[0].Status() != StatusOkay || segs[1].Status() != StatusGeneralError {
		t.Errorf("reading gives %v, writing %v", segs[0].Status(), segs[1].Status())
	}
	b.check(t, set, 0, 1)
}

// fd is the descriptor, for calls that the package does not make.
func (b *backend) fd() int {
	defer b.dev.fd.Release()
	return b.dev.fd.Hold()
}

func (b *backend) copyCrossing(t *testing.T) {
	_, refs := b.alloc(t, 1, true)
	segs := make([]Segment, 3)
	segs[0].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[:64])
	segs[1].FromGuest(b.domid, refs[0], 4000, b.arena.Bytes()[PageSize:][:97])
	segs[2].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[2*PageSize:][:64])
	var e *Error
	err := b.dev.Copy(segs)
	if !errors.As(err, &e) || e.Index != 1 || e.Ref != refs[0] || e.Domid != b.domid {
		t.Errorf("Copy: %v, want an error that names segment 1", err)
	}
	t.Log(err)

	// What Check saves us from: the first segment was not copied, and reads
	// as if it had been.
	clear(b.arena.Bytes()[:64])
	raw := b.dev.kernel.grantCopy(b.fd(), segs)
	if !errors.Is(raw, unix.EINVAL) {
		t.Errorf("the kernel says %v, want EINVAL", raw)
	}
	t.Logf("unchecked: %v, statuses %v %v %v, bytes of segment 0 copied: %d of 64", raw,
		segs[0].Status(), segs[1].Status(), segs[2].Status(), matches(b.arena.Bytes()[:64], 0, 0))
}

func (b *backend) copyBadLocal(t *testing.T) {
	_, refs := b.alloc(t, 1, true)
	segs := make([]Segment, 2)
	segs[0].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[:64])
	segs[1].fromGuest(b.domid, refs[0], 0, PageSize, 64) // never mapped: vm.mmap_min_addr
	err := b.dev.Copy(segs)
	if !errors.Is(err, unix.EFAULT) {
		t.Errorf("Copy: %v, want EFAULT", err)
	}
	t.Log(err)
	for i := range segs {
		if got := segs[i].Status(); got != StatusGeneralError {
			t.Errorf("segment %d of a failed Copy reads %v", i, got)
		}
	}
}

func (b *backend) mapReadWrite(t *testing.T) {
	set, refs := b.alloc(t, 4, true)
	m, err := b.dev.Map(b.domid, refs, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Bytes()) != len(refs)*PageSize {
		t.Errorf("%d bytes are mapped", len(m.Bytes()))
	}
	for i := range refs {
		page := m.Bytes()[i*PageSize:][:PageSize]
		if got := matches(page, i, 0); got != PageSize {
			t.Errorf("page %d: %d bytes are right", i, got)
		}
		for j := range page {
			page[j] = pattern(50+i, j)
		}
	}
	b.check(t, set, 50, len(refs))
	// Plain system calls may use the memory.
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	n, err := unix.Write(p[1], m.Bytes()[:1500])
	t.Logf("write(2) from the mapping: %d, %v", n, err)
	// A copy whose local side is a mapping, from a guest to a guest as it were.
	segs := make([]Segment, 1)
	segs[0].local(GuestIsSource, b.domid, refs[0], m.Bytes()[PageSize:][:64])
	err = b.dev.Copy(segs)
	t.Logf("Copy into the mapping: %v, %v", err, segs[0].Status())
	// The same refs once more, beside the first mapping.
	again, err := b.dev.Map(b.domid, refs, ReadOnly)
	if err != nil {
		t.Errorf("the second mapping: %v", err)
	} else if err := again.Unmap(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := m.Unmap(); err != nil {
			t.Error(err)
		}
	}
	if m.Bytes() != nil {
		t.Error("memory is left after Unmap")
	}
}

// writeFaults says whether a write to the byte is a fault.
func writeFaults(mem *byte) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	*mem = 1
	return false
}

func (b *backend) mapReadOnly(t *testing.T) {
	for _, writable := range []bool{false, true} {
		_, refs := b.alloc(t, 2, writable)
		m, err := b.dev.Map(b.domid, refs, ReadOnly)
		if err != nil {
			t.Fatalf("granted writable %v: %v", writable, err)
		}
		if got := matches(m.Bytes()[PageSize:], 1, 0); got != PageSize {
			t.Errorf("granted writable %v: %d bytes are right", writable, got)
		}
		if !writeFaults(&m.Bytes()[0]) {
			t.Errorf("granted writable %v: the mapping can be written", writable)
		}
		if err := m.Unmap(); err != nil {
			t.Error(err)
		}
		m, err = b.dev.Map(b.domid, refs, ReadWrite)
		if writable {
			if err != nil {
				t.Errorf("read-write: %v", err)
			} else if err := m.Unmap(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, unix.EINVAL) || !errors.Is(err, StatusPermissionDenied) {
			t.Errorf("read-write: %v, want EINVAL and that the page is read-only", err)
		}
		t.Log(err)
	}
}

func (b *backend) mapBadRef(t *testing.T) {
	_, refs := b.alloc(t, 4, true)
	for _, c := range []struct {
		name  string
		domid xen.Domid
		bad   xen.Gref
		want  Status
	}{
		{"out of the table", b.domid, unusedRef, StatusBadGntref},
		{"not granted", b.domid, refs[3] + freeRef, StatusGeneralError},
		{"no such domain", 30000, refs[2], StatusBadDomain},
	} {
		list := []xen.Gref{refs[0], refs[1], c.bad, refs[3]}
		at := 2
		if c.domid != b.domid {
			at = 0
		}
		begin := time.Now()
		_, err := b.dev.Map(c.domid, list, ReadWrite)
		var e *Error
		if !errors.As(err, &e) || e.Index != at || e.Status != c.want {
			t.Errorf("%s: %v, want ref %d with %v", c.name, err, at, c.want)
		}
		t.Logf("%s: %v (after %v)", c.name, err, time.Since(begin))
	}
	_, err := b.dev.kernel.mapGrantRef(b.fd(), b.domid, make([]xen.Gref, MaxRefs+1))
	t.Logf("one ref more than MaxRefs: %v", err)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("one ref more than MaxRefs: %v, want EINVAL", err)
	}
}

// mapRecord looks at what the kernel does with the record of a mapping, which
// Map and Unmap rely on.
func (b *backend) mapRecord(t *testing.T) {
	_, refs := b.alloc(t, 2, true)
	k, fd := b.dev.kernel, b.fd()
	index, err := k.mapGrantRef(fd, b.domid, []xen.Gref{refs[0], unusedRef})
	if err != nil {
		t.Fatalf("bad refs should pass the ioctl: %v", err)
	}
	for _, try := range []string{"first", "second"} {
		_, err := k.mmap(fd, index, 2*PageSize, ReadWrite)
		t.Logf("%s mmap with a bad ref: %v", try, err)
		if err == nil {
			t.Fatal("a bad ref was mapped")
		}
	}
	if err := k.unmapGrantRef(fd, index, 1); !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmap with a wrong count: %v, want ENOENT", err)
	}
	if err := k.unmapGrantRef(fd, index, 2); err != nil {
		t.Errorf("unmap: %v", err)
	}
	index, err = k.mapGrantRef(fd, b.domid, refs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.mmap(fd, index, PageSize, ReadWrite); err == nil {
		t.Error("half of the record was mapped")
	}
	mem, err := k.mmap(fd, index, 2*PageSize, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.unmapGrantRef(fd, index, 2); err != nil {
		t.Errorf("unmap before munmap: %v", err)
	}
	if got := matches(mem[PageSize:], 1, 0); got != PageSize {
		t.Errorf("after unmap before munmap: %d bytes are right", got)
	}
	if err := k.munmap(mem); err != nil {
		t.Error(err)
	}
}

func (b *backend) unmapAfterClose(t *testing.T) {
	_, refs := b.alloc(t, 2, true)
	dev, err := Open(DefaultPath)
	if err != nil {
		t.Fatal(err)
	}
	m, err := dev.Map(b.domid, refs, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if got := matches(m.Bytes()[PageSize:], 1, 0); got != PageSize {
		t.Errorf("after Close %d bytes are right", got)
	}
	if err := m.Unmap(); err != nil {
		t.Error(err)
	}
}

// mapFreed: the guest cannot take back what we have mapped.
func (b *backend) mapFreed(t *testing.T) {
	set, refs := b.alloc(t, 1, true)
	m, err := b.dev.Map(b.domid, refs, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	b.must(t, "free %d", set)
	if got := matches(m.Bytes(), 0, 0); got != PageSize {
		t.Errorf("after the guest's free %d bytes are right", got)
	}
	m.Bytes()[0] = 1
	segs := make([]Segment, 1)
	segs[0].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[:64])
	err = b.dev.Copy(segs)
	t.Logf("copy of a freed page while mapped: %v, %v", err, segs[0].Status())
	if err := m.Unmap(); err != nil {
		t.Error(err)
	}
	// The guest's kernel frees it for good with its next tries, once a second.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		segs[0].FromGuest(b.domid, refs[0], 0, b.arena.Bytes()[:64])
		if err := b.dev.Copy(segs); err != nil {
			t.Fatal(err)
		}
		if segs[0].Status() != StatusOkay {
			t.Logf("copy of a freed page after unmap: %v", segs[0].Status())
			return
		}
		if time.Now().After(deadline) {
			t.Log("copy of a freed page after unmap: still okay after 20 s")
			return
		}
	}
}

// readable waits for the device's descriptor and returns what poll says, 0
// when nothing comes in time.
func readable(t *testing.T, d *evtchn.Device, timeout time.Duration) int16 {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(d.FD()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, int(timeout.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return fds[0].Revents
	}
}

// quiet is the time without an event that counts as "no event"; two orders above a
// round trip under emulation.
const quiet = 300 * time.Millisecond

// expect checks that Pending gives exactly the ports.
func expect(t *testing.T, what string, d *evtchn.Device, want ...evtchn.Port) {
	t.Helper()
	timeout := 10 * time.Second
	if len(want) == 0 {
		timeout = quiet
	}
	readable(t, d, timeout)
	buf := make([]evtchn.Port, 16)
	n, err := d.Pending(buf)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if diff := cmp.Diff(append([]evtchn.Port{}, want...), buf[:n]); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (b *backend) offer(t *testing.T) evtchn.Port {
	t.Helper()
	port, err := strconv.Atoi(b.must(t, "offer %d", dom0))
	if err != nil {
		t.Fatal(err)
	}
	return evtchn.Port(port)
}

func openEvents(t *testing.T) *evtchn.Device {
	t.Helper()
	d, err := evtchn.Open(evtchn.DefaultPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (b *backend) events(t *testing.T) {
	d := openEvents(t)
	expect(t, "nothing is bound", d)
	theirs := b.offer(t)
	ours, err := d.BindInterdomain(b.domid, theirs)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "from the bind", d, ours)
	t.Logf("the guest, after our bind: pending %q", b.must(t, "pending"))
	b.must(t, "unmask %d", theirs)

	b.must(t, "notify %d", theirs)
	expect(t, "masked since the bind", d)
	if err := d.Unmask([]evtchn.Port{ours}); err != nil {
		t.Fatal(err)
	}
	expect(t, "held back by the mask", d, ours)
	if err := d.Unmask([]evtchn.Port{ours, ours, 4000}); err != nil {
		t.Errorf("unmask twice and a port not bound: %v", err)
	}
	expect(t, "nothing new", d)
	for range 3 {
		b.must(t, "notify %d", theirs)
	}
	expect(t, "the first of three", d, ours)
	expect(t, "masked again", d)
	if err := d.Unmask([]evtchn.Port{ours}); err != nil {
		t.Fatal(err)
	}
	expect(t, "the other two in one", d, ours)

	for range 2 {
		if err := d.Notify(ours); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.must(t, "pending"); got != fmt.Sprint(theirs) {
		t.Errorf("the guest, after two notifies: pending %q, want %d once", got, theirs)
	}
	b.must(t, "unmask %d", theirs)
	t.Logf("the guest, after unmask: pending %q", b.must(t, "pending"))

	_, err = d.BindInterdomain(b.domid, theirs)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a port bound twice: %v, want EINVAL", err)
	}
	t.Log(err)
	_, err = d.BindInterdomain(b.domid, 3000)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a port not offered: %v, want EINVAL", err)
	}
	_, err = d.BindInterdomain(30000, 1)
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("a domain that is not there: %v, want ESRCH", err)
	}
	t.Log(err)
	if err := d.Notify(ours + 1000); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("notify on a port not ours: %v, want ENOTCONN", err)
	}
	if err := d.Unbind(ours + 100); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("unbind of a port not ours: %v, want ENOTCONN", err)
	}
	if err := d.Unbind(1 << 20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unbind of a number beyond all ports: %v, want EINVAL", err)
	}
	// Two devices of one process do not share ports.
	if err := openEvents(t).Notify(ours); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("notify through another device: %v, want ENOTCONN", err)
	}
}

func (b *backend) eventsUnbind(t *testing.T) {
	d := openEvents(t)
	ours, err := d.BindInterdomain(b.domid, b.offer(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := readable(t, d, 10*time.Second); got != unix.POLLIN {
		t.Errorf("poll says %#x, want POLLIN", got)
	}
	if err := d.Unbind(ours); err != nil {
		t.Fatal(err)
	}
	expect(t, "queued before the unbind", d, ours)
	if err := d.Unmask([]evtchn.Port{ours}); err != nil {
		t.Errorf("unmask of a port unbound since: %v", err)
	}
}

// eventsOverflow binds and unbinds, each time leaving the event of the bind in
// the queue, until the queue is full. An unbind that comes before the event
// was delivered leaves nothing, so the number of rounds is not fixed; it is 65
// when none does.
func (b *backend) eventsOverflow(t *testing.T) {
	d := openEvents(t)
	theirs := b.offer(t)
	buf := make([]evtchn.Port, 256)
	binds, begin := 1, time.Now()
	for ; ; binds++ {
		ours, err := d.BindInterdomain(b.domid, theirs)
		if err != nil {
			t.Fatal(err)
		}
		if r := readable(t, d, time.Second); r&unix.POLLERR != 0 {
			if r != unix.POLLERR {
				t.Errorf("poll says %#x, want POLLERR alone", r)
			}
			break
		}
		if time.Since(begin) > 20*time.Second {
			n, err := d.Pending(buf)
			t.Fatalf("no overflow after %d binds; queued are %d (%v)", binds, n, err)
		}
		if err := d.Unbind(ours); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("overflow after %d binds", binds)
	if binds < 65 {
		t.Errorf("overflow after %d binds, the queue has room for 64", binds)
	}
	_, err := d.Pending(buf)
	if !errors.Is(err, evtchn.ErrOverflow) {
		t.Fatalf("Pending says %v, want an overflow", err)
	}
	t.Log(err)
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	expect(t, "after Reset", d)
	b.must(t, "notify %d", theirs)
	expect(t, "still masked after Reset", d)
}

func (b *backend) eventsRestrict(t *testing.T) {
	d := openEvents(t)
	theirs := b.offer(t)
	other, err := d.BindUnbound(b.domid)
	if err != nil {
		t.Fatal(err)
	}
	for _, domid := range []xen.Domid{0, 0x7ff0} {
		if err := d.Restrict(domid); !errors.Is(err, unix.EINVAL) {
			t.Errorf("restrict to %d: %v, want EINVAL", domid, err)
		}
	}
	if err := d.Restrict(b.domid); err != nil {
		t.Fatal(err)
	}
	ours, err := d.BindInterdomain(b.domid, theirs)
	if err != nil {
		t.Errorf("bind to the domain: %v", err)
	}
	if err := d.Notify(ours); err != nil {
		t.Errorf("notify: %v", err)
	}
	if err := d.Unbind(other); err != nil {
		t.Errorf("unbind: %v", err)
	}
	_, err = d.BindInterdomain(b.domid+1, 1)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("bind to another domain: %v, want EACCES", err)
	}
	t.Log(err)
	if _, err := d.BindUnbound(b.domid); !errors.Is(err, unix.EACCES) {
		t.Errorf("offer a port: %v, want EACCES", err)
	}
	err = d.Restrict(b.domid)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("restrict once more: %v, want EACCES", err)
	}
	t.Log(err)
}

func (b *backend) eventsClosed(t *testing.T) {
	// A back end that died and came back finds the guest's port free to bind.
	d := openEvents(t)
	theirs := b.offer(t)
	ours, err := d.BindInterdomain(b.domid, theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest notifies an end that is gone: %s", b.call(t, "notify %d", theirs))
	d = openEvents(t)
	again, err := d.BindInterdomain(b.domid, theirs)
	if err != nil {
		t.Fatalf("bind again after close: %v", err)
	}
	t.Logf("bound %d, and after close %d", ours, again)
	expect(t, "from the second bind", d, again)
	if err := d.Unmask([]evtchn.Port{again}); err != nil {
		t.Fatal(err)
	}

	b.must(t, "unbind %d", theirs)
	expect(t, "the guest's unbind is silent", d)
	if err := d.Notify(again); err != nil {
		t.Errorf("notify a port the guest closed: %v", err)
	}
	if err := d.Unbind(again); err != nil {
		t.Errorf("unbind a port the guest closed: %v", err)
	}
	_, err = d.BindInterdomain(b.domid, theirs)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("bind a port the guest closed: %v, want EINVAL", err)
	}
}

func (b *backend) costs(t *testing.T) {
	_, refs := b.alloc(t, 16, true)
	measure := func(what string, rounds, units int, f func() error) {
		t.Helper()
		begin := time.Now()
		for range rounds {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		per := time.Since(begin) / time.Duration(rounds)
		t.Logf("%-44s %9v  %9v each", what, per, per/time.Duration(units))
	}
	measure("getppid", 5000, 1, func() error {
		unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		return nil
	})
	for _, dir := range []Direction{GuestIsSource, GuestIsDest} {
		for _, size := range []int{64, 1500, PageSize} {
			for _, n := range []int{1, 8, 64, 128} {
				segs := make([]Segment, n)
				for _, at := range []int{0, 2048} {
					if at != 0 && size != 1500 {
						continue
					}
					for i := range segs {
						local := b.arena.Bytes()[i*PageSize+at%PageSize:][:size]
						if at != 0 {
							// 2048+1500 stays in its page, 3000+1500 does not.
							local = b.arena.Bytes()[i*PageSize+3000:][:size]
						}
						segs[i].local(dir, b.domid, refs[i%len(refs)], local)
					}
					what := fmt.Sprintf("copy %v, %d x %d bytes", dir, n, size)
					if at != 0 {
						what += ", split"
					}
					measure(what, 50, n, func() error {
						if err := b.dev.Copy(segs); err != nil {
							return err
						}
						return firstError(segs)
					})
				}
			}
		}
	}
	for _, n := range []int{1, 2, 16} {
		measure(fmt.Sprintf("map, read and unmap %d pages", n), 50, n, func() error {
			m, err := b.dev.Map(b.domid, refs[:n], ReadWrite)
			if err != nil {
				return err
			}
			sum := byte(0)
			for i := range n {
				sum += m.Bytes()[i*PageSize]
			}
			_ = sum
			return m.Unmap()
		})
	}
	d := openEvents(t)
	ours, err := d.BindInterdomain(b.domid, b.offer(t))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]evtchn.Port, 16)
	measure("notify", 1000, 1, func() error { return d.Notify(ours) })
	expect(t, "from the bind", d, ours)
	measure("pending, none", 1000, 1, func() error { _, err := d.Pending(buf); return err })
	measure("unmask", 1000, 1, func() error { return d.Unmask([]evtchn.Port{ours}) })
	measure("bind and unbind", 20, 1, func() error {
		p, err := d.BindUnbound(b.domid)
		if err != nil {
			return err
		}
		return d.Unbind(p)
	})
}

// zombie is the guest's line of xl list, "" when there is none.
func (b *backend) zombie() string {
	out, _ := exec.Command("xl", "list").Output()
	for line := range strings.Lines(string(out)) {
		// Name ID Mem VCPUs State Time
		if f := strings.Fields(line); len(f) == 6 && f[1] == strconv.Itoa(int(b.domid)) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// statuses copies a few bytes from and to each ref.
func (b *backend) statuses(t *testing.T, refs ...xen.Gref) []Status {
	t.Helper()
	segs := make([]Segment, 2*len(refs))
	for i, ref := range refs {
		segs[2*i].FromGuest(b.domid, ref, 0, b.arena.Bytes()[:64])
		segs[2*i+1].ToGuest(b.domid, ref, 0, b.arena.Bytes()[:64])
	}
	if err := b.dev.Copy(segs); err != nil {
		t.Errorf("copy: %v", err)
	}
	var got []Status
	for i := range segs {
		got = append(got, segs[i].Status())
	}
	return got
}

// destroyed comes last: there is no guest after it.
func (b *backend) destroyed(t *testing.T) {
	_, refs := b.alloc(t, 4, true)
	mapped, spare := refs[:2], refs[2:]
	d := openEvents(t)
	theirs, offered := b.offer(t), b.offer(t)
	ours, err := d.BindInterdomain(b.domid, theirs)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "from the bind", d, ours)
	if err := d.Unmask([]evtchn.Port{ours}); err != nil {
		t.Fatal(err)
	}
	m, err := b.dev.Map(b.domid, mapped, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("xl", "destroy", strconv.Itoa(int(b.domid))).CombinedOutput(); err != nil {
		t.Fatalf("xl destroy: %v: %s", err, out)
	}
	for _, when := range []string{"at once", "later"} {
		t.Logf("%s: %s", when, b.zombie())
		if got := matches(m.Bytes()[PageSize:], 1, 0); got != PageSize {
			t.Errorf("%s: mapped pages of a dead guest: %d bytes are right", when, got)
		}
		m.Bytes()[0]++
		for _, ref := range []xen.Gref{mapped[0], spare[0]} {
			got := b.statuses(t, ref)
			t.Logf("%s: copy of ref %d: %v", when, ref, got)
			if got[0] == StatusOkay || got[1] == StatusOkay {
				t.Errorf("%s: a dead guest's page was copied", when)
			}
			m, err := b.dev.Map(b.domid, []xen.Gref{ref}, ReadWrite)
			t.Logf("%s: map of ref %d: %v", when, ref, err)
			if err == nil {
				if err := m.Unmap(); err != nil {
					t.Errorf("%s: unmap: %v", when, err)
				}
			}
		}
		_, err = d.BindInterdomain(b.domid, offered)
		t.Logf("%s: %v", when, err)
		if err == nil {
			t.Errorf("%s: a dead guest's port was bound", when)
		}
		if err := d.Notify(ours); err != nil {
			t.Errorf("%s: notify: %v", when, err)
		}
		// The guest's death makes no event, and gives Xen time.
		expect(t, "the guest's death", d)
		readable(t, d, 2*time.Second)
	}
	if err := d.Unbind(ours); err != nil {
		t.Errorf("unbind: %v", err)
	}
	if err := m.Unmap(); err != nil {
		t.Errorf("unmap: %v", err)
	}
	begin := time.Now()
	for b.zombie() != "" {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("after unmap: %s", b.zombie())
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("gone %v after unmap", time.Since(begin))
	t.Logf("gone: copy: %v", b.statuses(t, spare[0]))
	_, err = b.dev.Map(b.domid, spare, ReadWrite)
	t.Logf("gone: %v", err)
	if !errors.Is(err, StatusBadDomain) {
		t.Errorf("gone: %v, want GNTST_bad_domain", err)
	}
	if _, err := d.BindInterdomain(b.domid, offered); !errors.Is(err, unix.ESRCH) {
		t.Errorf("gone: %v, want ESRCH", err)
	}
}

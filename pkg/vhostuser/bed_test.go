// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// waitFor bounds what a test waits for. It is generous: machines are busy.
const waitFor = 60 * time.Second

// recorder is a handler that writes down what it is asked for.
type recorder struct {
	mu     sync.Mutex
	calls  []string
	rings  map[int]Ring
	table  *Table
	log    *virtqueue.Log
	refuse string // the call that fails
	last   int    // signalled when a ring is stopped, 0: none
	base   uint32 // of each ring that is stopped
	config [8]byte
}

var errRefused = errors.New("refused by the test")

func (r *recorder) say(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	r.calls = append(r.calls, s)
	if s == r.refuse {
		return errRefused
	}
	return nil
}

// took returns the calls since the last time.
func (r *recorder) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls
	r.calls = nil
	return c
}

// set changes the recorder. What the back end's goroutine uses is only touched like this.
func (r *recorder) set(f func(r *recorder)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *recorder) ring(i int) (ring Ring) {
	r.set(func(r *recorder) { ring = r.rings[i] })
	return ring
}

func (r *recorder) memory() (t *Table) {
	r.set(func(r *recorder) { t = r.table })
	return t
}

func (r *recorder) logged() (l *virtqueue.Log) {
	r.set(func(r *recorder) { l = r.log })
	return l
}

func (r *recorder) SetFeatures(v uint64) error { return r.say("features %#x", v) }
func (r *recorder) SetMemory(t *Table, rings []Ring) error {
	n := 0
	if t != nil {
		n = t.Len()
	}
	r.set(func(r *recorder) { r.table = t })
	return r.say("memory of %d regions for %d rings", n, len(rings))
}
func (r *recorder) StartRing(ring Ring, _ *Table, _ *virtqueue.Log) error {
	r.set(func(r *recorder) { r.rings[ring.Index] = ring })
	return r.say("start %d: %d at %d, enabled %t", ring.Index, ring.Size, ring.Base, ring.Enabled)
}
func (r *recorder) UpdateRing(ring Ring) error {
	r.set(func(r *recorder) { r.rings[ring.Index] = ring })
	return r.say("update %d: enabled %t, log %t", ring.Index, ring.Enabled, ring.LogRing)
}
func (r *recorder) StopRing(i int) (base uint32, err error) {
	last := 0
	r.set(func(r *recorder) { last = r.last })
	if last != 0 {
		_ = Signal(last)
	}
	r.set(func(r *recorder) { base = r.base })
	return base, r.say("stop %d", i)
}
func (r *recorder) SetLog(l *virtqueue.Log) error {
	r.set(func(r *recorder) { r.log = l })
	return r.say("log %t", l != nil)
}
func (r *recorder) SetStatus(s uint8) error    { return r.say("status %#x", s) }
func (r *recorder) Reset() error               { return r.say("reset") }
func (r *recorder) SetMTU(mtu uint16) error    { return r.say("mtu %d", mtu) }
func (r *recorder) SendRARP(mac [6]byte) error { return r.say("rarp %x", mac) }
func (r *recorder) ReadConfig(p []byte, off uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if int(off)+len(p) > len(r.config) {
		return errRefused
	}
	copy(p, r.config[off:])
	return nil
}
func (r *recorder) WriteConfig(p []byte, off uint32, migration bool) error {
	return r.say("config %x at %d, migration %t", p, off, migration)
}

// bed is both ends of a session, and a guest's memory.
type bed struct {
	t    testing.TB
	rec  *recorder
	f    *Frontend
	done chan error
	cfg  BackendConfig
}

const allFeatures = 1<<32 | featureLogAll | featureEventIdx | featureIndirect | featureRingPacked

func newBed(t testing.TB, change ...func(*BackendConfig)) *bed {
	t.Helper()
	b := &bed{t: t, rec: &recorder{rings: map[int]Ring{}}}
	b.cfg = BackendConfig{Features: allFeatures, ProtocolFeatures: ProtocolNet | ProtocolConfig | ProtocolXenMmap, Rings: 4}
	for _, f := range change {
		f(&b.cfg)
	}
	front, back := socketPair(t)
	b.f = NewFrontend(front)
	b.done = make(chan error, 1)
	s := NewBackend(back, b.cfg, b.rec)
	go func() { b.done <- s.Serve(context.Background()) }()
	t.Cleanup(func() { b.f.Close() })
	return b
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = NewConn(fds[0]); err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fds[1]); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// end returns the error of the back end, which ends.
func (b *bed) end() error {
	b.t.Helper()
	select {
	case err := <-b.done:
		return err
	case <-time.After(waitFor):
		b.t.Fatal("the back end goes on")
		return nil
	}
}

// must fails the test if a request does.
func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.f.Close()
		b.t.Fatalf("%v; the back end: %v", err, b.end())
	}
}

// negotiate accepts all.
func (b *bed) negotiate() {
	b.t.Helper()
	_, _, err := b.f.Negotiate(allFeatures&^featureLogAll&^featureRingPacked, b.cfg.ProtocolFeatures)
	b.must(err)
	b.rec.took()
}

// memfd makes a file of n bytes.
func memfd(t testing.TB, n int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// guest is one region of 64 KiB with a ring of 8 at its start.
const (
	guestAddr = 0x100000
	guestUser = 0x7f0000000000
	guestSize = 0x10000
)

var guestRegion = Region{Guest: guestAddr, Size: guestSize, User: guestUser}

func ringAddr(index uint32) VringAddr {
	avail, used, _ := virtqueue.SplitOffsets(8)
	at := uint64(guestUser) + uint64(index)*0x1000
	return VringAddr{Index: index, Descriptor: at, Available: at + uint64(avail), Used: at + uint64(used)}
}

// openFiles counts the descriptors of the process.
func openFiles(t testing.TB) int {
	t.Helper()
	var n int
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

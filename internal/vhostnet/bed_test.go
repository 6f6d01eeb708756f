// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	if err := netns.NoIPv6(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	goleak.VerifyTestMain(m)
}

// waitFor bounds what a test waits for. It is generous: machines are busy.
const waitFor = 60 * time.Second

// tapName is the name of the TAP in tests.
const tapName = "tap7"

// bed is a device on a real TAP and the real data path, and the program that plays its
// front ends.
type bed struct {
	t     *testing.T
	d     *Device
	rings *spy
	logs  *observer.ObservedLogs
	conns chan *net.UnixConn
	ended chan error // of Run
	stop  context.CancelFunc
}

// spy is the data path of a device. It writes down what it is asked for.
type spy struct {
	Rings
	notice func(dataplane.Notice)

	mu     sync.Mutex
	calls  []string
	panics bool // SetFeatures does
}

func (s *spy) set(f func(*spy)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *spy) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

// took returns the calls since the last time.
func (s *spy) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls
	s.calls = nil
	return c
}

func (s *spy) SetFeatures(v uint64) error {
	s.say("features %#x", v)
	var panics bool
	s.set(func(s *spy) { panics = s.panics })
	if panics {
		panic("as a test wants")
	}
	return s.Rings.SetFeatures(v)
}

func (s *spy) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	n := 0
	if t != nil {
		n = t.Len()
	}
	s.say("memory of %d regions for %d rings", n, len(rings))
	return s.Rings.SetMemory(t, rings)
}

func (s *spy) StartRing(r vhostuser.Ring, t *vhostuser.Table, l *virtqueue.Log) error {
	s.say("start %d: %d at %d, enabled %t", r.Index, r.Size, r.Base, r.Enabled)
	return s.Rings.StartRing(r, t, l)
}

func (s *spy) UpdateRing(r vhostuser.Ring) error {
	s.say("update %d: enabled %t, log %t", r.Index, r.Enabled, r.LogRing)
	return s.Rings.UpdateRing(r)
}

func (s *spy) StopRing(i int) (uint32, error) {
	s.say("stop %d", i)
	return s.Rings.StopRing(i)
}

func (s *spy) SetLog(l *virtqueue.Log) error {
	s.say("log %t", l != nil)
	return s.Rings.SetLog(l)
}

// openDevice opens a device on a pool of one worker.
func openDevice(t *testing.T, cfg Config) (*Device, *spy, *observer.ObservedLogs, error) {
	t.Helper()
	netns.NeedTUN(t)
	pool, err := dataplane.NewPool(dataplane.Options{Workers: 1, NoUring: true, Warn: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	core, logs := observer.New(zap.DebugLevel)
	cfg.Log = zap.New(core)
	s := &spy{}
	cfg.Open = func(vc dataplane.VirtConfig) (Rings, error) {
		c, err := pool.OpenVirt(vc)
		if err != nil {
			return nil, err
		}
		s.Rings, s.notice = c, vc.Notice
		return s, nil
	}
	if cfg.Tap.Name == "" {
		cfg.Tap.Name = tapName
	}
	d, err := Open(cfg)
	return d, s, logs, err
}

// newBed starts a device, which ends with the test.
func newBed(t *testing.T, cfg Config) *bed {
	t.Helper()
	if cfg.Tap.Queues == 0 {
		cfg.Tap.Queues = 2
	}
	d, s, logs, err := openDevice(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	b := &bed{t: t, d: d, rings: s, logs: logs, conns: make(chan *net.UnixConn), ended: make(chan error, 1), stop: stop}
	go func() { b.ended <- d.Run(ctx, &channel{b.conns}) }()
	t.Cleanup(func() {
		stop()
		<-b.ended
		b.must(d.Close())
	})
	return b
}

// channel is an endpoint whose connections come from a test. It fails where there is none.
type channel struct{ conns chan *net.UnixConn }

func (e *channel) Next(ctx context.Context) (*net.UnixConn, error) {
	select {
	case c := <-e.conns:
		if c == nil {
			return nil, &net.OpError{Op: "accept", Err: unix.ENOMEM}
		}
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (e *channel) Mode() string { return "fd" }
func (e *channel) Path() string { return "" }
func (e *channel) Close() error { return nil }

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// front connects a front end, which ends with the test.
func (b *bed) front() *vhostuser.Frontend {
	b.t.Helper()
	f := vhostuser.NewFrontend(b.conn())
	b.t.Cleanup(func() { _ = f.Close() })
	return f
}

// conn connects to the device.
func (b *bed) conn() *net.UnixConn {
	b.t.Helper()
	front, back := socketPair(b.t)
	select {
	case b.conns <- back:
	case <-time.After(waitFor):
		b.t.Fatal("the device takes no connection")
	}
	return front
}

// idle waits until no session is served.
func (b *bed) idle() {
	b.t.Helper()
	await(b.t, "the session ends", func() bool { return b.d.view.get().since.IsZero() })
}

// await waits until ok returns true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(waitFor); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := vhostuser.NewConn(fds[0])
	b, errB := vhostuser.NewConn(fds[1])
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func memfd(t *testing.T, n int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, n)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func eventfd(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// The guest has one region. Its addresses and the front end's differ.
const (
	guestAddr = 0x100000
	guestUser = 0x7f0000100000
	guestSize = 1 << 20
	ringSize  = 256
)

var guestRegion = vhostuser.Region{Guest: guestAddr, Size: guestSize, User: guestUser}

// ringAddr returns the addresses of a ring in the guest's region.
func ringAddr(index uint32) vhostuser.VringAddr {
	avail, used, _ := virtqueue.SplitOffsets(ringSize)
	at := uint64(guestUser) + uint64(index)*0x4000
	return vhostuser.VringAddr{Index: index, Descriptor: at, Available: at + uint64(avail), Used: at + uint64(used)}
}

// start negotiates all that is offered, and starts the rings of n pairs.
func (b *bed) start(f *vhostuser.Frontend, n int) {
	b.t.Helper()
	_, _, err := f.Negotiate(^uint64(0)&^(1<<34), ^uint64(0))
	b.must(err)
	b.must(f.SetMemory([]vhostuser.Region{guestRegion}, []int{memfd(b.t, guestSize)}))
	for i := range uint32(2 * n) {
		b.must(f.StartRing(ringAddr(i), ringSize, 0, eventfd(b.t), eventfd(b.t)))
	}
}

// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Messages of the tests.
const (
	kindSetup procwire.Kind = 1 + iota // -> error
	kindPing                           // -> error
	kindTell                           // two bytes
)

var errDied = errors.New("the process does not run")

// rules are those of the messages to a process.
func rules() procwire.Rules {
	small := procwire.Size{Body: 64, MaxFiles: 1}
	return procwire.Rules{
		kindSetup: {Ask: small, Answer: small}, kindPing: {Ask: small, Answer: small}, kindTell: {Notice: true, Ask: small},
	}
}

// testConfig describes a set whose processes send nothing.
func testConfig() Config {
	return Config{
		Log: zap.NewNop(), Words: Words{Process: "process", Devices: "devices"},
		Wire: Wire{
			Out: rules(), Setup: kindSetup, Ping: kindPing, Died: errDied,
			Ready:  func(*procwire.Reader) any { return nil },
			Health: func(*procwire.Reader) (any, string) { return nil, "" },
		},
	}
}

// device is the only one of its domain.
type device xen.Domid

func (d device) Domid() xen.Domid                                 { return xen.Domid(d) }
func (d device) Died(*Process, error)                             {}
func (d device) Handle(*procwire.Message, *procwire.Reader) error { return nil }

// double stands for a process: it answers the broker's setup, and hands other messages to
// the test.
type double struct {
	socket int // of the broker
	conn   *procwire.Conn
	done   chan struct{}
	once   sync.Once
}

func (d *double) Socket() int           { return d.socket }
func (d *double) PID() int              { return 1 }
func (d *double) Done() <-chan struct{} { return d.done }
func (d *double) Err() error            { return errors.New("the double has ended") }

func (d *double) Kill() {
	d.once.Do(func() {
		d.conn.Close()
		close(d.done)
	})
}

// startDouble starts a double whose messages but the setup are handled by handle, queue of them
// at most in its memory.
func startDouble(t *testing.T, queue int, handle func(*double, *procwire.Message)) *double {
	t.Helper()
	ours, theirs, err := procwire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	d := &double{socket: ours, done: make(chan struct{})}
	d.conn, err = procwire.New(theirs, procwire.Config{
		In: rules(), Queue: queue,
		Handle: func(m *procwire.Message) {
			if m.Kind != kindSetup {
				handle(d, m)
				return
			}
			var w procwire.Writer
			Causes(nil).Put(&w, nil)
			_ = m.Answer(w.Bytes())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.conn.Serve()
	t.Cleanup(d.Kill)
	return d
}

// TestFullSocket: a process that takes no message is killed when a request has no answer within
// its time, although the request itself cannot be sent, and all who write to it go on.
func TestFullSocket(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	died := make(chan struct{})
	d := startDouble(t, 1, func(*double, *procwire.Message) { <-stop })
	raw, err := unix.FcntlInt(uintptr(d.socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	p, err := newProcess(zap.NewNop(), d, &cfg, new(procwire.Writer), []int{null}, func(*Process) { close(died) })
	if err != nil {
		t.Fatal(err)
	}
	// A notice of two bytes, until no more fit. The double takes three at most.
	frame := []byte{byte(kindTell), 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0}
	for full := 0; full < 100; {
		switch err := unix.Sendto(raw, frame, unix.MSG_DONTWAIT, nil); err {
		case nil:
		case unix.EAGAIN:
			full++
		default:
			t.Fatal(err)
		}
	}
	posted := make(chan error, 1)
	go func() {
		var w procwire.Writer
		w.U16(1)
		for {
			if err := p.Post(kindTell, &w); err != nil {
				posted <- err
				return
			}
		}
	}()
	if err := p.askWithin(10*time.Millisecond, new(procwire.Writer), nil); !errors.Is(err, errDied) {
		t.Errorf("got %v, want %v", err, errDied)
	}
	if err := <-posted; !errors.Is(err, errDied) {
		t.Errorf("notice: got %v, want %v", err, errDied)
	}
	<-died
}

// TestRequestNotSent: a request that this side cannot send costs the process nothing.
func TestRequestNotSent(t *testing.T) {
	died := make(chan struct{})
	d := startDouble(t, 0, func(_ *double, m *procwire.Message) {
		var w procwire.Writer
		Causes(nil).Put(&w, nil)
		_ = m.Answer(w.Bytes())
	})
	cfg := testConfig()
	p, err := newProcess(zap.NewNop(), d, &cfg, new(procwire.Writer), nil, func(*Process) { close(died) })
	if err != nil {
		t.Fatal(err)
	}
	var long procwire.Writer
	long.Blob(make([]byte, procwire.MaxBody/2))
	if err := p.Ask(t.Context(), kindPing, &long, nil); err == nil || errors.Is(err, errDied) {
		t.Errorf("a body that is too long: %v", err)
	}
	if err := p.Ask(t.Context(), kindPing, new(procwire.Writer), nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	d.Kill()
	<-died
}

// TestSeparateMany: the guests of a process that dies again and again get few processes, and in
// the end each its own.
func TestSeparateMany(t *testing.T) {
	const guests = 1000
	cfg := testConfig()
	cfg.Isolation = IsolateGroup
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	var links []*Seat
	for i := range guests {
		links = append(links, e.Open(device(i+1)))
	}
	name := "group all"
	for step, want := range []int{maxParts, maxParts, 4} {
		g := &group{name: name, deaths: make([]time.Time, maxDeaths)}
		e.mu.Lock()
		e.separate(g, links)
		parts := map[string][]*Seat{}
		for _, l := range links {
			n := e.nameFor(l, "all")
			parts[n] = append(parts[n], l)
		}
		name = e.nameFor(links[0], "all") // of the guest that does it
		e.mu.Unlock()
		if links = parts[name]; len(parts) != want {
			t.Errorf("step %d: %d groups, want %d", step+1, len(parts), want)
		}
	}
	if len(links) != 1 || name != apartName(1) {
		t.Errorf("%d guests are left in %q", len(links), name)
	}
}

// TestStartsOfAllGroups: the processes of a thousand groups that die soon after their start, again
// and again, are started at a bounded rate, in turns. One that had lived long is replaced at once.
func TestStartsOfAllGroups(t *testing.T) {
	const groups, rounds = 1000, 3
	e, err := New(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	begin := time.Now()
	var last time.Time
	atOnce := 0
	for range rounds {
		for i := range groups {
			g := e.group(fmt.Sprintf("domain %d", i))
			g.born = time.Now().Add(-2 * shortLife)
			e.died(g, e.cfg.Wire.Died)
			if !g.after.After(time.Now()) {
				atOnce++
			}
			last = g.after
		}
	}
	took := time.Since(begin)
	if most := hostBurst + int(hostRate*took.Seconds()) + 1; atOnce > most || atOnce < hostBurst {
		t.Errorf("%d processes are started at once, want %d to %d", atOnce, hostBurst, most)
	}
	want := time.Duration(groups*rounds-hostBurst) * time.Second / hostRate
	if got := last.Sub(begin); got < want-time.Second || got > want+took+time.Second {
		t.Errorf("the last one is started after %v, want %v", got, want)
	}
	g := e.group("another")
	g.born = time.Now().Add(-deathWindow)
	if e.died(g, e.cfg.Wire.Died); g.after.After(time.Now()) {
		t.Errorf("a process that had lived for %v is replaced after %v", deathWindow, time.Until(g.after))
	}
}

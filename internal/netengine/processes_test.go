// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// double stands for a packet process: it answers the broker's setup, and hands other messages to
// the test.
type double struct {
	socket int // of the broker
	conn   *procwire.Conn
	done   chan struct{}
	hold   <-chan struct{} // the end of the process waits for it; nil: for nothing
	once   sync.Once
}

func (d *double) Socket() int           { return d.socket }
func (d *double) PID() int              { return 1 }
func (d *double) Done() <-chan struct{} { return d.done }
func (d *double) Err() error            { return errors.New("the double has ended") }

func (d *double) Kill() {
	d.once.Do(func() {
		d.conn.Close()
		go func() {
			if d.hold != nil {
				<-d.hold
			}
			close(d.done)
		}()
	})
}

// startDouble starts a double whose messages but the setup are handled by handle, queue of them
// at most in its memory.
func startDouble(t *testing.T, queue int, hold <-chan struct{}, handle func(*double, *procwire.Message)) *double {
	t.Helper()
	ours, theirs, err := procwire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	d := &double{socket: ours, done: make(chan struct{}), hold: hold}
	d.conn, err = procwire.New(theirs, procwire.Config{
		In: toProcess(), Out: toBroker(), Queue: queue,
		Handle: func(m *procwire.Message) {
			if m.Kind != kindSetup {
				handle(d, m)
				return
			}
			var w procwire.Writer
			putError(&w, nil)
			putJSON(&w, &Ready{Workers: 1})
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

// nullOpener opens the null device for each.
type nullOpener struct{}

func openNull() (int, error) { return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0) }

func (nullOpener) OpenGrantFile() (int, error) { return openNull() }
func (nullOpener) OpenPageFile() (int, error)  { return openNull() }
func (nullOpener) EventFiles() int             { return 1 }
func (nullOpener) OpenEventFiles(xen.Domid) ([]int, error) {
	fd, err := openNull()
	return []int{fd}, err
}

// TestFullSocket: a process that takes no message is killed when a request has no answer within
// its time, although the request itself cannot be sent, and all who write to it go on.
func TestFullSocket(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	died := make(chan struct{})
	d := startDouble(t, 1, nil, func(*double, *procwire.Message) { <-stop })
	raw, err := unix.FcntlInt(uintptr(d.socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	null, err := openNull()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(zap.NewNop(), d, &setup{eventFiles: 1, workers: 1}, []int{null}, func(*process) { close(died) })
	if err != nil {
		t.Fatal(err)
	}
	// A notice of two bytes, until no more fit. The double takes three at most.
	frame := []byte{byte(kindOwnDomid), 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0}
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
			if err := p.post(kindOwnDomid, &w); err != nil {
				posted <- err
				return
			}
		}
	}()
	if err := p.askWithin(10*time.Millisecond, kindPing, new(procwire.Writer), nil); !errors.Is(err, ErrDied) {
		t.Errorf("got %v, want %v", err, ErrDied)
	}
	if err := <-posted; !errors.Is(err, ErrDied) {
		t.Errorf("notice: got %v, want %v", err, ErrDied)
	}
	<-died
}

// TestRequestNotSent: a request that this side cannot send costs the process nothing.
func TestRequestNotSent(t *testing.T) {
	died := make(chan struct{})
	d := startDouble(t, 0, nil, func(_ *double, m *procwire.Message) {
		var w procwire.Writer
		putError(&w, nil)
		putJSON(&w, &Health{})
		_ = m.Answer(w.Bytes())
	})
	null, err := openNull()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(zap.NewNop(), d, &setup{eventFiles: 1, workers: 1}, []int{null}, func(*process) { close(died) })
	if err != nil {
		t.Fatal(err)
	}
	var long procwire.Writer
	long.Blob(make([]byte, procwire.MaxBody/2))
	if err := p.ask(t.Context(), kindPing, &long, nil); err == nil || errors.Is(err, ErrDied) {
		t.Errorf("a body that is too long: %v", err)
	}
	if err := p.ask(t.Context(), kindPing, new(procwire.Writer), func(r *procwire.Reader) { takeHealth(r, new(Health)) }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	d.Kill()
	<-died
}

// engineOf makes an engine whose processes die when a link of domain 1 is prepared. The kernel
// takes until hold to end them.
func engineOf(t *testing.T, isolation Isolation, hold <-chan struct{}) *Processes {
	t.Helper()
	domids := func() func(*double, *procwire.Message) {
		first := map[uint32]bool{} // links of domain 1
		return func(d *double, m *procwire.Message) {
			r := m.Reader()
			id := r.U32()
			var w procwire.Writer
			putError(&w, nil)
			switch m.Kind {
			case kindOpen:
				first[id] = r.U16() == 1
			case kindPrepare:
				if first[id] {
					go d.Kill()
					return
				}
				putFound(&w, &Found{Stamp: netif.Stamp{1}})
				_ = m.Answer(w.Bytes())
			case kindClose:
				_ = m.Answer(w.Bytes())
			}
		}
	}
	e, err := NewProcesses(ProcessesConfig{
		Isolation: isolation, Opener: nullOpener{}, Log: zap.NewNop(),
		Start: func() (Child, error) { return startDouble(t, 0, hold, domids()), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// openLink opens a link of a domain.
func openLink(e *Processes, host *budget.Host, domid xen.Domid) *remoteLink {
	g := host.Guest()
	return e.Open(LinkConfig{Domid: domid, Name: fmt.Sprintf("vif%d.0", domid), Log: zap.NewNop(), Guest: g, Turn: g.Turn()}).(*remoteLink)
}

// testRings has the rings of one queue.
func testRings(died func(error)) *Rings {
	return &Rings{Queues: []ctrlserver.Rings{{TxGref: 1, RxGref: 2, TxPort: 3, RxPort: 4}}, Died: died}
}

// TestDeathWithinACall: a guest whose process dies within a call for it, so that its vif is the
// first to know, is among those that are separated.
func TestDeathWithinACall(t *testing.T) {
	hold := make(chan struct{})
	e := engineOf(t, IsolateShared, hold)
	t.Cleanup(func() { close(hold) })
	host := budget.NewHost(2)
	bad, good := openLink(e, host, 1), openLink(e, host, 2)
	for range maxDeaths {
		died := make(chan struct{})
		if _, err := good.Prepare(testRings(func(error) { close(died) })); err != nil {
			t.Fatal(err)
		}
		if _, err := bad.Prepare(testRings(nil)); !errors.Is(err, ErrDied) {
			t.Fatalf("got %v, want %v", err, ErrDied)
		}
		bad.Close(Drop)
		hold <- struct{}{}
		<-died
		good.Close(Drop)
	}
	e.mu.Lock()
	of, other := e.nameFor(bad, ""), e.nameFor(good, "")
	e.mu.Unlock()
	if of != apartName(1) || other != apartName(2) {
		t.Errorf("the guest is in %q and the other in %q, want them apart", of, other)
	}
	bad.End()
	good.End()
	if s := e.Status(); len(s) != 1 || s[0].For != sharedGroup || s[0].Restarts != maxDeaths {
		t.Errorf("without links there are the processes %+v", s)
	}
}

// TestGroupsEnd: nothing is left of guests whose processes died, once their vifs are gone.
func TestGroupsEnd(t *testing.T) {
	e := engineOf(t, IsolateGuest, nil)
	host := budget.NewHost(2)
	bad, good := openLink(e, host, 1), openLink(e, host, 2)
	if _, err := bad.Prepare(testRings(nil)); !errors.Is(err, ErrDied) {
		t.Errorf("got %v, want %v", err, ErrDied)
	}
	if _, err := good.Prepare(testRings(nil)); err != nil {
		t.Error(err)
	}
	bad.End()
	good.End()
	if s := e.Status(); len(s) != 0 {
		t.Errorf("without links there are the processes %+v", s)
	}
}

// TestSeparateMany: the guests of a process that dies again and again get few processes, and in
// the end each its own.
func TestSeparateMany(t *testing.T) {
	const guests = 1000
	e := engineOf(t, IsolateGroup, nil)
	host := budget.NewHost(2)
	var links []*remoteLink
	for i := range guests {
		links = append(links, openLink(e, host, xen.Domid(i+1)))
	}
	name := "group all"
	for step, want := range []int{maxParts, maxParts, 4} {
		g := &group{name: name, deaths: make([]time.Time, maxDeaths)}
		e.mu.Lock()
		e.separate(g, links)
		parts := map[string][]*remoteLink{}
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
	e := engineOf(t, IsolateGuest, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	begin := time.Now()
	var last time.Time
	atOnce := 0
	for range rounds {
		for i := range groups {
			g := e.group(fmt.Sprintf("domain %d", i))
			g.born = time.Now().Add(-2 * shortLife)
			e.died(g, ErrDied)
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
	if e.died(g, ErrDied); g.after.After(time.Now()) {
		t.Errorf("a process that had lived for %v is replaced after %v", deathWindow, time.Until(g.after))
	}
}

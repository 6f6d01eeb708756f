// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/procs"
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

// startDouble starts a double whose messages but the setup are handled by handle.
func startDouble(t *testing.T, hold <-chan struct{}, handle func(*double, *procwire.Message)) *double {
	t.Helper()
	ours, theirs, err := procwire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	d := &double{socket: ours, done: make(chan struct{}), hold: hold}
	d.conn, err = procwire.New(theirs, procwire.Config{
		In: toProcess(), Out: toBroker(),
		Handle: func(m *procwire.Message) {
			if m.Kind != kindSetup {
				handle(d, m)
				return
			}
			var w procwire.Writer
			putError(&w, nil)
			procs.PutJSON(&w, &Ready{Workers: 1})
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

// engineOf makes an engine whose processes die when a link of domain 1 is prepared. The kernel
// takes until hold to end them.
func engineOf(t *testing.T, isolation procs.Isolation, hold <-chan struct{}) *Processes {
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
		Start: func() (procs.Child, error) { return startDouble(t, hold, domids()), nil },
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
	e := engineOf(t, procs.IsolateShared, hold)
	t.Cleanup(func() { close(hold) })
	host := budget.NewHost(2)
	bad, good := openLink(e, host, 1), openLink(e, host, 2)
	const deaths = 3 // after which guests are separated
	for range deaths {
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
	if _, err := good.Prepare(testRings(nil)); err != nil {
		t.Error(err)
	}
	if _, err := bad.Prepare(testRings(nil)); !errors.Is(err, ErrDied) {
		t.Errorf("got %v, want %v", err, ErrDied)
	}
	names := []string{}
	for _, p := range e.Status() {
		names = append(names, p.For)
	}
	if want := []string{"all vifs", "domain 1, apart", "domain 2, apart"}; !slices.Equal(names, want) {
		t.Errorf("there are processes for %q, want %q", names, want)
	}
	bad.Close(Drop)
	hold <- struct{}{}
	bad.End()
	good.End()
	if s := e.Status(); len(s) != 1 || s[0].For != "all vifs" || s[0].Restarts != deaths {
		t.Errorf("without links there are the processes %+v", s)
	}
}

// TestGroupsEnd: nothing is left of guests whose processes died, once their vifs are gone.
func TestGroupsEnd(t *testing.T) {
	e := engineOf(t, procs.IsolateGuest, nil)
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

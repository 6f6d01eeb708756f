// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// portPipe is a handle for event channels whose file takes reads and writes of ports. The
// test moves them between the file and the guest, see pump.
type portPipe struct {
	*events
	ours, theirs int
}

func newPortPipe(tb testing.TB, e *events) *portPipe {
	tb.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	tb.Cleanup(func() { _ = unix.Close(p[0]); _ = unix.Close(p[1]) })
	return &portPipe{events: e, ours: p[0], theirs: p[1]}
}

func (p *portPipe) PortFile() bool { return true }
func (p *portPipe) FD() int        { return p.ours }

func (p *portPipe) Pending(buf []evtchn.Port) (int, error) {
	b := make([]byte, 4*len(buf))
	n, err := unix.Read(p.ours, b)
	if errors.Is(err, unix.EAGAIN) {
		return 0, nil
	}
	for i := range max(n, 0) / 4 {
		buf[i] = evtchn.Port(binary.NativeEndian.Uint32(b[4*i:]))
	}
	return max(n, 0) / 4, err
}

func (p *portPipe) Unmask(ports []evtchn.Port) error {
	var b []byte
	for _, port := range ports {
		b = binary.NativeEndian.AppendUint32(b, uint32(port))
	}
	_, err := unix.Write(p.ours, b)
	return err
}

// pump does the kernel's part, and reports whether there was any: it unmasks the ports that
// were written, and makes those readable that fired.
func (p *portPipe) pump() (some bool) {
	p.tb.Helper()
	b := make([]byte, 4096)
	n, _ := unix.Read(p.theirs, b)
	for i := 0; i < n; i += 4 {
		if port := evtchn.Port(binary.NativeEndian.Uint32(b[i:])); port != 0 {
			must(p.tb, p.Evtchn.Unmask([]evtchn.Port{port}))
			some = true
		}
	}
	var fired [8]evtchn.Port
	n, err := p.Evtchn.Pending(fired[:])
	must(p.tb, err)
	for _, port := range fired[:n] {
		_, err := unix.Write(p.theirs, binary.NativeEndian.AppendUint32(nil, uint32(port)))
		must(p.tb, err)
		some = true
	}
	return some
}

// settlePumped runs the worker and the kernel's part until both rest.
func (b *bed) settlePumped() {
	b.tb.Helper()
	for {
		b.settle()
		if !b.front().file.pump() {
			return
		}
	}
}

// newPumpedBed makes a bed whose first queue has a portPipe, and serves the events that its
// ports have from the start.
func newPumpedBed(t *testing.T, m mode, s setup) *bed {
	t.Helper()
	s.cfg, s.portFile = full, true
	b := newBed(t, m, s)
	b.settlePumped()
	return b
}

// TestExchange: with io_uring an event takes no system call of its own, if few packets are
// written for it, and one otherwise. Each event wakes the worker once, and its port is
// unmasked.
func TestExchange(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			onePort        bool
			packets        int
			uring, without uint64 // system calls
		}{
			{true, 1, 3, 5},   // grant copy, write with exchange, notify; read, unmask
			{true, 2, 3, 6},   // without: a write more
			{true, 3, 6, 7},   // grant copy, 3 writes, notify; exchange
			{true, 60, 4, 64}, // grant copy, writes, notify; exchange
			{false, 1, 3, 5},
			{false, 60, 4, 64},
		} {
			t.Run(fmt.Sprintf("%d packets, one port %t", tt.packets, tt.onePort), func(t *testing.T) {
				b := newPumpedBed(t, m, setup{onePort: tt.onePort})
				f := b.front()
				for range 3 {
					calls, wakes := b.stat(Syscalls), b.stat(Wakes)
					var want []answer
					for range tt.packets {
						want = append(want, f.put(packet{frame: udp(60, uint16(len(want)))})...)
					}
					f.push()
					b.settlePumped()
					if diff := cmp.Diff(want, f.answers()); diff != "" {
						t.Errorf("answers (-want +got):\n%s", diff)
					}
					most := tt.without
					if m.uring {
						most = tt.uring
					}
					if n := b.stat(Syscalls) - calls; n > most {
						t.Errorf("%d system calls, want %d at most", n, most)
					}
					if n := b.stat(Wakes) - wakes; n != 1 {
						t.Errorf("%d wakes for one event", n)
					}
					q := b.queue()
					if q.ev.nMasked != 0 || q.ev.deferred || b.w.exchange.queued {
						t.Errorf("the events are not settled: %+v", q.ev)
					}
				}
				if n := b.stat(SpuriousWakes); n > 1 { // the one from the start
					t.Errorf("%d spurious wakes", n)
				}
			})
		}
	})
}

// TestExchangeFails: events are taken in the usual way, and no port stays masked, if an
// exchange fails.
func TestExchangeFails(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		for _, packets := range []int{1, 60} {
			b := newPumpedBed(t, m, setup{})
			f := b.front()
			file := b.queue().ev.file
			files := []int{1 << 20, file, newPortPipe(t, f.events).ours, file} // not open; with nothing to read
			for i, file := range files {
				b.queue().ev.file = file
				var want []answer
				for range packets {
					want = append(want, f.put(packet{frame: udp(60, 1)})...)
				}
				f.push()
				b.settlePumped()
				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("%d packets, round %d: answers (-want +got):\n%s", packets, i, diff)
				}
				if q := b.queue(); q.ev.nMasked != 0 || q.ev.deferred {
					t.Errorf("%d packets, round %d: the events are not settled: %+v", packets, i, q.ev)
				}
			}
			if len(b.warned) > 0 {
				t.Errorf("warned: %v", b.warned)
			}
		}
	})
}

// TestEarlyArm: a packet that is published while another one is served is served as well,
// with and without an event for it.
func TestEarlyArm(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, late := range []int{1, 3, 100} {
			b := newPumpedBed(t, m, setup{onePort: true})
			f := b.front()
			want := f.put(packet{frame: udp(60, 1)})
			f.push()
			f.grants.during = func() { // before the ring is armed
				f.grants.during = nil
				for range late {
					want = append(want, f.put(packet{frame: udp(60, 2)})...)
				}
				f.push()
			}
			b.settlePumped()
			if diff := cmp.Diff(want, f.answers()); diff != "" {
				t.Errorf("%d late packets: answers (-want +got):\n%s", late, diff)
			}
			if q := b.queue(); q.ev.nMasked != 0 || q.ev.deferred {
				t.Errorf("the events are not settled: %+v", q.ev)
			}
		}
	})
}

// lateEvents is a handle with which the guest does something when it is notified.
type lateEvents struct {
	*portPipe
	then func()
}

func (e *lateEvents) Notify(p evtchn.Port) error {
	err := e.portPipe.Notify(p)
	if then := e.then; then != nil {
		e.then = nil
		then()
	}
	return err
}

// TestExchangeOfTwoPorts: of a port that fires after its ring was looked at, the event is not
// lost, although it is taken together with that of the other port.
func TestExchangeOfTwoPorts(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, fails := range []bool{false, true} {
			b := newPumpedBed(t, m, setup{})
			f := b.front()
			f.post(1)
			b.settlePumped()
			var want []answer
			if fails {
				b.queue().ev.file = 1 << 20 // not open
			}
			b.queue().events = &lateEvents{portPipe: f.file, then: func() {
				want = f.put(packet{frame: udp(60, 1)})
				f.push()
				f.file.pump()
			}}
			b.host.sendPlain(udp(100, 1))
			f.events.send(rxPort)
			f.file.pump()
			b.settlePumped()
			if want == nil || len(f.received()) != 1 {
				t.Fatal("the packet to the guest did not arrive")
			}
			if diff := cmp.Diff(want, f.answers()); diff != "" {
				t.Errorf("exchange fails %t: answers (-want +got):\n%s", fails, diff)
			}
			if q := b.queue(); q.ev.nMasked != 0 || q.ev.deferred {
				t.Errorf("the events are not settled: %+v", q.ev)
			}
		}
	})
}

// TestExchangeOfStorm: the events of a guest that sends them without work are left to the
// slow way in the end, and one with work is settled after it.
func TestExchangeOfStorm(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newPumpedBed(t, m, setup{})
		f := b.front()
		before := b.stat(Wakes)
		for range 1000 { // a second
			for range 10 {
				f.events.send(txPort)
				f.events.send(rxPort)
				b.settlePumped()
			}
			b.pass(time.Millisecond)
			b.settlePumped()
		}
		if n := b.stat(Wakes) - before; n < 100 || n > 100+spuriousLimit+10 {
			t.Errorf("%d wakes in a second of a storm", n)
		}
		want := f.put(packet{frame: udp(1, 1)})
		f.push()
		b.pass(maxUnmaskDelay)
		b.settlePumped()
		b.pass(maxUnmaskDelay)
		b.settlePumped()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
}

// TestEventsOfRestingVif: a vif whose turn is over but whose work is not has its events read,
// if others share the worker: while it rests epoll would report them all the time.
func TestEventsOfRestingVif(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newPumpedBed(t, m, setup{})
		f, q, w := b.front(), b.queue(), b.w
		other := &account{}
		for _, shared := range []bool{false, true} {
			if shared {
				w.sched.accounts = append(w.sched.accounts, other)
			}
			f.fill()
			f.push()
			f.file.pump()
			must(t, w.poll(0))
			again, err := w.serve(q)
			if !again || err != nil || q.ev.deferred == shared {
				t.Errorf("shared %t: again %t, %v, events %+v", shared, again, err, q.ev)
			}
			w.sched.accounts = without(w.sched.accounts, other)
			b.settlePumped()
			f.answers()
		}
	})
}

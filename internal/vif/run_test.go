// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// run runs the vif as a backend does, and tells it every change in its directory. stop
// stops the vif and waits.
func (w *world) run() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	dir, err := w.tool.Watch(ctx, backDir)
	w.must(err)
	var wg sync.WaitGroup
	v := w.v
	wg.Go(func() { v.Run(ctx) })
	wg.Go(func() {
		for e := range dir.C() {
			v.Changed(strings.TrimPrefix(strings.TrimPrefix(e.Path, backDir), "/"))
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		<-v.Done()
		dir.Close()
		wg.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

// await waits until a node has a value; "-" is none.
func (w *world) await(path, want string) {
	w.t.Helper()
	watch, err := w.tool.Watch(w.t.Context(), path)
	w.must(err)
	defer watch.Close()
	limit := time.After(10 * time.Second)
	for {
		if w.get(path) == want {
			return
		}
		select {
		case <-watch.C():
		case <-limit:
			w.t.Fatalf("%s is %q, awaited %q; error node: %q", path, w.get(path), want, w.get(errorKey))
		}
	}
}

func (w *world) awaitState(s xenbus.State) {
	w.t.Helper()
	w.await(backDir+"/state", s.Value())
}

// slack is added to time limits for a machine that is busy.
const slack = 3 * time.Second

// TestRun takes a vif through its whole life by events alone.
func TestRun(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.run()
	w.awaitState(xenbus.InitWait)
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.eventually("rings are mapped", func() bool { return w.host.held() == "4 pages, 2 handles, 2 ports" })
	w.wantState("2")
	w.plugIn()
	w.awaitState(xenbus.Connected)
	w.breachRunning()
	w.frontState(xenbus.Closing)
	w.awaitState(xenbus.Closing)
	w.frontState(xenbus.Closed)
	w.awaitState(xenbus.Closed)
	w.frontState(xenbus.Initialising)
	w.awaitState(xenbus.InitWait)
	w.rings(1, true)
	w.frontState(xenbus.Connected)
	w.awaitState(xenbus.Connected)
	s, ok := w.v.Status(context.Background())
	if !ok || s.State != xenbus.Connected || s.Quarantine != "" || len(s.Queues) != 1 {
		t.Errorf("ok %t, status %+v", ok, s)
	}
	w.detach()
	began := time.Now()
	w.awaitState(xenbus.Closed) // the guest does not react
	if took := time.Since(began); took < DefaultGrace || took > DefaultGrace+slack {
		t.Errorf("closed after %v, want %v", took, DefaultGrace)
	}
	w.eventually("the interface is gone", func() bool { return w.iface(ifname) == nil })
	w.must(w.tool.Remove(t.Context(), backDir))
	<-w.v.Done()
	if _, ok := w.v.Status(context.Background()); ok {
		t.Error("status of a vif that has ended")
	}
	if w.v.Reset(context.Background()) {
		t.Error("reset of a vif that has ended")
	}
	w.v.Poke()
	w.v.SetStore(w.t.Context(), w.xs)
}

// breachRunning is breach for a running vif.
func (w *world) breachRunning() {
	w.t.Helper()
	w.tx[0].SetReqProd(4711)
	w.host.kick(w.conns[0].txPort)
	w.eventually("quarantine", func() bool {
		s, _ := w.v.Status(context.Background())
		return s.Quarantine != ""
	})
	w.wantHeld(nothing)
	w.wantState("4")
}

// TestStateStorm: a guest that writes its state all the time (XSA-349) costs a bounded
// number of requests to xenstored per second and no memory, and the toolstack is served
// meanwhile.
func TestStateStorm(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.run()
	w.awaitState(xenbus.InitWait)
	w.rings(1, false)

	const writers, writes = 8, 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	requests := w.v.cfg.Guest.Used().Requests
	began := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		c := w.connect(0)
		wg.Go(func() {
			for n := range writes / writers {
				s := []string{"1", "4", "5", "6", "3", "4", "7", "banana"}[(n+i)%8]
				if err := c.Write(t.Context(), frontDir+"/state", s); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	requests = w.v.cfg.Guest.Used().Requests - requests
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d writes in %v: %d requests, heap grew by %d KiB", writes, took, requests, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10)
	// A look also sees the writes of the look before it.
	if most := 1.2 * budget.WorkBurst * (1 + took.Seconds()*budget.WorkRate/budget.WorkBurst); float64(requests) > most {
		t.Errorf("%d requests in %v, want at most %.0f", requests, took, most)
	}
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 2<<20 {
		t.Errorf("heap grew by %d bytes", grew)
	}
	w.detach()
	detached := time.Now()
	w.awaitState(xenbus.Closed)
	if took := time.Since(detached); took > DefaultGrace+slack {
		t.Errorf("closed after %v, want %v", took, DefaultGrace)
	}
	w.wantHeld(nothing)
}

// runConnected runs a vif and connects its guest.
func (w *world) runConnected() {
	w.t.Helper()
	w.attach("hotplug-status", "connected")
	w.run()
	w.awaitState(xenbus.InitWait)
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.awaitState(xenbus.Connected)
}

// TestStoreLost: packets keep moving while the connection to xenstore is lost, and the
// vif handles the changes that it missed.
func TestStoreLost(t *testing.T) {
	w := newWorld(t)
	w.runConnected()
	// Otherwise the vif may not know its last write when the connection is lost.
	for s, _ := w.v.Status(context.Background()); s.State != xenbus.Connected; {
		s, _ = w.v.Status(context.Background())
	}

	lost := w.xs.Client
	w.must(lost.Close())
	w.v.Poke()
	for range 100 { // by everything that wakes a vif
		w.v.Poke()
		if s, ok := w.v.Status(context.Background()); !ok || s.State != xenbus.Connected || len(s.Queues) != 1 {
			t.Fatalf("ok %t, status %+v", ok, s)
		}
	}
	w.wantHeld("2 pages, 1 handles, 1 ports")
	w.must(w.guest.Write(t.Context(), frontDir+"/"+mcastKey, "1"))

	w.v.SetStore(w.t.Context(), &hookedStore{Client: w.connect(0)})
	w.eventually("the filter is on", func() bool {
		s, _ := w.v.Status(context.Background())
		return strings.Contains(strings.Join(s.Features, " "), "multicast-control")
	})
	w.wantHeld("2 pages, 1 handles, 1 ports")
	w.frontState(xenbus.Closing) // an event of the new connection's watch
	w.awaitState(xenbus.Closing)

	// While there was no connection again, the toolstack removed everything.
	again := w.connect(0)
	w.v.SetStore(w.t.Context(), &hookedStore{Client: again})
	w.must(again.Close())
	w.must(w.tool.Remove(t.Context(), backDir))
	w.v.SetStore(w.t.Context(), &hookedStore{Client: w.connect(0)})
	<-w.v.Done()
	w.wantTap(0)
}

// TestStoreLostBeforeTheFirstLook: a vif that does not know yet in which state a predecessor
// left it writes nothing.
func TestStoreLostBeforeTheFirstLook(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.v.suspend()
	w.v = New(w.cfg)
	good := w.xs.Client
	w.xs.Client = w.connect(0)
	w.must(w.xs.Client.Close())
	w.wantSteps("")
	w.xs.Client = good
	w.wantSteps("connect plug")
	w.wantState("4")
}

// TestBusy: a vif that waits for xenstored does not make its callers wait.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	w.attach()
	hung := &hungStore{Store: w.v.cfg.Store, entered: make(chan struct{}, 1), leave: make(chan struct{})}
	w.v.cfg.Store = hung
	w.run()
	<-hung.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s, ok := w.v.Status(ctx)
	if ok || s.Name != ifname || s.Domid != domid || s.Queues == nil {
		t.Errorf("ok %t, status %+v", ok, s)
	}
	if w.v.Reset(ctx) {
		t.Error("was reset")
	}
	close(hung.leave)
	w.awaitState(xenbus.InitWait)
}

// hungStore is a connection to an xenstored that does not answer until leave is closed.
type hungStore struct {
	Store
	entered, leave chan struct{}
}

func (s *hungStore) Read(ctx context.Context, path string) (string, error) {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.leave
	return s.Store.Read(ctx, path)
}

// TestPanicWhileRunning: after a panic the vif is quarantined, and can be detached.
func TestPanicWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.runConnected()
	if !w.v.mail.Call(context.Background(), func() { panic("oops") }) {
		t.Error("the vif has ended")
	}
	s, ok := w.v.Status(context.Background())
	if !ok || s.Quarantine != "internal error: oops" {
		t.Errorf("ok %t, status %+v", ok, s)
	}
	w.wantHeld(nothing)
	w.detach()
	w.awaitState(xenbus.Closed)
}

// TestSuspend: a daemon stops, and a successor serves the vif.
func TestSuspend(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	stop := w.run()
	w.awaitState(xenbus.InitWait)
	w.rings(2, true)
	w.frontState(xenbus.Connected)
	w.awaitState(xenbus.Connected)
	before := w.iface(ifname)
	stop()
	w.wantState("4")
	w.wantHeld(nothing)
	if l := w.iface(ifname); l == nil || l.Index != before.Index || l.Queues != 0 {
		t.Fatalf("interface %+v", l)
	}
	if got, want := w.journals(), "ring-7.0-0 ring-7.0-1"; got != want {
		t.Errorf("journals %q, want %q", got, want)
	}
	if s := w.get(errorKey); s != "-" {
		t.Errorf("error node %q", s)
	}

	w.v = New(w.cfg)
	w.run()
	w.eventually("rings are mapped again", func() bool { return w.host.held() == "4 pages, 2 handles, 4 ports" })
	s, ok := w.v.Status(context.Background())
	if !ok || s.State != xenbus.Connected || len(s.Queues) != 2 {
		t.Errorf("ok %t, status %+v", ok, s)
	}
	if l := w.iface(ifname); l.Index != before.Index || l.Queues != 2 {
		t.Errorf("interface %+v", l)
	}
	w.wantState("4")
	w.frontState(xenbus.Closing)
	w.awaitState(xenbus.Closing)
	if got := w.journals(); got != "" {
		t.Errorf("journals left: %s", got)
	}
}

// TestAdopt adopts a vif from every state in which a predecessor may leave it.
func TestAdopt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		left  func(w *world)
		away  func(w *world) // while no daemon serves
		want  string
		state string
	}{
		{"InitWait", func(w *world) { w.attach(); w.settle() }, nil, "publish", "2"},
		{"InitWait, connected meanwhile", func(w *world) { w.attach(); w.settle() },
			func(w *world) { w.plugIn(); w.rings(1, false); w.frontState(xenbus.Connected) }, "publish connect plug connected", "4"},
		{"waiting for hotplug", func(w *world) { w.attach(); w.settle(); w.rings(1, false); w.frontState(xenbus.Connected); w.settle() },
			nil, "publish connect", "2"},
		{"waiting for hotplug, done meanwhile", func(w *world) { w.attach(); w.settle(); w.rings(1, false); w.frontState(xenbus.Connected); w.settle() },
			func(w *world) { w.plugIn() }, "publish connect plug connected", "4"},
		{"Connected", func(w *world) { w.up(2) }, nil, "connect plug", "4"},
		{"Connected, to other rings meanwhile", func(w *world) { w.up(2) }, func(w *world) { w.rings(1, true) }, "connect plug", "4"},
		{"Connected, kexec meanwhile", func(w *world) { w.up(2) }, func(w *world) { w.frontState(xenbus.Initialising) },
			"closing closed publish init-wait", "2"},
		{"Connected, rings gone meanwhile", func(w *world) { w.up(2) },
			func(w *world) { w.must(w.guest.Remove(t.Context(), frontDir+"/queue-0")) }, "connect closing closed", "6"},
		{"Connected, detached meanwhile", func(w *world) { w.up(2) }, func(w *world) { w.detach(); w.frontState(xenbus.Closed) },
			"closed unregister", "6"},
		{"Connected, frontend removed meanwhile", func(w *world) { w.up(2) }, func(w *world) { w.must(w.tool.Remove(t.Context(), frontDir)) },
			"closing closed unregister", "6"},
		{"Connected, made anew meanwhile", func(w *world) { w.up(2) },
			func(w *world) {
				w.must(w.tool.Remove(t.Context(), backDir))
				w.must(w.tool.Remove(t.Context(), frontDir))
				w.attach()
			}, "publish init-wait", "2"},
		{"Reconfigured", func(w *world) { w.up(1); w.frontState(xenbus.Reconfiguring); w.headroom(256); w.settle() }, nil, "connect plug", "8"},
		{"Reconfigured, and back meanwhile", func(w *world) { w.up(1); w.frontState(xenbus.Reconfiguring); w.headroom(256); w.settle() },
			func(w *world) { w.frontState(xenbus.Connected) }, "connect plug", "8"},
		{"Reconfigured in InitWait", func(w *world) { w.attach(); w.settle(); w.frontState(xenbus.Reconfiguring); w.settle() }, nil, "publish", "8"},
		{"Reconfigured in InitWait, begins anew meanwhile", func(w *world) { w.attach(); w.settle(); w.frontState(xenbus.Reconfiguring); w.settle() },
			func(w *world) { w.frontState(xenbus.Initialising) }, "publish init-wait", "2"},
		{"Reconfigured while waiting for hotplug, done and back meanwhile", func(w *world) { w.connectUnplugged(); w.frontState(xenbus.Reconfiguring); w.settle() },
			func(w *world) { w.plugIn(); w.frontState(xenbus.Connected) }, "publish connect plug connected", "4"},
		{"Reconfigured in Closing", func(w *world) {
			w.up(1)
			w.frontState(xenbus.Closing)
			w.settle()
			w.frontState(xenbus.Reconfiguring)
			w.settle()
		},
			func(w *world) { w.frontState(xenbus.Closing) }, "closing", "5"},
		{"Reconfigured in Closed", func(w *world) {
			w.up(1)
			w.frontState(xenbus.Closed)
			w.settle()
			w.frontState(xenbus.Reconfiguring)
			w.settle()
		},
			func(w *world) { w.frontState(xenbus.Closed) }, "closed", "6"},
		{"Reconfigured while it is detached", func(w *world) { w.up(1); w.detach(); w.frontState(xenbus.Reconfiguring); w.settle() },
			func(w *world) { w.frontState(xenbus.Closed) }, "closed unregister", "6"},
		{"Closing", func(w *world) { w.up(1); w.frontState(xenbus.Closing); w.settle() }, nil, "", "5"},
		{"Closing, closed meanwhile", func(w *world) { w.up(1); w.frontState(xenbus.Closing); w.settle() },
			func(w *world) { w.frontState(xenbus.Closed) }, "closed", "6"},
		{"Closed", func(w *world) { w.up(1); w.frontState(xenbus.Closed); w.settle() }, nil, "", "6"},
		{"Closed, back meanwhile", func(w *world) { w.up(1); w.frontState(xenbus.Closed); w.settle() },
			func(w *world) { w.frontState(xenbus.Initialising) }, "publish init-wait", "2"},
		{"quarantined", func(w *world) { w.up(1); w.breach() }, nil, "", "4"},
		{"quarantined, connected anew meanwhile, with the same names", func(w *world) { w.up(1); w.breach() },
			func(w *world) { w.sameRings() }, "connect plug", "4"},
		{"quarantined, kexec meanwhile", func(w *world) { w.up(1); w.breach() },
			func(w *world) { w.frontState(xenbus.Initialising) }, "closing closed publish init-wait", "2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.left(w)
			before := w.iface(ifname)
			w.v.suspend()
			w.wantHeld(nothing)
			if tt.away != nil {
				tt.away(w)
			}
			w.v = New(w.cfg)
			w.wantSteps(tt.want)
			w.wantState(tt.state)
			if got := w.get(backDir + "/" + reconfiguredInKey); tt.state != "8" && got != "-" {
				t.Errorf("%s is left: %s", reconfiguredInKey, got)
			}
			l := w.iface(ifname)
			if strings.HasSuffix(tt.want, "unregister") {
				if l != nil {
					t.Error("the predecessor's TAP is still there")
				}
				return
			}
			if strings.HasSuffix(tt.name, "made anew meanwhile") {
				// This is another device, which the script has not seen.
				if l == nil || l.Index == before.Index {
					t.Fatalf("interface %+v, want another than %d", l, before.Index)
				}
				before = l
			}
			if l == nil || l.Index != before.Index {
				t.Fatalf("interface %+v, want the one with index %d", l, before.Index)
			}
			if tt.state == "4" || tt.state == "8" {
				return
			}
			// From every state the guest gets its network, on the same TAP.
			w.frontState(xenbus.Initialising)
			w.settle()
			w.plugIn()
			w.rings(1, false)
			w.frontState(xenbus.Connected)
			w.settle()
			w.wantState("4")
			if l := w.iface(ifname); l == nil || l.Index != before.Index || l.Queues != 1 {
				t.Errorf("interface %+v, want the one with index %d", l, before.Index)
			}
		})
	}
}

// TestTransactionConflicts: other clients write to the same nodes all the time.
func TestTransactionConflicts(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	conflicts := 3
	w.xs.commit = func(*xenstore.Tx) {
		if conflicts--; conflicts >= 0 {
			w.must(w.tool.Write(t.Context(), backDir+"/state", w.get(backDir+"/state")))
		}
	}
	w.wantSteps("publish init-wait")
	w.wantState("2")
	if conflicts >= 0 {
		t.Errorf("%d conflicts were not met", conflicts+1)
	}
}

// TestAdoptWithFewerQueues: a guest keeps the queues it was offered.
func TestAdoptWithFewerQueues(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.v.suspend()
	w.cfg.MaxQueues = 1
	w.v = New(w.cfg)
	w.wantSteps("connect plug")
	w.frontState(xenbus.Initialising)
	w.wantSteps("disconnect closing closed publish init-wait")
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect closing closed")
}

// TestOldJournal: the journals of a predecessor do not apply to new rings, which may
// have the same grefs.
func TestOldJournal(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.v.suspend()
	if got, want := w.journals(), "ring-7.0-0 ring-7.0-1"; got != want {
		t.Fatalf("journals %q, want %q", got, want)
	}
	w.frontState(xenbus.Initialising)
	w.cfg.MaxQueues = 1 // fewer than the predecessor offered
	w.v = New(w.cfg)
	w.wantSteps("closing closed publish init-wait")
	if got := w.journals(); got != "" {
		t.Errorf("journals left: %s", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// steady makes the daemon collect garbage, by requests, and returns its statistics then:
// the remaining memory is retained.
func (w *world) steady() process {
	w.t.Helper()
	for range 20 {
		_, err := w.Control().Vifs(w.ctx)
		w.must(err)
	}
	return w.process(w.Daemon().PID())
}

// TestManyConnectionsLeaveNothing: hundreds of connections leak nothing, neither in the
// daemon nor in Xen.
func TestManyConnectionsLeaveNothing(t *testing.T) {
	w := newPlainWorld(t)
	const fronts, warmUp, cycles = 8, 10, 40
	var all []*rawFront
	for range fronts {
		all = append(all, w.rawFront(2))
	}
	// The vifs run concurrently, since one vif looks at most fifty times a second.
	run := func(cycles int) {
		var wg sync.WaitGroup
		for i, f := range all {
			wg.Go(func() {
				for n := range cycles {
					f.offer(f.keys(), xenbus.Connected)
					f.waitBack(xenbus.Connected)
					if (i+n)%2 == 0 { // like a driver that is unloaded
						f.state(xenbus.Closed)
						f.waitBack(xenbus.Closed)
					}
					f.state(xenbus.Initialising) // or like a guest that was restored
					f.waitBack(xenbus.InitWait)
				}
			})
		}
		wg.Wait()
	}
	run(warmUp)
	before, held := w.steady(), w.books()
	begin := time.Now()
	run(cycles)
	took := time.Since(begin)
	after := w.steady()
	t.Logf("%d connections of %d vifs in %v: from %+v to %+v", fronts*cycles, fronts, took.Round(time.Millisecond), before, after)
	// The embedded Xen has a socket for each running grant call, at most one per vif; a
	// real one has none.
	if after.fds > before.fds+fronts {
		t.Errorf("%d files open, before %d", after.fds, before.fds)
	}
	if after.maps > before.maps+4 { // the runtime's arenas grow by themselves
		t.Errorf("%d mappings, before %d", after.maps, before.maps)
	}
	if after.threads > before.threads+4 {
		t.Errorf("%d threads, before %d", after.threads, before.threads)
	}
	if grew := after.rss - before.rss; grew > 4<<10 {
		t.Errorf("grew by %d KiB", grew)
	}
	w.waitBooks(held)
	for _, f := range all {
		w.unpinned(f.domid)
		if j := w.journals(f.domid, f.devid); len(j) > 0 {
			t.Errorf("journals of %s are left: %v", f.name(), j)
		}
	}
	d, err := w.Domain(0)
	w.must(err)
	if maps, unmaps := d.Counters.GrantMaps, d.Counters.GrantUnmaps; maps != unmaps || maps < 4*fronts*cycles {
		t.Errorf("%d pages were mapped and %d let go", maps, unmaps)
	}
}

// TestVifsThatComeAndGoLeaveNothing is the same with vifs that are attached and detached,
// as on a host with short-lived guests.
func TestVifsThatComeAndGoLeaveNothing(t *testing.T) {
	w := newPlainWorld(t)
	domid := w.domain()
	v := w.vifConfig()
	run := func(n int) {
		for range n {
			w.must(w.Attach(w.ctx, domid, v))
			_, err := w.Detach(w.ctx, domid, v.Devid)
			w.must(err)
			w.vifGone(domid, v.Devid)
		}
	}
	run(10)
	before := w.steady()
	run(40)
	after := w.steady()
	t.Logf("40 vifs: from %+v to %+v", before, after)
	if after.fds != before.fds || after.maps > before.maps+4 || after.threads > before.threads+4 || after.rss > before.rss+4<<10 {
		t.Errorf("after 40 vifs %+v, before %+v", after, before)
	}
	links := linkNames(t)
	if fmt.Sprint(links) != fmt.Sprintf("[lo %s]", bridge) {
		t.Errorf("interfaces %v are left", links)
	}
}

// TestGuestWritesItsStateTenThousandTimes: a guest writes its state as fast as it can
// (XSA-349). The daemon merges the writes, so they cost neither its memory nor another
// guest's network.
func TestGuestWritesItsStateTenThousandTimes(t *testing.T) {
	w := newPlainWorld(t)
	f := w.rawFront(2)
	quiet := w.rawFront(1)
	for _, first := range []*rawFront{f, quiet} { // what the first connection takes stays
		first.connect()
		first.close()
		first.reopen()
	}
	w.undisturbed(func() {
		before, mapsBefore := w.steady(), w.grantMaps(f.domid)
		begin := time.Now()
		var wg sync.WaitGroup
		const writers, each = 8, 1250
		states := []xenbus.State{
			xenbus.Connected, xenbus.Initialising, xenbus.Connected, xenbus.Initialising, xenbus.Connected, xenbus.Initialising,
			xenbus.Connected, xenbus.Closing, xenbus.Closed, xenbus.Initialising, xenbus.Reconfiguring, xenbus.Unknown,
		}
		f.offer(f.keys(), xenbus.Connected)
		for i := range writers {
			wg.Go(func() {
				for n := range each {
					s := states[(i+n)%len(states)]
					if err := w.Store().Write(w.ctx, f.dir()+"/state", s.Value()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		// Meanwhile the daemon serves others.
		quiet.connect()
		quiet.close()
		wg.Wait()
		took := time.Since(begin)
		f.offer(f.keys(), xenbus.Connected)
		f.waitBack(xenbus.Connected, xenbus.Reconfigured) // as the answer to the last Reconfiguring
		w.wait("the last rings to be served", func() bool { s := f.status(); return s.Grants == 4 && s.State == xenbus.Connected })
		f.connected()
		after := w.steady()
		lines := w.logged(f.name())
		t.Logf("%d writes in %v: from %+v to %+v, %d connections, %d lines in the log",
			writers*each, took.Round(time.Millisecond), before, after, int(w.grantMaps(f.domid)-mapsBefore)/4, lines)
		most := 8 << 10
		if f.status().Counters[dataplane.SlowCopies.String()]+quiet.status().Counters[dataplane.SlowCopies.String()] != 0 {
			most += 9 << 10 // the buffers of the thread that a slow copy took
		}
		if grew := after.rss - before.rss; grew > most {
			t.Errorf("grew by %d KiB", grew)
		}
		// It looks 64 times in a row and then fifty times a second.
		connects := int(w.grantMaps(f.domid)-mapsBefore) / 4
		if most := 64 + 50*(int(took/time.Second)+2); connects > most {
			t.Errorf("%d connections in %v, want at most %d", connects, took, most)
		}
		// 20 at once and 10 a second; connecting and closing are two lines.
		if most := 20 + 10*(int(took/time.Second)+2); lines > most {
			t.Errorf("%d lines in the log in %v, want at most %d", lines, took, most)
		}
	})
	took, err := w.Detach(w.ctx, f.domid, f.devid)
	w.must(err)
	if took > closeLimit {
		t.Errorf("Closed after %v", took)
	}
	w.vifGone(f.domid, f.devid)
	w.unpinned(f.domid)
}

// grantMaps counts how often pages of a domain have been mapped.
func (w *world) grantMaps(domid xen.Domid) uint64 {
	w.t.Helper()
	d, err := w.Domain(domid)
	w.must(err)
	return d.Counters.GrantedMaps
}

// TestGuestFillsItsDirectory: the guest fills its directory, and changes every key that the
// daemon reads.
func TestGuestFillsItsDirectory(t *testing.T) {
	w := newPlainWorld(t)
	f := w.rawFront(1)
	f.connect()
	before := w.steady()
	for i := range 500 {
		w.must(w.Store().Write(w.ctx, fmt.Sprintf("%s/junk-%d/%s", f.dir(), i, strings.Repeat("x", 200)), strings.Repeat("y", 1000)))
		w.must(w.Store().Write(w.ctx, f.dir()+"/request-multicast-control", fmt.Sprint(i%2)))
	}
	f.close()
	f.reopen()
	f.connect()
	f.connected()
	after := w.steady()
	if grew := after.rss - before.rss; grew > 4<<10 {
		t.Errorf("grew by %d KiB", grew)
	}
}

// TestIdleVifsCauseNoWakeups: idle vifs do not wake the daemon and cost little memory.
func TestIdleVifsCauseNoWakeups(t *testing.T) {
	w := newPlainWorld(t)
	const n = 50
	domid := w.domain(func(c *lab.GuestConfig) { c.Domain.MaxEventChannels = 4095 })
	var rss int
	for devid := range n {
		if devid == 1 {
			rss = w.process(w.Daemon().PID()).rss
		}
		w.must(w.Attach(w.ctx, domid, lab.VifConfig{
			Devid: devid, MAC: fmt.Sprintf("00:16:3e:00:03:%02x", devid), Bridge: bridge,
			Script: func(ctx context.Context, s *xenstore.Client, h lab.Hotplug) error {
				return s.Write(ctx, h.Back+"/hotplug-status", "connected")
			},
		}))
		f := w.join(domid, devid)
		f.newRings(1)
		f.connect()
	}
	pid := w.Daemon().PID()
	quiet := func(over time.Duration) (switches int64, p process) {
		before := w.process(pid)
		time.Sleep(over) // the test measures an idle period
		p = w.process(pid)
		return p.switches - before.switches, p
	}
	// The work of the last vif has to end first.
	w.wait("the daemon to come to rest", func() bool { s, _ := quiet(100 * time.Millisecond); return s < 3 })
	switches, p := quiet(2 * time.Second)
	// Two collections of garbage may come before the heap rests: one that the last vifs caused, and
	// that with which the rest begins.
	for looks := 1; switches > 20 && looks < 3; looks++ {
		switches, p = quiet(2 * time.Second)
	}
	t.Logf("%d idle vifs: %d wake-ups in 2 s, %d files, %d threads, RSS %d KiB, of which each vif %d KiB",
		n, switches, p.fds, p.threads, p.rss, (p.rss-rss)/(n-1))
	if switches > 20 {
		t.Errorf("the daemon woke %d times in 2 s", switches)
	}
	if each := (p.rss - rss) / (n - 1); each > 1536 {
		t.Errorf("a vif costs %d KiB", each)
	}
}

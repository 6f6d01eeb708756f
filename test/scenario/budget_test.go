// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestStateWrittenAgainIsReadSeldom: a guest that writes its unchanged state repeatedly
// causes few requests to xenstored, for any number of a frontend's keys.
func TestStateWrittenAgainIsReadSeldom(t *testing.T) {
	w := newPlainWorld(t)
	f := w.rawFront(8)
	f.connect()
	before := f.status().Guest
	writes := 0
	began := time.Now()
	w.wait("a look to be delayed", func() bool {
		for range 100 {
			f.state(xenbus.Connected)
		}
		writes += 100
		return f.status().Guest.Delayed > before.Delayed
	})
	took := time.Since(began)
	used := f.status().Guest
	n := used.Requests - before.Requests
	const look = 2 + 8 + 4 + 8*4 + 10 // the states, features, and the keys of rings, with some to spare
	most := (budget.IdleBurst + 2 + budget.IdleRate*took.Seconds()) * look
	t.Logf("%d writes in %v: %d requests to xenstored, at most %.0f are allowed", writes, took.Round(time.Millisecond), n, most)
	if float64(n) > most {
		t.Errorf("%d requests", n)
	}
	f.close() // a change is still seen
}

// TestComingAndGoingIsNoneOfTheManagersBusiness: a guest that connects and disconnects
// causes no message to the service manager, and a successor finds its queues.
func TestComingAndGoingIsNoneOfTheManagersBusiness(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.must(w.Daemon().Stop())
	m.start()
	f := w.rawFront(4)
	f.connect()
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("tap-%d.0-%d", f.domid, i))
	}
	want := strings.Join(names, " ")
	w.wait("the manager to keep the queues", func() bool { return m.kept() == want })
	before := f.status().Guest
	for range 12 {
		f.close()
		f.reopen()
		f.connect()
	}
	if got := f.status().Guest.Messages - before.Messages; got != 0 {
		t.Errorf("%d messages to the service manager", got)
	}
	w.Daemon().Kill()
	if got := m.kept(); got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
	before2 := w.link(f.domid, f.devid).Attrs()
	m.start()
	w.wait("the successor to serve", func() bool { return len(f.status().Queues) == 4 })
	if after := w.link(f.domid, f.devid).Attrs(); after.Index != before2.Index || w.logged("are of no use") > 0 {
		t.Errorf("index %d, before %d: the queues were not adopted", after.Index, before2.Index)
	}
}

// TestServiceManagerThatHangs: a service manager that takes no messages delays neither a
// connecting guest nor the end of the daemon.
func TestServiceManagerThatHangs(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.must(w.Daemon().Stop())
	m.start()
	quick := w.rawFront(8)
	quick.connect()
	m.hang()
	began := time.Now()
	f := w.rawFront(8)
	f.connect()
	f.close()
	f.reopen()
	f.connect()
	if took := time.Since(began); took > 8*time.Second { // eight messages would wait a second each
		t.Errorf("connecting twice took %v", took)
	}
	began = time.Now()
	w.must(w.Daemon().Stop())
	if took := time.Since(began); took > 5*time.Second { // TimeoutStopSec
		t.Errorf("the end took %v", took)
	}
	w.must(w.StartDaemon(w.ctx))
}

// storm makes guests write to xenstore as fast as xenstored lets a guest.
type storm struct {
	blows  atomic.Bool // the guests write; else they pause
	writes atomic.Int64
}

// join calls write repeatedly while the storm blows, until ctx ends.
func (s *storm) join(ctx context.Context, wg *sync.WaitGroup, write func(i int)) {
	wg.Go(func() {
		tick := time.NewTicker(15 * time.Millisecond) // xenstored allows fewer
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; <-tick.C {
			if s.blows.Load() {
				write(i)
				s.writes.Add(1)
				i++
			}
		}
	})
}

// TestTwelveGuestsThatStorm: beside twelve guests that write as much as they can, the
// connection and the pings of another guest take at most twice as long (median), and no
// connection, ping or detach takes a second longer. The guests write their unchanged state, go through all states, change
// a setting, or reconnect with a changing number of queues.
//
// Measurements with and without the storm alternate, so that other load on the machine is
// in both. The first one is at the beginning of the storm, with full budgets.
func TestTwelveGuestsThatStorm(t *testing.T) {
	w := newPlainWorld(t)
	const rounds = 6
	neighbour := w.guest()
	var good []*rawFront // several, since one would need more than its own budget
	for range rounds {
		f := w.rawFront(4)
		f.connect()
		good = append(good, f)
	}
	var leaving []*rawFront // to be detached, one quietly and one beside the storm in each round
	for range 2 * rounds {
		f := w.rawFront(4)
		f.connect()
		leaving = append(leaving, f)
	}
	reconnect := func(f *rawFront) (d times) {
		for range 9 {
			f.state(xenbus.Closed)
			f.waitBack(xenbus.Closed)
			begin := time.Now()
			f.reopen()
			f.connect()
			d = append(d, time.Since(begin))
		}
		return d
	}
	var bad []*rawFront
	for range 12 {
		f := w.rawFront(8)
		f.connect()
		bad = append(bad, f)
	}
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	var s storm
	for i, f := range bad {
		dir, store := f.dir(), w.Store()
		write := func(key, value string) { _ = store.Write(w.ctx, dir+"/"+key, value) }
		s.join(ctx, &all, [...]func(n int){
			func(int) { write("state", "4") },
			func(n int) { write("state", []string{"1", "4", "5", "6"}[n%4]) },
			func(n int) { write("request-multicast-control", fmt.Sprint(n%2)) },
			func(n int) {
				switch n % 4 {
				case 0:
					write("state", "6")
				case 1:
					write("multi-queue-num-queues", []string{"2", "8"}[n/4%2])
				case 2:
					write("state", "1")
				case 3:
					write("state", "4")
				}
			},
		}[i%4])
	}
	ping := func() times {
		const n = 20
		r, err := neighbour.Ping(w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: n, Interval: time.Millisecond}})
		w.must(err)
		if r.Received != n || r.Corrupt != 0 {
			t.Errorf("ping: %d of %d came back, %d corrupt", r.Received, n, r.Corrupt)
		}
		return r.RTT
	}
	leave := func(f *rawFront) time.Duration {
		closes := f.closesWhenAsked()
		took, err := w.Detach(w.ctx, f.domid, f.devid)
		w.must(err)
		w.must(<-closes)
		return took
	}
	var quiet, stormy, pings, stormyPings, leaves, stormyLeaves times
	for i, f := range good {
		quiet = append(quiet, reconnect(f)...)
		pings = append(pings, ping()...)
		leaves = append(leaves, leave(leaving[2*i]))
		s.blows.Store(true)
		stormy = append(stormy, reconnect(f)...)
		stormyPings = append(stormyPings, ping()...)
		stormyLeaves = append(stormyLeaves, leave(leaving[2*i+1]))
		// Until each guest has used up its budget, or has written enough to use it up on a
		// fast machine.
		w.wait("the storm to be felt", func() bool {
			felt := func(f *rawFront) bool { return f.status().Guest.Delayed > 0 }
			return !slices.ContainsFunc(bad, func(f *rawFront) bool { return !felt(f) }) ||
				s.writes.Load() >= 400*int64(len(bad))
		})
		s.blows.Store(false)
	}
	t.Logf("connecting as the storm begins takes %v", stormy[:len(stormy)/rounds])
	for _, tt := range []struct {
		what          string
		quiet, stormy times
	}{{"connecting", quiet, stormy}, {"a ping", pings, stormyPings}, {"detaching", leaves, stormyLeaves}} {
		t.Logf("%s takes %v; beside a storm %v", tt.what, tt.quiet, tt.stormy)
		// Too few guests are detached for a median on a machine that is busy.
		if len(tt.stormy) > rounds && tt.stormy.at(0.5) > 2*tt.quiet.at(0.5) {
			t.Errorf("the median of %s is %v, %v without a storm", tt.what, tt.stormy.at(0.5), tt.quiet.at(0.5))
		}
		if worst := tt.stormy.at(1); worst > time.Second+tt.quiet.at(1) {
			t.Errorf("the longest of %s is %v", tt.what, worst)
		}
	}
	s.blows.Store(true)
	took, err := w.Detach(w.ctx, bad[1].domid, bad[1].devid) // of a vif that is part of the storm
	w.must(err)
	if took > 3*time.Second {
		t.Errorf("detaching took %v", took)
	}
}

// device makes a vif as a toolstack does before it runs its script.
func (w *world) device(domid xen.Domid, devid int) {
	w.t.Helper()
	back, front := w.BackPath(domid, devid), w.FrontPath(domid, devid)
	w.must(w.Store().Transaction(w.ctx, func(tx *xenstore.Tx) error {
		for _, kv := range [][2]string{
			{back + "/frontend", front}, {back + "/frontend-id", fmt.Sprint(domid)}, {back + "/online", "1"},
			{back + "/mac", "00:16:3e:00:00:01"}, {back + "/handle", fmt.Sprint(devid)}, {back + "/hotplug-status", ""},
			{front + "/backend", back}, {front + "/backend-id", "0"}, {front + "/state", "1"}, {back + "/state", "1"},
		} {
			if err := tx.Write(w.ctx, kv[0], kv[1]); err != nil {
				return err
			}
		}
		return nil
	}))
}

// threads samples the daemon's number of threads until the returned function is called,
// which returns the largest number.
func (w *world) threads() (most func() int) {
	pid, stop, peak := w.Daemon().PID(), make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			n = max(n, len(tasks))
			select {
			case <-stop:
				peak <- n
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() int { close(stop); return <-peak }
}

// holdRTNL makes the kernel hold the RTNL, the lock of most operations on interfaces, for
// long: it deletes many interfaces at once. It returns the duration after that.
func (w *world) holdRTNL(pairs int) time.Duration {
	w.t.Helper()
	const group = 42
	for i := range pairs {
		w.must(netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("hold%d", i), Group: group},
			PeerName:  fmt.Sprintf("peer%d", i),
		}))
	}
	begin := time.Now()
	if out, err := exec.Command("ip", "link", "del", "group", fmt.Sprint(group)).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return time.Since(begin)
}

// TestThreadsAreBounded: the daemon never has more threads than the bound in its status,
// while any number of vifs wait for the kernel: of one guest and of many, at its start and
// its stop.
func TestThreadsAreBounded(t *testing.T) {
	w := newPlainWorld(t)
	const ofOne, guests = 150, 20
	one := w.domain()
	for i := range ofOne {
		w.device(one, i)
	}
	var others []xen.Domid
	for range guests {
		others = append(others, w.domain())
	}
	peak := w.threads()
	d, err := w.Control().Daemon(w.ctx)
	w.must(err)
	for _, domid := range others { // while vifs are made, and interfaces looked at
		w.device(domid, 0)
	}
	held := w.holdRTNL(1000)
	all := func() bool {
		for i := range ofOne {
			if w.read(w.BackPath(one, i)+"/state") != "2" {
				return false
			}
		}
		return true
	}
	w.wait("all vifs to be ready", all)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() { _, _ = w.Control().Vifs(w.ctx) })
	}
	wg.Wait()
	w.must(w.Daemon().Stop())
	first := peak()
	w.must(w.StartDaemon(w.ctx))
	peak = w.threads()
	held = max(held, w.holdRTNL(1000))
	w.wait("all vifs to be ready", all)
	w.must(w.Store().Remove(w.ctx, fmt.Sprintf("/local/domain/0/backend/vif/%d", one))) // all are removed at once
	w.wait("the vifs to go", func() bool {
		vifs, err := w.Control().Vifs(w.ctx)
		w.must(err)
		return len(vifs) == guests
	})
	second := peak()
	t.Logf("%d vifs: at most %d threads, then %d, of %d; RTNL was held for up to %v", ofOne+guests, first, second, d.MaxThreads, held.Round(time.Millisecond))
	if most := max(first, second); most > d.MaxThreads {
		t.Errorf("%d threads, the daemon says at most %d", most, d.MaxThreads)
	}
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// refused offers wrong keys and checks their refusal. In the end the vif waits until the
// frontend tries again.
func (f *rawFront) refused(changes map[string]string, reason string) {
	f.w.t.Helper()
	back := f.w.record(f.back() + "/state")
	said, before := f.w.logged(f.name(), "connected"), f.w.logged(f.name(), "ERROR")
	f.offer(f.with(changes), xenbus.Connected)
	f.waitBack(xenbus.Closed)
	if e := f.w.read(f.errNode()); !strings.Contains(e, reason) {
		f.w.t.Errorf("the error node says %q, want %q", e, reason)
	}
	if len(f.w.read(f.errNode())) > 1000 {
		f.w.t.Error("the error node is very long")
	}
	if n := f.w.logged(f.name(), "ERROR", strings.ReplaceAll(reason, `"`, `\"`)); n == 0 {
		f.w.t.Errorf("no log line of %s names %s", f.name(), reason)
	}
	if n := f.w.logged(f.name(), "ERROR") - before; n > 1 {
		f.w.t.Errorf("one mistake of the guest makes %d lines in the log", n)
	}
	if got := back.values(); slices.Contains(got, "4") || f.w.logged(f.name(), "connected") != said {
		f.w.t.Errorf("the backend went %v", got)
	}
	if s := f.status(); s.Grants != 0 || s.Ports != 0 || s.State != xenbus.Closed || !strings.Contains(s.Error, reason) || s.Waits == "" {
		f.w.t.Errorf("after it: %v, %d pages mapped, %d channels bound, error %q, waits for %q", s.State, s.Grants, s.Ports, s.Error, s.Waits)
	}
	if j := f.w.journals(f.domid, f.devid); len(j) > 0 {
		f.w.t.Errorf("journals are left: %v", j)
	}
	// Linux's netfront answers Closing with Closed and stays there until its driver is
	// loaded again.
	f.state(xenbus.Closed)
	f.reopen()
}

// TestMalformedKeysOfTheToolstack: the daemon refuses wrong keys of the toolstack before
// InitWait, with an error that names the key, and accepts them once they are corrected.
func TestMalformedKeysOfTheToolstack(t *testing.T) {
	w := newWorld(t)
	for key, c := range map[string]struct {
		bad  []string
		good string
	}{
		"mac": {[]string{"x", "00:16:3e:00:00", "00-16-3e-00-00-01", "00:16:3e:00:00:01:02:03", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "0016.3e00.0001", "00:16:3e:00:00:zz"}, "00:16:3e:00:00:99"},
		"mtu": {[]string{"x", "0", "-1", "67", "65536", "1500.5", "4294967296"}, "1400"},
	} {
		t.Run(key, func(t *testing.T) {
			w := w.in(t)
			domid := w.domain()
			v := w.vifConfig()
			v.Back = map[string]string{key: c.bad[0]}
			attached := make(chan error, 1)
			go func() { attached <- w.Attach(w.ctx, domid, v) }()
			for _, value := range c.bad {
				w.wait("the vif", func() bool { return w.read(w.BackPath(domid, 0)+"/state") != absent })
				w.must(w.Store().Write(w.ctx, w.BackPath(domid, 0)+"/"+key, value))
				w.waitError(domid, 0, fmt.Sprintf("key %q is %q", key, value))
				w.waitLogged("ERROR", fmt.Sprintf(`key \"%s\" is \"%s\"`, key, value))
				if s := w.read(w.BackPath(domid, 0) + "/state"); s == "2" || s == "4" {
					t.Errorf("state %s with %s = %q", s, key, value)
				}
				w.noInterface(domid, 0)
			}
			w.must(w.Store().Write(w.ctx, w.BackPath(domid, 0)+"/"+key, c.good))
			w.must(<-attached)
			f := w.join(domid, 0)
			f.newRings(1)
			f.connect()
			w.wait("the error to be taken back", func() bool { return w.read(f.errNode()) == absent })
		})
	}
}

// TestMalformedRate: the rate can change under traffic. A malformed rate changes nothing.
func TestMalformedRate(t *testing.T) {
	w := newWorld(t)
	g := w.guest(vifKeys(func(v *lab.VifConfig) { v.Rate = "12500000,50000" }))
	rate := w.BackPath(g.Domid, g.Devid) + "/rate"
	for _, value := range []string{"x", "-1,50000", "100", "100,", ",100", "100,x", "100,0", "1e6,50000", "18446744073709551616,50000", "100,99999999999", strings.Repeat("1", 1000)} {
		w.must(w.Store().Write(w.ctx, rate, value))
		w.waitError(g.Domid, g.Devid, fmt.Sprintf("key %q is %q", "rate", clipped(value)))
		if s := g.status(); s.State != xenbus.Connected || s.Rate != "12500000 B/50ms" {
			t.Errorf("with rate %q: %v, %s", value, s.State, s.Rate)
		}
	}
	if n := w.logged(g.VifName(), "ERROR", "rate"); n == 0 {
		t.Error("the log says nothing of the rate")
	}
	g.pings(3)
	for value, want := range map[string]string{"25000000,50000": "25000000 B/50ms", "": "unlimited", "4294967295,50000": "unlimited"} {
		w.must(w.Store().Write(w.ctx, rate, value))
		g.waitStatus("the rate "+want, func(s *vif.Status) bool { return s.Rate == want })
		g.pings(1)
	}
	g.innocent()
}

// clipped returns a value as netbackd shows it.
func clipped(v string) string {
	if len(v) > 64 {
		return v[:64] + "..."
	}
	return v
}

// TestOneRingNamedTwice: a guest that uses one ring for two purposes harms only itself.
func TestOneRingNamedTwice(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		f := w.rawFront(2)
		k := f.keys()
		f.offer(f.with(map[string]string{
			"queue-1/tx-ring-ref": k["queue-0/tx-ring-ref"],
			"queue-1/rx-ring-ref": k["queue-0/tx-ring-ref"],
			"queue-0/rx-ring-ref": k["queue-0/tx-ring-ref"],
		}), xenbus.Connected)
		f.waitBack(xenbus.Connected)
		f.close()
		w.unpinned(f.domid)
		// One channel for two queues is bound by the first of them.
		f.reopen()
		f.refused(map[string]string{"queue-1/event-channel-tx": k["queue-0/event-channel-tx"]}, "queue 1")
		w.unpinned(f.domid)
		f.connect()
		f.connected()
	})
}

// TestHypervisorFailsAtTheKthMap: if a map fails while connecting, all earlier maps are
// undone. Xen may refuse a map for reasons that the guest does not cause.
func TestHypervisorFailsAtTheKthMap(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		f := w.rawFront(4)
		before := w.books()
		statuses := []gntdev.Status{gntdev.StatusGeneralError, gntdev.StatusNoDeviceSpace, gntdev.StatusBadPage}
		for k := range 2 * len(f.queues) {
			ref, status := f.queues[k/2].rings.Refs()[k%2], statuses[k%len(statuses)]
			t.Run(fmt.Sprintf("map %d: %v", k, status), func(t *testing.T) {
				w := w.in(t)
				f := f.in(w)
				w.must(w.Hypervisor().AddFault(f.domid, simclient.Fault{Op: "map", Ref: ref, Status: int16(status), Count: 1}))
				f.refused(nil, fmt.Sprintf("queue %d", k/2))
				w.waitBooks(before)
				w.unpinned(f.domid)
			})
		}
		f.connect()
		f.connected()
	})
}

// TestSlowMapDelaysItsVifAlone: Xen takes long to map a guest's page, as for a page that is
// paged out. Only that vif waits.
func TestSlowMapDelaysItsVifAlone(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	slow, quick := w.rawFront(1), w.rawFront(1)
	const delay = 2 * time.Second
	ref := slow.queues[0].rings.Refs()[0]
	w.must(w.Hypervisor().AddFault(slow.domid, simclient.Fault{Op: "map", Ref: ref, Delay: delay, Count: 1}))
	begin := time.Now()
	slow.offer(slow.keys(), xenbus.Connected)
	for range 3 {
		quick.connect()
		quick.close()
		quick.reopen()
	}
	g.tcpToHost(1 << 20)
	took, state := time.Since(begin), w.read(slow.back()+"/state")
	t.Logf("the others took %v", took.Round(time.Millisecond))
	if state != "2" {
		t.Errorf("the others took %v, and the slow one was through before them, in state %s", took, state)
	}
	slow.waitBack(xenbus.Connected)
	slow.connected()
}

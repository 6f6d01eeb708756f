// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// notNumbers are what no number is, in whatever key it stands.
var notNumbers = []string{
	"", " ", "-1", "1.5", "0x10", "1e3", "ten", "8,9", "+8", "٣", "%s%n", "1\n2",
	"4294967296", "18446744073709551616", strings.Repeat("9", 2000),
}

// badKeys are keys of the frontend, and what may not stand there.
func badKeys() map[string][]string {
	refs := slices.Concat(notNumbers, []string{gone})
	ports := slices.Concat(notNumbers, []string{gone, "0", "131072", "4294967295"})
	flags := []string{"2", "-1", "yes", "01", strings.Repeat("1", 500)}
	return map[string][]string{
		"tx-ring-ref":                  refs,
		"rx-ring-ref":                  refs,
		"event-channel-tx":             slices.DeleteFunc(slices.Clone(ports), func(v string) bool { return v == gone }),
		"event-channel-rx":             slices.DeleteFunc(slices.Clone(ports), func(v string) bool { return v == gone }),
		"multi-queue-num-queues":       slices.Concat(notNumbers, []string{"0", "9", "64", "65535"}),
		"request-rx-copy":              slices.Concat(flags, []string{gone, "0", ""}),
		"feature-rx-notify":            flags,
		"feature-sg":                   flags,
		"feature-gso-tcpv4":            flags,
		"feature-gso-tcpv6":            flags,
		"feature-no-csum-offload":      flags,
		"feature-ipv6-csum-offload":    flags,
		"request-multicast-control":    flags,
		"queue-1/tx-ring-ref":          {"", "x", gone},
		"queue-1/rx-ring-ref":          {"", "x", gone},
		"queue-1/event-channel-tx":     {"", "x", "0"},
		"queue-1/event-channel-rx":     {"", "x", "0"},
		"queue-0/tx-ring-ref":          {gone},
		"queue-0/event-channel":        {"", "x", "0"}, // alone, without the split ones
		"event-channel":                {"", "x", "0", "131072"},
		"event-channel-rx with no -tx": {gone}, // see change
	}
}

// change is what a bad value of a key does to good keys.
func change(key, value string) (changes map[string]string, named string) {
	changes, named = map[string]string{key: value}, key
	switch key {
	case "event-channel", "queue-0/event-channel":
		changes[key+"-tx"], changes[key+"-rx"] = gone, gone
	case "event-channel-rx with no -tx":
		// Half of a pair is no pair: the single one is asked for.
		changes, named = map[string]string{"event-channel-tx": gone}, "event-channel"
	}
	return changes, named
}

// Everything that a guest may write wrongly. Each time the daemon says which key
// it is, in the log and in xenstore, closes the device, never shows Connected,
// and connects as soon as the guest says something better.
func TestMalformedKeysOfTheFrontend(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		bad := badKeys()
		for _, key := range slices.Sorted(keysOf(bad)) {
			t.Run(key, func(t *testing.T) {
				w := w.in(t)
				n := 1
				if strings.HasPrefix(key, "queue-") {
					n = 2
				}
				f := w.rawFront(n)
				before := w.books()
				for _, value := range bad[key] {
					changes, named := change(key, value)
					f.refused(changes, fmt.Sprintf("key %q", named))
					if t.Failed() {
						t.Fatalf("with %s = %.80q", key, value)
					}
				}
				if got := w.books(); got.Maps > before.Maps || got.Interdomain > before.Interdomain {
					t.Errorf("netbackd holds %+v, before it held %+v", got, before)
				}
				// Good again at once, without going through Initialising.
				f.offer(f.with(map[string]string{}), xenbus.Closed)
				f.reopen()
				f.connect()
				f.connected()
				w.wait("the error to be taken back", func() bool { return w.read(f.errNode()) == absent })
			})
		}
	})
}

// refused offers keys that are wrong and checks how they are refused. In the end
// the vif waits for the frontend to try again.
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
	// Linux' netfront answers Closing with Closed and stays there until its
	// driver is loaded anew.
	f.state(xenbus.Closed)
	f.reopen()
}

// Values that look odd and are not wrong. Linux writes the first kind, Windows
// the others.
func TestUnusualButGoodKeysOfTheFrontend(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	for _, c := range []struct {
		name    string
		changes map[string]string
	}{
		{"one queue, and says so", map[string]string{"multi-queue-num-queues": "1"}},
		{"a NUL behind a number", map[string]string{"tx-ring-ref": f.keys()["tx-ring-ref"] + "\x00"}},
		{"blanks around a number", map[string]string{"event-channel-tx": " " + f.keys()["event-channel-tx"] + "\n"}},
		{"an empty feature", map[string]string{"feature-sg": "", "feature-gso-tcpv4": ""}},
		{"no feature at all", map[string]string{"feature-sg": gone, "feature-rx-notify": gone}},
		{"both channels are one", map[string]string{"event-channel-rx": f.keys()["event-channel-tx"]}},
		{"split channels and a single one", map[string]string{"event-channel": f.keys()["event-channel-tx"]}},
		{"keys nobody knows", map[string]string{"feature-warp": "9", "queue-0/tx-ring-ref": "junk"}},
		{"headroom as Linux without a program says", map[string]string{"xdp-headroom": "0"}},
		{"more headroom than a page", map[string]string{"xdp-headroom": "65535"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			f := f.in(w)
			f.offer(f.with(c.changes), xenbus.Connected)
			f.waitBack(xenbus.Connected)
			if s := f.status(); s.Grants != 2 || s.Error != "" {
				t.Errorf("%d pages mapped, error %q", s.Grants, s.Error)
			}
			f.close()
			f.reopen()
			f.offer(f.keys(), xenbus.Initialising)
		})
	}
}

func TestFrontendStateIsGarbage(t *testing.T) {
	w := newWorld(t)
	for _, value := range []string{"", "9", "-1", "four", "4 4", strings.Repeat("4", 1000)} {
		t.Run(fmt.Sprintf("%.20q", value), func(t *testing.T) {
			w := w.in(t)
			f := w.rawFront(1)
			f.connect()
			w.must(w.Store().Write(f.dir()+"/state", value))
			f.waitBack(xenbus.Closed)
			w.waitError(f.domid, f.devid, `"state"`)
			w.unpinned(f.domid)
			f.reopen()
			f.connect()
			f.connected()
		})
	}
}

// The toolstack's own keys. What is wrong there is refused before InitWait, with
// an error that names the key, and taken as soon as it is put right.
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
				w.must(w.Store().Write(w.BackPath(domid, 0)+"/"+key, value))
				w.waitError(domid, 0, fmt.Sprintf("key %q is %q", key, value))
				w.waitLogged("ERROR", fmt.Sprintf(`key \"%s\" is \"%s\"`, key, value))
				if s := w.read(w.BackPath(domid, 0) + "/state"); s == "2" || s == "4" {
					t.Errorf("state %s with %s = %q", s, key, value)
				}
				w.noInterface(domid, 0)
			}
			w.must(w.Store().Write(w.BackPath(domid, 0)+"/"+key, c.good))
			w.must(<-attached)
			f := w.join(domid, 0)
			f.newRings(1)
			f.connect()
			w.wait("the error to be taken back", func() bool { return w.read(f.errNode()) == absent })
		})
	}
}

// The rate can be changed while packets move. One that makes no sense changes
// nothing.
func TestMalformedRate(t *testing.T) {
	w := newWorld(t)
	g := w.guest(vifKeys(func(v *lab.VifConfig) { v.Rate = "12500000,50000" }))
	rate := w.BackPath(g.Domid, g.Devid) + "/rate"
	for _, value := range []string{"x", "-1,50000", "100", "100,", ",100", "100,x", "100,0", "1e6,50000", "18446744073709551616,50000", "100,99999999999", strings.Repeat("1", 1000)} {
		w.must(w.Store().Write(rate, value))
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
		w.must(w.Store().Write(rate, value))
		g.waitStatus("the rate "+want, func(s *vif.Status) bool { return s.Rate == want })
		g.pings(1)
	}
	g.innocent()
}

// clipped is a value as netbackd shows it.
func clipped(v string) string {
	if len(v) > 64 {
		return v[:64] + "..."
	}
	return v
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Keys that name what is not there to be had. Nothing stays mapped or bound, of
// whichever queue it was that failed.
func TestRingsAndChannelsThatCannotBeHad(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		other := w.rawFront(1)
		f := w.rawFront(3)
		freed := func() string {
			p, err := f.pages.Alloc(0, 1, true)
			w.must(err)
			ref := p.Refs()[0]
			w.must(p.Free())
			return fmt.Sprint(ref)
		}
		readOnly, err := f.pages.Alloc(0, 1, false)
		w.must(err)
		forOther, err := f.pages.Alloc(other.domid, 1, true)
		w.must(err)
		bound, err := f.events.BindUnbound(0)
		w.must(err)
		dom0, err := w.Join(0)
		w.must(err)
		t.Cleanup(func() { _ = dom0.Close() })
		ours, err := dom0.Events()
		w.must(err)
		t.Cleanup(func() { _ = ours.Close() })
		_, err = ours.BindInterdomain(f.domid, bound)
		w.must(err)
		toOther, err := f.events.BindUnbound(other.domid)
		w.must(err)
		closed, err := f.events.BindUnbound(0)
		w.must(err)
		w.must(f.events.Unbind(closed))

		before := w.books()
		for _, i := range []int{0, 2} {
			q := fmt.Sprintf("queue-%d/", i)
			for _, c := range []struct {
				name, key, value string
				errno            unix.Errno
			}{
				{"a page that was never granted", "tx-ring-ref", "500", 0},
				{"a reference beyond the grant table", "rx-ring-ref", "4294967280", 0},
				{"reference 7, kept for the toolstack", "tx-ring-ref", "7", 0},
				{"a page granted for reading only", "rx-ring-ref", fmt.Sprint(readOnly.Refs()[0]), 0},
				{"a page granted to another", "tx-ring-ref", fmt.Sprint(forOther.Refs()[0]), 0},
				{"a page that was freed", "rx-ring-ref", freed(), 0},
				{"a channel that is not there", "event-channel-tx", "999", 0},
				{"a channel beyond what the guest may have", "event-channel-rx", "100000", 0},
				{"a channel that was closed", "event-channel-rx", fmt.Sprint(closed), 0},
				{"a channel that is bound already", "event-channel-tx", fmt.Sprint(bound), 0},
				{"a channel to another domain", "event-channel-rx", fmt.Sprint(toOther), 0},
			} {
				t.Run(fmt.Sprintf("%s of queue %d", c.name, i), func(t *testing.T) {
					w := w.in(t)
					f := f.in(w)
					f.refused(map[string]string{q + c.key: c.value}, fmt.Sprintf("queue %d", i))
					w.waitBooks(before)
					w.unpinned(f.domid)
				})
			}
		}
		f.connect()
		f.connected()
	})
}

// Rings that are each other's, or another queue's: who lies about that only
// harms himself.
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

// A map or a bind that fails in the middle: what came before it is given back.
// Xen may say so for reasons that have nothing to do with the guest.
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

// Xen takes its time over a guest's page, as it does when that has to be fetched
// from somewhere. That guest waits, and nobody else.
func TestMapThatTakesLongKeepsNobodyElseWaiting(t *testing.T) {
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

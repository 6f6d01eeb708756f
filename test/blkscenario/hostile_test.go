// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// small makes the disk as small as the cases of blkcases need it.
func (w *world) small(v *toolstack.Vbd) {
	w.t.Helper()
	w.must(os.Truncate(v.Target, blkcases.MinSectors*512))
}

// TestCases plays every bad and odd request on each kind of disk. Each gets its answer and its
// counter, and no other counter of failures moves. A neighbour keeps its i/o.
func TestCases(t *testing.T) {
	w := newWorld(t)
	bare := newWorld(t, "--max-indirect-segments=0")
	neighbour := w.guest(blkfront.Config{Queues: 2, Indirect: 64, Persistent: true})
	stop := neighbour.running(diskcheck.Load{MaxSegments: 8, Reads: 50})
	played := map[string]bool{}
	for _, kind := range []struct {
		name  string
		world *world
		front blkfront.Config
		edit  func(*world, *toolstack.Vbd)
	}{
		{"plain, x86_64", w, blkfront.Config{Indirect: 256, Pages: 1100}, (*world).small},
		{"plain, x86_32, persistent", w, blkfront.Config{Protocol: "x86_32-abi", Indirect: 256, Persistent: true, Pages: 1100}, (*world).small},
		{"read-only", w, blkfront.Config{Indirect: 256, Pages: 1100}, func(w *world, v *toolstack.Vbd) { w.small(v); v.ReadOnly = true }},
		{"bare", bare, blkfront.Config{Pages: 1100}, func(w *world, v *toolstack.Vbd) { w.small(v); v.NoDiscard = true }},
		{"4 KiB blocks", w, blkfront.Config{Indirect: 256, Pages: 1100}, func(w *world, v *toolstack.Vbd) { w.small(v); v.Target = w.loop(v.Target, "--sector-size=4096") }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			w := kind.world.in(t)
			g := w.guest(kind.front, func(v *toolstack.Vbd) { kind.edit(w, v) })
			for _, c := range blkcases.All() {
				if c.Overrun == 0 {
					played[c.Name] = g.play(&c) || played[c.Name]
				} else {
					played[c.Name] = g.overrun(&c) || played[c.Name]
				}
			}
			s, err := g.Stats(w.ctx, "")
			w.must(err)
			if len(s.Violations) > 0 {
				t.Errorf("the guest accuses the backend: %v", s.Violations)
			}
			if !strings.Contains(w.Daemon().Log(), "bad request refused") {
				t.Error("the log does not tell of a bad request")
			}
		})
	}
	for _, c := range blkcases.All() {
		if !played[c.Name] && !t.Failed() {
			t.Logf("%s: was not played", c.Name)
		}
	}
	stop()
	neighbour.innocent()
}

// failures returns the counters of requests that were not answered with okay.
func failures(s *vbd.Status) map[string]uint64 {
	m := map[string]uint64{}
	for _, c := range blkplane.Counters {
		if c.Kind == blkplane.Failure && s.Counters[c.Name] > 0 {
			m[c.Name] = s.Counters[c.Name]
		}
	}
	return m
}

// play plays a case and checks the counters. It reports whether the disk is of the kind that
// the case needs.
func (g *guest) play(c *blkcases.Case) bool {
	g.w.t.Helper()
	s := g.status()
	before := failures(&s)
	r, err := g.Case(g.w.ctx, blkguest.CaseArgs{Case: c.Name})
	if err != nil {
		g.w.t.Fatalf("%s: %v", c.Name, err)
	}
	if r.Wrong != "" {
		g.w.t.Errorf("%s: %s", c.Name, r.Wrong)
	}
	s = g.status()
	after := failures(&s)
	if r.Skipped || c.Flip != nil {
		return !r.Skipped // how many are refused is chance
	}
	if want := c.Want.String(); c.Want != 0 {
		before[want]++
	}
	if !maps.Equal(before, after) {
		g.w.t.Errorf("%s: counters are %v, want %v", c.Name, after, before)
	}
	return true
}

// overrun plays a case that breaks the ring: the disk is in quarantine until the guest
// connects again. It reports false if the disk is of another kind than the case needs.
func (g *guest) overrun(c *blkcases.Case) bool {
	g.w.t.Helper()
	if r, err := g.Case(g.w.ctx, blkguest.CaseArgs{Case: c.Name}); err != nil {
		g.w.t.Fatalf("%s: %v", c.Name, err)
	} else if r.Skipped {
		return false
	}
	s := g.wait("the quarantine", func(s *vbd.Status) bool { return s.Quarantine != "" })
	if !strings.Contains(s.Quarantine, "req_prod") {
		g.w.t.Errorf("%s: the quarantine is because of %q", c.Name, s.Quarantine)
	}
	g.reconnect(nil)
	g.wait("the end of the quarantine", func(s *vbd.Status) bool { return s.Quarantine == "" && s.Waits == "" })
	if _, err := g.Request(g.w.ctx, blkguest.RequestArgs{Segments: []blkguest.SegmentArgs{{Last: 7}}}); err != nil {
		g.w.t.Errorf("%s: a read after it: %v", c.Name, err)
	}
	return true
}

// TestBadKeys: what a frontend publishes is wrong. It is refused with an error that can be
// read, nothing of it stays mapped or bound, and the next connection is served.
func TestBadKeys(t *testing.T) {
	w := newWorld(t)
	neighbour := w.guest(blkfront.Config{Indirect: 64})
	stop := neighbour.running(endless(mixed))
	g := w.guest(blkfront.Config{})
	for name, keys := range map[string]map[string]string{
		"no queues":                {"multi-queue-num-queues": "0"},
		"too many queues":          {"multi-queue-num-queues": "5"},
		"a number of queues below": {"multi-queue-num-queues": "-1"},
		"queues are no number":     {"multi-queue-num-queues": "many"},
		"queues without nodes":     {"multi-queue-num-queues": "3"},
		"order 5":                  {"ring-page-order": "5"},
		"order without rings":      {"ring-page-order": "1"},
		"order is no number":       {"ring-page-order": "x"},
		"unknown protocol":         {"protocol": "vax-abi"},
		"ring-ref is no number":    {"ring-ref": "one"},
		"ring-ref beyond 32 bits":  {"ring-ref": "4294967297"},
		"ring-ref is not granted":  {"ring-ref": "8000"},
		"no ring-ref":              {"ring-ref": ""},
		"no event channel":         {"event-channel": ""},
		"event channel 0":          {"event-channel": "0"},
		"event channel of no one":  {"event-channel": "900"},
	} {
		t.Run(name, func(t *testing.T) {
			w, g := w.in(t), g.in(t)
			front := blkfront.Config{Keys: keys}
			_, err := g.Reconnect(w.ctx, blkguest.ConnectArgs{Front: &front})
			if err == nil {
				t.Error("it is connected")
			}
			s := g.status()
			if s.Error == "" && s.Quarantine == "" {
				t.Errorf("there is no error: %+v", s)
			}
			g.reconnect(&blkfront.Config{})
			g.run(diskcheck.Load{Requests: 20})
		})
	}
	g.innocent()
	stop()
	neighbour.innocent()
	w.must(g.Detach(w.ctx, ""))
	w.must(neighbour.Detach(w.ctx, ""))
	for _, x := range []*guest{g, neighbour} {
		_, err := w.DetachVbd(w.ctx, x.Domid, xvda)
		w.must(err)
	}
	w.nothingLeft(g)
}

// TestPagesThatCannotBeUsed: Xen refuses grant operations while requests are in flight. These
// requests fail, and nothing else.
func TestPagesThatCannotBeUsed(t *testing.T) {
	w := newWorld(t)
	for name, front := range map[string]blkfront.Config{
		"copies":     {Indirect: 64},
		"persistent": {Indirect: 64, Persistent: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			g := w.guest(front)
			for _, op := range []wire.FaultOp{wire.FaultCopy, wire.FaultMap} {
				w.must(w.Control().AddFault(g.Domid, simclient.Fault{Op: op, Ref: wire.AnyRef, Status: -3, Count: 30}))
				g.run(diskcheck.Load{Requests: 200, Depth: 8, MaxSegments: 30, Reads: 50, Refused: true, Parts: true})
				w.must(w.Control().ClearFaults(g.Domid))
			}
			s := g.status()
			if n := failures(&s); name == "copies" && n["grant"]+n["indirect_grant"] == 0 {
				t.Errorf("no failure is counted: %v", n)
			}
			g.run(mixed)
			g.innocent()
			_, err := w.DetachVbd(w.ctx, g.Domid, xvda)
			w.must(err)
		})
	}
}

// TestFlappingStates: a frontend writes states in any order as fast as it can, with requests
// in flight. In the end its disk is served, and the neighbour noticed nothing.
func TestFlappingStates(t *testing.T) {
	w := newWorld(t)
	neighbour := w.guest(blkfront.Config{Indirect: 64})
	stop := neighbour.running(endless(mixed))
	g := w.guest(blkfront.Config{Queues: 2, Indirect: 64})
	for range 4 {
		ended := make(chan error, 1)
		go func() {
			_, err := g.Run(w.ctx, blkguest.LoadArgs{Load: endless(mixed)})
			ended <- err
		}()
		for i := range 40 {
			states := []xenbus.State{xenbus.Connected, xenbus.Initialising, xenbus.Closing, xenbus.Initialised, xenbus.Closed, xenbus.InitWait}
			w.must(g.SetState(w.ctx, "", states[(i*i+i/7)%len(states)]))
		}
		w.must(g.SetState(w.ctx, "", xenbus.Closed))
		g.insist()
		<-ended
		g.run(diskcheck.Load{Requests: 50, Depth: 8, MaxSegments: 20})
	}
	g.innocent()
	stop()
	neighbour.innocent()
}

// insist connects the disk again. A backend that has yet to see the states written before may
// refuse at first.
func (g *guest) insist() {
	g.w.t.Helper()
	for {
		_, err := g.Suspend(g.w.ctx, blkguest.ConnectArgs{})
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "refused") {
			g.w.t.Fatal(err)
		}
	}
}

// TestGuestsDoNotReachEachOther: the disks of two guests have their own patterns, and grefs of
// one mean nothing for the other.
func TestGuestsDoNotReachEachOther(t *testing.T) {
	w := newWorld(t, "--max-queues=4")
	a, b := w.guest(blkfront.Config{Queues: 4, Indirect: 64, Persistent: true}), w.guest(blkfront.Config{Queues: 4, Indirect: 64})
	stops := []func() diskcheck.Result{a.running(endless(mixed)), b.running(endless(mixed))}
	a.waitCounter("okay", 100)
	b.waitCounter("okay", 100)
	for _, stop := range stops {
		stop()
	}
	a.innocent()
	b.innocent()
	page := blkguest.RequestArgs{Op: 1, Segments: []blkguest.SegmentArgs{{Gref: 8191, Last: 7}}}
	if r, err := a.Request(w.ctx, page); err != nil || r.Status == 0 {
		t.Errorf("a write from a page that was not granted: %v, %v", r.Status, err)
	}
	a.innocent()
	images := []string{a.image, b.image}
	slices.Sort(images)
	if out, err := exec.Command("cmp", "-s", images[0], images[1]).CombinedOutput(); err == nil {
		t.Errorf("the images are the same %s", out)
	}
}

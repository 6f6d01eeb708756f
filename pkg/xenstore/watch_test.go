// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// watchPeer answers WATCH and UNWATCH with OK and lets a test send events.
// Anything else is answered with its own path. Tokens are told in order.
func watchPeer(t testing.TB, kind Kind) (*Client, *peer, <-chan message) {
	c, p := dialPeer(t, kind)
	watches := make(chan message, 1000)
	go p.serve(func(m message) {
		switch m.Header.Type {
		case MsgWatch:
			p.ok(m)
			watches <- m
		case MsgUnwatch:
			p.ok(m)
			watches <- m
		default:
			p.reply(m, m.strs()[0])
		}
	})
	return c, p, watches
}

// settle waits until the client has dispatched everything sent so far.
func settle(t testing.TB, c *Client) {
	t.Helper()
	if _, err := c.Read(t.Context(), "/settle"); err != nil {
		t.Fatal(err)
	}
}

func TestWatchReceivesEvents(t *testing.T) {
	c, p, watches := watchPeer(t, Socket)
	w, err := c.Watch(t.Context(), "/dev")
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Watch(t.Context(), "/dev") // a second one of the same node is another watch
	if err != nil {
		t.Fatal(err)
	}
	first, second := (<-watches).strs(), (<-watches).strs()
	if first[0] != "/dev" || second[0] != "/dev" || first[1] == second[1] {
		t.Errorf("watches %q and %q", first, second)
	}
	p.event("/dev", first[1])
	p.event("/dev/state", second[1])
	p.event("/dev/other", "an unknown token")
	if e := receive(t, w); e != (Event{Path: "/dev"}) {
		t.Errorf("got %+v", e)
	}
	if e := receive(t, v); e != (Event{Path: "/dev/state"}) {
		t.Errorf("got %+v", e)
	}
	if w.Path() != "/dev" {
		t.Errorf("path %q", w.Path())
	}
	p.event("/dev/late", first[1])
	settle(t, c)
	w.Close()
	m := <-watches
	if m.Header.Type != MsgUnwatch || m.Payload != "/dev\x00"+first[1]+"\x00" {
		t.Errorf("UNWATCH is %+v", m)
	}
	p.event("/dev", first[1]) // was on its way
	p.event("/dev", second[1])
	if e := receive(t, v); e != (Event{Path: "/dev"}) {
		t.Errorf("got %+v", e)
	}
	if _, ok := <-w.C(); ok {
		t.Error("an event after Close")
	}
	w.Close() // again
}

func TestFirstEventMayOvertakeTheReply(t *testing.T) {
	c, p := dialPeer(t, Xenbus)
	go p.serve(func(m message) {
		if m.Header.Type == MsgWatch {
			p.event("/dev", m.strs()[1])
		}
		p.ok(m)
	})
	w, err := c.Watch(t.Context(), "/dev")
	if err != nil {
		t.Fatal(err)
	}
	if e := receive(t, w); e != (Event{Path: "/dev"}) {
		t.Errorf("got %+v", e)
	}
}

func TestWatchThatIsRefused(t *testing.T) {
	c, p := dialPeer(t, Socket)
	go p.serve(func(m message) { p.refuse(m, "EACCES") })
	if w, err := c.Watch(t.Context(), ReleaseDomain); !errors.Is(err, ErrPermission) || w != nil {
		t.Errorf("%v, %v", w, err)
	}
	if n := len(c.watches); n != 0 {
		t.Errorf("%d watches are kept", n)
	}
}

func TestEventsAreCoalescedPerPath(t *testing.T) {
	c, p, watches := watchPeer(t, Socket)
	w, err := c.Watch(t.Context(), "/dev")
	if err != nil {
		t.Fatal(err)
	}
	token := (<-watches).strs()[1]
	for range 1000 {
		for _, path := range []string{"/dev/a", "/dev/b", "/dev/a", "/dev/c"} {
			p.event(path, token)
		}
	}
	settle(t, c)
	for _, want := range []string{"/dev/a", "/dev/b", "/dev/c"} {
		if e := receive(t, w); e != (Event{Path: want}) {
			t.Errorf("got %+v, want %s", e, want)
		}
	}
	if len(w.C()) != 0 {
		t.Errorf("%d more events", len(w.C()))
	}
	// What was taken is reported anew.
	p.event("/dev/b", token)
	p.event("/dev/a", token)
	settle(t, c)
	for _, want := range []string{"/dev/b", "/dev/a"} {
		if e := receive(t, w); e != (Event{Path: want}) {
			t.Errorf("got %+v, want %s", e, want)
		}
	}
}

func TestTooManyPathsOverflow(t *testing.T) {
	t.Run("Watch", func(t *testing.T) { tooManyPaths(t, (*Client).Watch, maxPending) })
	t.Run("WatchNode", func(t *testing.T) { tooManyPaths(t, (*Client).WatchNode, 1) })
}

// tooManyPaths makes events of more paths than the most that a watch holds.
func tooManyPaths(t *testing.T, watch func(*Client, context.Context, string) (*Watch, error), most int) {
	c, p, watches := watchPeer(t, Socket)
	w, err := watch(c, t.Context(), "/dev")
	if err != nil {
		t.Fatal(err)
	}
	token := (<-watches).strs()[1]
	for round := range 3 {
		for i := range 2 * most {
			p.event(fmt.Sprintf("/dev/%d", i), token)
		}
		settle(t, c)
		for i := range most {
			if e := receive(t, w); e.Path != fmt.Sprintf("/dev/%d", i) || e.Overflow {
				t.Errorf("round %d: event %d is %+v", round, i, e)
			}
		}
		// The overflow covers what came after it, but only until it is taken.
		p.event("/dev/0", token)
		settle(t, c)
		if e := receive(t, w); e != (Event{Overflow: true}) {
			t.Errorf("round %d: got %+v", round, e)
		}
		p.event("/dev/0", token)
		if e := receive(t, w); e != (Event{Path: "/dev/0"}) {
			t.Errorf("round %d: got %+v", round, e)
		}
	}
}

// TestWatchStorm is XSA-349: a million events that are not taken. Memory must
// not grow and other requests must go through.
func TestWatchStorm(t *testing.T) {
	const events, batch = 1_000_000, 1000
	for name, path := range map[string]func(i int) string{
		"one path":         func(int) string { return "/local/domain/7/device/vif/0/state" },
		"as many paths":    func(i int) string { return fmt.Sprintf("/local/domain/7/device/vif/0/junk%d", i) },
		"a few, at random": func(int) string { return fmt.Sprintf("/local/domain/7/device/vif/%d", rand.N(80)) },
	} {
		t.Run(name, func(t *testing.T) {
			c, p, watches := watchPeer(t, Socket)
			w, err := c.Watch(t.Context(), "/local/domain/7/device/vif/0")
			if err != nil {
				t.Fatal(err)
			}
			token := (<-watches).strs()[1]
			heap := func() uint64 {
				settle(t, c)
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			before := heap()
			var buf []byte
			for i := range events / batch {
				buf = buf[:0]
				for j := range batch {
					buf = AppendMessage(buf, Header{Type: MsgWatchEvent}, AppendStrings(nil, path(i*batch+j), token))
				}
				p.raw(buf)
				if i%100 == 99 {
					if grown := int64(heap() - before); grown > 1<<20 {
						t.Fatalf("after %d events the heap has grown by %d bytes", (i+1)*batch, grown)
					}
				}
			}
			for n := 0; ; n++ {
				if len(w.C()) == 0 {
					break
				}
				if receive(t, w); n > maxPending {
					t.Fatal("more events than may be pending")
				}
			}
		})
	}
}

func TestPendingPathCostsNoAllocation(t *testing.T) {
	c, _, watches := watchPeer(t, Socket)
	if _, err := c.Watch(t.Context(), "/dev"); err != nil {
		t.Fatal(err)
	}
	payload := AppendStrings(nil, "/dev/state", (<-watches).strs()[1])
	if n := testing.AllocsPerRun(100, func() {
		if err := c.fire(payload); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestNoChangeIsLost lets a consumer race with the reader: in the end it must
// have seen the last version of every path.
func TestNoChangeIsLost(t *testing.T) {
	const paths, changes = 2 * maxPending, 200_000
	c, _, watches := watchPeer(t, Socket)
	w, err := c.Watch(t.Context(), "/p")
	if err != nil {
		t.Fatal(err)
	}
	token := (<-watches).strs()[1]
	var version [paths]atomic.Int64
	var seen [paths]int64
	path := make([][]byte, paths)
	index := map[string]int{}
	for i := range path {
		s := fmt.Sprintf("/p/%d", i)
		path[i], index[s] = AppendStrings(nil, s, token), i
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		rng := rand.New(rand.NewPCG(1, 2))
		for range changes {
			i := rng.IntN(paths)
			version[i].Add(1) // the change, then its event
			if err := c.fire(path[i]); err != nil {
				t.Error(err)
			}
			if rng.IntN(50) == 0 {
				runtime.Gosched()
			}
		}
	}()
	look := func(e Event) {
		if !e.Overflow {
			i := index[e.Path]
			seen[i] = version[i].Load()
			return
		}
		for i := range seen {
			seen[i] = version[i].Load()
		}
	}
	for end := false; !end; {
		select {
		case e := <-w.C():
			look(e)
		case <-over:
			end = true
		}
	}
	for len(w.C()) > 0 {
		look(<-w.C())
	}
	for i := range paths {
		if v := version[i].Load(); v != seen[i] {
			t.Errorf("path %d: version %d, seen %d", i, v, seen[i])
		}
	}
}

// TestPostAgainstAModel checks bound, order and completeness of the pending
// events for random sequences of changes and receptions.
func TestPostAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, maxPending}).Draw(t, "pending")
		w := &Watch{ch: make(chan Event, most+1), sent: make([]Event, most+1)}
		var model []Event
		paths := rapid.IntRange(1, 3*maxPending).Draw(t, "paths")
		for range rapid.IntRange(0, 600).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "step") == 0 && len(model) > 0 {
				if diff := cmp.Diff(model[0], <-w.ch); diff != "" {
					t.Fatalf("event (-want +got):\n%s", diff)
				}
				model = model[1:]
				continue
			}
			e := Event{Path: fmt.Sprint(rapid.IntRange(1, paths).Draw(t, "path"))}
			w.post([]byte(e.Path))
			covered := false
			for _, m := range model {
				covered = covered || m == e || m.Overflow
			}
			switch {
			case covered:
			case len(model) < most:
				model = append(model, e)
			default:
				model = append(model, Event{Overflow: true})
			}
			if len(w.ch) != len(model) {
				t.Fatalf("%d events pending, want %d", len(w.ch), len(model))
			}
		}
	})
}

func TestCloseAWatchWhileItIsReceived(t *testing.T) {
	c, p, watches := watchPeer(t, Socket)
	for range 100 {
		w, err := c.Watch(t.Context(), "/dev")
		if err != nil {
			t.Fatal(err)
		}
		token := (<-watches).strs()[1]
		var wg sync.WaitGroup
		got := make(chan struct{})
		wg.Go(func() {
			first := true
			for range w.C() {
				if first {
					close(got)
				}
				first = false
			}
		})
		wg.Go(func() {
			for i := range 200 {
				p.event(fmt.Sprintf("/dev/%d", i), token)
			}
		})
		wait(t, got, "the first event")
		for range 2 {
			wg.Go(w.Close)
		}
		wg.Wait()
		if m := <-watches; m.Header.Type != MsgUnwatch || m.strs()[1] != token {
			t.Errorf("got %+v", m)
		}
	}
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}

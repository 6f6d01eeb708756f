// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// countedStore counts watches.
type countedStore struct {
	*xenstore.Client
	watches int
}

func (s *countedStore) WatchNode(ctx context.Context, path string) (*xenstore.Watch, error) {
	s.watches++
	return s.Client.WatchNode(ctx, path)
}

// newStore connects to an xenstored of its own.
func newStore(t *testing.T) *countedStore {
	t.Helper()
	srv := store.New(store.Options{})
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeConn(theirs, 0, xenstore.Socket) })
	c := xenstore.New(ours, xenstore.Socket)
	t.Cleanup(func() {
		_ = c.Close()
		wg.Wait()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return &countedStore{Client: c}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWatchFollows: there is one watch, of the last path.
func TestWatchFollows(t *testing.T) {
	s := newStore(t)
	g := budget.NewHost(1).Guest()
	w := NewWork(s, g)
	var x Watch
	if x.Events() != nil || !x.Blind() {
		t.Error("events of nothing")
	}
	must(t, x.Follow(t.Context(), w, "/a"))
	first := x.Events()
	must(t, x.Follow(t.Context(), w, "/a"))
	if s.watches != 1 || x.Blind() {
		t.Errorf("%d watches of the same path", s.watches)
	}
	must(t, x.Follow(t.Context(), w, "/b"))
	for range first { // ends: the channel was closed
	}
	if e := <-x.Events(); e.Path != "/b" {
		t.Errorf("event %+v", e)
	}
	x.Received(true)
	must(t, x.Follow(t.Context(), w, "/b"))
	if s.watches != 2 {
		t.Errorf("%d watches, want 2", s.watches)
	}
	x.Received(false) // lost with the connection
	must(t, x.Follow(t.Context(), w, "/b"))
	if s.watches != 3 {
		t.Errorf("%d watches, want 3", s.watches)
	}
	x.Close(w)
	x.Close(w)
	if got := g.Used().Requests; got != 5 { // three watches were made, and two removed
		t.Errorf("%d requests charged, want 5", got)
	}
}

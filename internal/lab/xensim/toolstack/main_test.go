// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/simtest"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// lab is a simulation with a toolstack. Its script records its calls.
type lab struct {
	*Toolstack
	t    *testing.T
	dom0 *simclient.Conn
	path string // of the simulation

	mu     sync.Mutex
	calls  []string                    // of the scripts; guarded by mu
	script func(context.Context) error // the body of the script; guarded by mu
}

// short is a timeout for tests in which it expires.
const short = 100 * time.Millisecond

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, path: simtest.Start(t)}
	dir := l.path
	var err error
	if l.dom0, err = simclient.Dial(dir, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.dom0.Close() })
	l.Toolstack, err = New(l.dom0, Options{Script: l.hotplug, Block: l.hotplug})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (l *lab) hotplug(ctx context.Context, c Call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	state, _ := c.Store.Read(ctx, c.Backend+"/state")
	l.calls = append(l.calls, fmt.Sprintf("%s %s %s in state %s", c.Path, strings.Join(c.Args(), " "), fmt.Sprintf("%.3s%d.%d", c.Class, c.Domid, c.Devid), state))
	if l.script != nil {
		return l.script(ctx)
	}
	if c.Action == Online || c.Action == Add {
		return c.Store.Write(ctx, c.Backend+"/hotplug-status", "connected")
	}
	return nil
}

func (l *lab) wantCalls(want ...string) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.calls, want) {
		l.t.Errorf("script calls %q, want %q", l.calls, want)
	}
	l.calls = nil
}

// guest makes a domain without a vif.
func (l *lab) guest() xen.Domid {
	l.t.Helper()
	domid, _, err := l.Create(context.Background(), Config{Name: "guest", Domain: simclient.DomainConfig{Pages: 16}})
	if err != nil {
		l.t.Fatal(err)
	}
	return domid
}

// tree returns the nodes of all devices as xenstore-ls -fp shows them.
func (l *lab) tree() []string {
	l.t.Helper()
	var lines []string
	var walk func(string)
	walk = func(path string) {
		names, err := l.xs.List(l.t.Context(), path)
		if err != nil {
			return
		}
		slices.Sort(names)
		for _, name := range names {
			child := strings.TrimSuffix(path, "/") + "/" + name
			if strings.Contains(child, "/vif") || strings.Contains(child, "/vbd") {
				value, verr := l.xs.Read(l.t.Context(), child)
				perms, perr := l.xs.Permissions(l.t.Context(), child)
				if err := errors.Join(verr, perr); err != nil {
					l.t.Fatal(err)
				}
				var p []string
				for _, perm := range perms {
					p = append(p, perm.String())
				}
				lines = append(lines, fmt.Sprintf("%s = %q (%s)", child, value, strings.Join(p, ",")))
			}
			walk(child)
		}
	}
	walk("/")
	return lines
}

func (l *lab) wantNoDeviceNodes() {
	l.t.Helper()
	if left := l.tree(); len(left) > 0 {
		l.t.Errorf("nodes are left:\n%s", strings.Join(left, "\n"))
	}
}

// onChange calls f whenever a node changes, until f returns false or the test ends.
func (l *lab) onChange(path string, f func() bool) {
	l.t.Helper()
	w, err := l.xs.Watch(l.t.Context(), path)
	if err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	l.t.Cleanup(func() {
		w.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		for range w.C() {
			if !f() {
				return
			}
		}
	}()
}

// backend answers the toolstack for one vif as a backend does, until the test
// ends: state 2 to state 1, and, if it closes, state 6 to state 5.
func (l *lab) backend(domid xen.Domid, devid int, closes bool) {
	l.t.Helper()
	l.backendOf(newVif(domid, devid, 0), closes)
}

// backendOf does the same for any device.
func (l *lab) backendOf(d device, closes bool) {
	l.t.Helper()
	state := d.backendPath() + "/state"
	l.onChange(state, func() bool {
		_ = l.xs.Transaction(l.t.Context(), func(tx *xenstore.Tx) error {
			s, err := tx.Read(l.t.Context(), state)
			switch {
			case err != nil:
				return nil // no such vif, or not any more
			case s == "1":
				return tx.Write(l.t.Context(), state, "2")
			case s == "5" && closes:
				return tx.Write(l.t.Context(), state, "6")
			}
			return nil
		})
		return true
	})
}

func (l *lab) write(path, value string) {
	l.t.Helper()
	if err := l.xs.Write(l.t.Context(), path, value); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) wantNode(path, want string) {
	l.t.Helper()
	if got, err := l.xs.Read(l.t.Context(), path); err != nil || got != want {
		l.t.Errorf("%s is %q (%v), want %q", path, got, err, want)
	}
}

func (l *lab) wantGone(domid xen.Domid) {
	l.t.Helper()
	if _, err := l.ctl.Domain(domid); err == nil {
		l.t.Error("the domain still exists")
	}
	for _, path := range []string{domPath(domid), libxlPath(domid)} {
		if ok, err := l.xs.Exists(l.t.Context(), path); ok || err != nil {
			l.t.Errorf("%s: exists %v, %v", path, ok, err)
		}
	}
	if names, _ := l.xs.List(l.t.Context(), "/vm"); len(names) > 0 {
		l.t.Errorf("/vm has %v", names)
	}
}

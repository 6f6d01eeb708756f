// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
)

// toldKeeper is a service manager that records its messages, and that may hang.
type toldKeeper struct {
	hang chan struct{} // nil: calls do not hang; else each waits until it is closed

	mu   sync.Mutex // guards all below
	said []string
	has  map[string]int // how many files under each name
	err  error
}

func (k *toldKeeper) tell(what, name string, n int) error {
	if k.hang != nil {
		<-k.hang
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return k.err
	}
	k.said = append(k.said, what+" "+name)
	k.has[name] = n*k.has[name] + n
	return nil
}

func (k *toldKeeper) Store(name string, fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return err
	}
	return k.tell("store", name, 1)
}

func (k *toldKeeper) Remove(name string) error { return k.tell("remove", name, 0) }

// names returns the names of the kept files, one per file.
func (k *toldKeeper) names() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for n, count := range k.has {
		for range count {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (k *toldKeeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.said)
}

func (k *toldKeeper) await(t *testing.T, names string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); k.names() != names; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("kept %q, want %q", k.names(), names)
		}
	}
}

func newToldKeeper() *toldKeeper { return &toldKeeper{has: map[string]int{}} }

func eventfd(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestKeeperAtItsPace: one guest's queues come and go without end. The service manager is
// told of them at the rate of the guest's budget, and at the end keeps the files of the
// last queues. Another guest does not wait for that. No copy of a file is left.
func TestKeeperAtItsPace(t *testing.T) {
	open := openFiles(t)
	manager := newToldKeeper()
	k := newKeeper(manager, zap.NewNop())
	host := budget.NewHost(1)
	bad, good := host.Guest(), host.Guest()
	queue := eventfd(t)
	began := time.Now()
	for range 2000 {
		for _, name := range []string{"bad-0", "bad-1", "bad-2"} {
			if err := k.of(bad).Store(name, queue); err != nil {
				t.Fatal(err)
			}
		}
		k.of(bad).Remove("bad-2")
		time.Sleep(100 * time.Microsecond) // let the manager hear of some
	}
	if err := k.of(good).Store("good", queue); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(manager.names(), "good"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the other guest's queue is not kept")
		}
	}
	took := time.Since(began).Seconds()
	if most := budget.ManagerBurst + took*budget.ManagerRate + 2; float64(manager.count()) > most {
		t.Errorf("%d messages in %.1f s, want at most %.0f", manager.count(), took, most)
	}
	if u := bad.Used(); int(u.Messages)+1 != manager.count() {
		t.Errorf("%d messages are counted, of %d", u.Messages, manager.count())
	}
	k.close(time.Minute)
	if got, want := manager.names(), "bad-0 bad-1 good"; got != want {
		t.Errorf("at the end %q is kept, want %q", got, want)
	}
	_ = unix.Close(queue)
	if now := openFiles(t); now != open {
		t.Errorf("%d files are open, %d were at the beginning", now, open)
	}
}

// TestKeeperAfterAPredecessor removes, replaces and keeps files that a predecessor stored.
func TestKeeperAfterAPredecessor(t *testing.T) {
	manager := newToldKeeper()
	manager.has = map[string]int{"adopted": 1, "replaced": 1, "unknown": 2}
	k := newKeeper(manager, zap.NewNop())
	g := k.of(budget.NewHost(1).Guest())
	queue := eventfd(t)
	defer func() { _ = unix.Close(queue) }()
	g.Adopted("adopted")
	g.Adopted("replaced")
	g.Remove("unknown")
	if err := g.Store("replaced", queue); err != nil {
		t.Fatal(err)
	}
	k.close(time.Minute)
	if got, want := manager.names(), "adopted replaced"; got != want {
		t.Errorf("%q is kept, want %q", got, want)
	}
	if got, want := strings.Join(manager.said, ", "), "remove unknown, remove replaced, store replaced"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

// TestKeeperThatHangs: no vif waits for a service manager that hangs or fails. The keeper
// tells it everything when it works again.
func TestKeeperThatHangs(t *testing.T) {
	open := openFiles(t)
	manager := newToldKeeper()
	manager.hang = make(chan struct{})
	k := newKeeper(manager, zap.NewNop())
	g := k.of(budget.NewHost(1).Guest())
	queue := eventfd(t)
	for range 100 {
		if err := g.Store("a", queue); err != nil {
			t.Fatal(err)
		}
		g.Remove("b")
	}
	began := time.Now()
	k.close(10 * time.Millisecond)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	close(manager.hang)
	<-k.ended

	manager = newToldKeeper()
	manager.err = errors.New("busy")
	k = newKeeper(manager, zap.NewNop())
	g = k.of(budget.NewHost(1).Guest())
	if err := g.Store("a", queue); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); g.g.Used().Messages == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the manager was not told")
		}
	}
	manager.mu.Lock()
	manager.err = nil
	manager.mu.Unlock()
	manager.await(t, "a")
	k.close(time.Minute)
	_ = unix.Close(queue)
	if now := openFiles(t); now != open {
		t.Errorf("%d files are open, %d were at the beginning", now, open)
	}
}

// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestScan: the vifs that existed before the backend are served when it is ready.
func TestScan(t *testing.T) {
	w := newWorld(t)
	w.attach(3, 1)
	w.attach(3, 0)
	w.attach(12, 0)
	w.attach(4, 0)
	// Some entries are no vifs.
	for _, junk := range []string{"4/eth0", "4/01", "guest/0", "99999/0", "0x3/0", "4/-1"} {
		w.must(w.tool.Write(t.Context(), "/local/domain/0/backend/vif/"+junk+"/state", "1"))
	}
	w.must(w.tool.Mkdir(t.Context(), "/local/domain/0/backend/vif/5/0")) // no state: removed, or not complete yet
	b, _ := w.start()
	if n := len(b.List()); n != 4 {
		t.Errorf("ready with %d vifs", n)
	}
	w.await(b, "vif3.0", "vif3.1", "vif4.0", "vif12.0")
}

func TestAppearAndDisappear(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.await(b)
	w.attach(1, 0)
	w.await(b, "vif1.0")
	w.attach(1, 1)
	w.attach(2, 0)
	w.await(b, "vif1.0", "vif1.1", "vif2.0")
	w.detach(1, 0)
	w.await(b, "vif1.1", "vif2.0")
	for _, junk := range []string{"1/eth0", "guest/0", "99999/0", "1/-1"} {
		w.must(w.tool.Write(t.Context(), "/local/domain/0/backend/vif/"+junk+"/state", "1"))
	}
	w.attach(3, 0)
	w.await(b, "vif1.1", "vif2.0", "vif3.0")

	// A whole guest at once, and then all of them.
	w.attach(3, 1)
	w.await(b, "vif1.1", "vif2.0", "vif3.0", "vif3.1")
	w.must(w.tool.Remove(t.Context(), "/local/domain/0/backend/vif/3"))
	w.await(b, "vif1.1", "vif2.0")
	w.must(w.tool.Remove(t.Context(), "/local/domain/0/backend"))
	w.await(b)
	w.attach(1, 0)
	w.await(b, "vif1.0")
}

// TestMadeAgain: the toolstack makes a device again while its old vif is being removed.
func TestMadeAgain(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	for range 20 {
		w.attach(1, 0)
		w.detach(1, 0)
	}
	w.attach(1, 0)
	w.await(b, "vif1.0")
	for range 20 {
		w.detach(1, 0)
		w.attach(1, 0)
	}
	w.await(b, "vif1.0")
}

// TestDomainEnds: the nodes of a guest stay when it dies, until the toolstack
// comes.
func TestDomainEnds(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.attach(1, 0)
	w.attach(2, 0)
	w.await(b, "vif1.0", "vif2.0")
	w.srv.DomainShutdown(1) // the backend gets an event and changes nothing
	w.srv.DomainDied(2)
	deadline := time.Now().Add(10 * time.Second)
	for {
		taps := w.taps()
		if taps["vif2.0"] == 0 && taps["vif1.0"] != 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("interfaces %v", taps)
		}
		time.Sleep(time.Millisecond)
	}
	if s := b.List(); len(s) != 2 || s[1].State.String() != "closed" {
		t.Errorf("list %+v", s)
	}
	w.detach(2, 0)
	w.await(b, "vif1.0")
}

// TestFlood makes more changes at once than a watch queues.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.must(w.tool.Transaction(t.Context(), func(tx *xenstore.Tx) error {
		for i := range 300 {
			if err := tx.Write(t.Context(), fmt.Sprintf("/local/domain/0/backend/vif/7/0/junk-%d", i), "x"); err != nil {
				return err
			}
		}
		return nil
	}))
	var names []string
	for d := 1; d <= 20; d++ {
		w.attach(d, 0)
		names = append(names, fmt.Sprintf("vif%d.0", d))
	}
	w.await(b, names...)
}

// TestDriverDomain: the backend is not domain 0 and has no privileges.
func TestDriverDomain(t *testing.T) {
	w := newWorld(t)
	w.self = 9
	w.guest(9)
	perms := []xenstore.Perm{{Domid: 9, Access: xenstore.AccessNone}}
	for _, node := range []string{"/local/domain/9", "/local/domain/9/domid", "/local/domain/9/backend", "/local/domain/9/error"} {
		w.must(w.tool.Mkdir(t.Context(), node))
		w.must(w.tool.SetPermissions(t.Context(), node, perms))
	}
	w.must(w.tool.Write(t.Context(), "/local/domain/9/domid", "9"))
	w.guest(1)
	w.must(w.tool.Mkdir(t.Context(), "/local/domain/1/device"))
	w.must(w.tool.SetPermissions(t.Context(), "/local/domain/1/device", []xenstore.Perm{{Domid: 1, Access: xenstore.AccessNone}, {Domid: 9, Access: xenstore.AccessRead}}))
	w.attach(1, 0)
	b, _ := w.start()
	w.await(b, "vif1.0")
	w.attach(1, 1)
	w.await(b, "vif1.0", "vif1.1")
	w.must(w.tool.Remove(t.Context(), "/local/domain/9/backend/vif/1"))
	w.await(b)
}

// TestXenstoreRestarts: the vifs stay, and the backend finds the changes made meanwhile.
func TestXenstoreRestarts(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.attach(1, 0)
	w.attach(2, 0)
	w.attach(3, 0)
	w.await(b, "vif1.0", "vif2.0", "vif3.0")
	before := w.taps()
	for range 3 {
		w.cut()
		if n := len(b.List()); n != 3 {
			t.Errorf("%d vifs while xenstore is away", n)
		}
		if err := b.Reset("vif1.0"); err != nil {
			t.Error(err)
		}
		w.detach(2, 0)
		w.attach(4, 0)
		w.mend()
		w.await(b, "vif1.0", "vif3.0", "vif4.0")
		w.detach(4, 0)
		w.attach(2, 0)
		w.await(b, "vif1.0", "vif2.0", "vif3.0")
		after := w.taps()
		if before["vif1.0"] != after["vif1.0"] || before["vif3.0"] != after["vif3.0"] {
			t.Errorf("interfaces %v, before %v", after, before)
		}
	}
}

// TestXenstoreComesBackEmpty: the backend does not take an empty xenstore for the
// removal of all vifs. It keeps them and connects again.
func TestXenstoreComesBackEmpty(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.attach(1, 0)
	w.await(b, "vif1.0")
	before := w.taps()
	w.cut()
	full := w.srv
	emptied := newWorldServer(t)
	w.mu.Lock()
	w.srv = emptied
	w.mu.Unlock()
	w.mend()
	w.awaitLog("xenstore has come back empty")
	// The nodes that the toolstack writes at boot show no guest.
	tool := w.connect(0, xenstore.Socket)
	w.must(tool.Write(t.Context(), "/local/domain/0/domid", "0"))
	w.cut()
	w.mend()
	dials := w.dials()
	for deadline := time.Now().Add(10 * time.Second); w.dials() < dials+2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("xenstore is not looked at again")
		}
	}
	if diff := gocmp.Diff(before, w.taps()); diff != "" {
		t.Errorf("interfaces (-before +after):\n%s", diff)
	}
	w.mu.Lock()
	w.srv = full
	w.mu.Unlock()
	w.await(b, "vif1.0")
	if diff := gocmp.Diff(before, w.taps()); diff != "" {
		t.Errorf("interfaces (-before +after):\n%s", diff)
	}
	w.detach(1, 0)
	w.await(b)
}

// awaitLog waits for a line of the backend's log.
func (w *world) awaitLog(part string) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, e := range w.log.All() {
			if strings.Contains(e.Message+fmt.Sprint(e.ContextMap()), part) {
				return
			}
		}
	}
	w.t.Fatalf("the log does not say %q", part)
}

// TestNoXenstore: a backend that never connected to xenstore reports that.
func TestNoXenstore(t *testing.T) {
	w := newWorld(t)
	w.down = errors.New("xenstored is down")
	b := w.backend()
	err := b.Run(context.Background(), func() { t.Error("ready") })
	if !errors.Is(err, w.down) {
		t.Errorf("got %v", err)
	}
	if n := len(b.List()); n != 0 {
		t.Errorf("%d vifs after the end", n)
	}
	if err := b.Reset("vif1.0"); !errors.Is(err, ErrNoVif) {
		t.Errorf("reset after the end: %v", err)
	}

	w.down = nil
	w.must(w.tool.Write(t.Context(), "/local/domain/0/domid", "zero"))
	if err := w.backend().Run(context.Background(), func() { t.Error("ready") }); err == nil || !strings.Contains(err.Error(), `own domid is "zero"`) {
		t.Errorf("got %v", err)
	}
}

// TestStopWhileXenstoreIsAway: a daemon that is to stop does not wait for it.
func TestStopWhileXenstoreIsAway(t *testing.T) {
	w := newWorld(t)
	b, stop := w.start()
	w.attach(1, 0)
	w.await(b, "vif1.0")
	w.cut()
	w.awaitLog("xenstore connection lost")
	began := time.Now()
	stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	if w.taps()["vif1.0"] == 0 {
		t.Error("the TAP is gone")
	}
}

// TestSuccessor: a backend takes over the vifs that its predecessor left, except those
// that are gone.
func TestSuccessor(t *testing.T) {
	w := newWorld(t)
	b, stop := w.start()
	w.attach(1, 0)
	w.attach(2, 0)
	w.await(b, "vif1.0", "vif2.0")
	before := w.taps()
	w.must(os.WriteFile(filepath.Join(w.dir, "ring-2.0-0"), nil, 0o600))
	stop()
	if diff := gocmp.Diff(before, w.taps()); diff != "" {
		t.Errorf("interfaces after the end (-before +after):\n%s", diff)
	}
	if err := b.Reset("vif1.0"); !errors.Is(err, ErrNoVif) {
		t.Errorf("reset after the end: %v", err)
	}
	w.detach(2, 0)
	// Not ours, though it looks like it.
	d, err := tap.Create(tap.Config{Name: "vif9.0", Persist: true})
	w.must(err)
	w.must(d.CloseKeep())

	b, stop = w.start()
	delete(before, "vif2.0")
	after := w.taps()
	before["vif9.0"] = after["vif9.0"]
	if diff := gocmp.Diff(before, after); diff != "" {
		t.Errorf("interfaces of the successor (-before +after):\n%s", diff)
	}
	if files, err := os.ReadDir(w.dir); err != nil || len(files) != 0 {
		t.Errorf("journals %v, %v", files, err)
	}
	if n := len(b.List()); n != 1 {
		t.Errorf("%d vifs", n)
	}
	stop()
}

func TestReset(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.attach(1, 0)
	w.await(b, "vif1.0")
	if err := b.Reset("vif1.0"); err != nil {
		t.Error(err)
	}
	if err := b.Reset("vif1.1"); !errors.Is(err, ErrNoVif) || err.Error() != "vif1.1: no such vif" {
		t.Errorf("got %v", err)
	}
}

// TestXenstoreHangs: while xenstore hangs, the status shows the last known state.
func TestXenstoreHangs(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.attach(1, 0)
	w.attach(2, 0)
	w.await(b, "vif1.0", "vif2.0")
	t.Run("a vif waits for an answer", func(t *testing.T) {
		h := hung{entered: make(chan struct{}, 1), until: make(chan struct{})}
		v, _ := b.set.Find(xenbus.VifID{Domid: 1, Devid: 0}.Device())
		v.Vif.SetStore(t.Context(), h)
		<-h.entered
		list := b.List()
		if len(list) != 2 || list[0].Name != "vif1.0" || !strings.Contains(list[0].Error, "does not answer") ||
			list[1].Name != "vif2.0" || list[1].State != xenbus.InitWait {
			t.Errorf("list %+v", list)
		}
		lines := b.Lines()
		if len(lines) != 2 || lines[0].Name != "vif1.0" || lines[0].Error != list[0].Error ||
			lines[1].Name != "vif2.0" || lines[1].State != xenbus.InitWait || lines[1].Error != "" {
			t.Errorf("lines %+v", lines)
		}
		if err := b.Reset("vif1.0"); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("reset: %v", err)
		}
		close(h.until)
	})
	t.Run("the backend waits for an answer", func(t *testing.T) {
		letGo := w.hang()
		if list := b.List(); len(list) != 2 || list[0].State != xenbus.InitWait || list[1].State != xenbus.InitWait {
			t.Errorf("list %+v", list)
		}
		letGo()
		w.await(b, "vif1.0", "vif2.0")
	})
}

// TestEndsWhileXenstoreHangs: a backend that ends while xenstore hangs leaves its vifs to
// a successor.
func TestEndsWhileXenstoreHangs(t *testing.T) {
	w := newWorld(t)
	b, stop := w.start()
	w.attach(1, 0)
	w.await(b, "vif1.0")
	before := w.taps()
	letGo := w.hang()
	stop()
	letGo()
	if diff := gocmp.Diff(before, w.taps()); diff != "" {
		t.Errorf("interfaces (-before +after):\n%s", diff)
	}
	b, _ = w.start()
	w.await(b, "vif1.0")
}

// TestXenstoreComesBackEmptyWithoutVifs: a backend without vifs accepts an empty xenstore.
func TestXenstoreComesBackEmptyWithoutVifs(t *testing.T) {
	w := newWorld(t)
	b, _ := w.start()
	w.cut()
	full := w.srv
	t.Cleanup(func() { w.srv = full })
	emptied := newWorldServer(t)
	w.mu.Lock()
	w.srv = emptied
	w.mu.Unlock()
	w.tool = w.connect(0, xenstore.Socket)
	w.mend()
	w.awaitLog("xenstore connection restored")
	w.attach(1, 0)
	w.await(b, "vif1.0")
}

// hung is an xenstored that does not answer until the channel is closed.
type hung struct{ entered, until chan struct{} }

func (h hung) Read(context.Context, string) (string, error) {
	select {
	case h.entered <- struct{}{}:
	default:
	}
	<-h.until
	return "", xenstore.ErrClosed
}
func (h hung) Write(context.Context, string, string) error                 { return xenstore.ErrClosed }
func (h hung) Transaction(context.Context, func(*xenstore.Tx) error) error { return xenstore.ErrClosed }
func (h hung) WatchNode(context.Context, string) (*xenstore.Watch, error) {
	return nil, xenstore.ErrClosed
}
func (h hung) IsIntroduced(context.Context, xen.Domid) (bool, error) {
	return false, xenstore.ErrClosed
}

// TestManyVifs: a host full of guests starts, stops and is taken over.
func TestManyVifs(t *testing.T) {
	w := newWorld(t)
	var names []string
	for d := 1; d <= 100; d++ {
		w.attach(d, 0)
		names = append(names, fmt.Sprintf("vif%d.0", d))
	}
	b, stop := w.start()
	w.await(b, names...)
	before := w.taps()
	began := time.Now()
	stop()
	t.Logf("100 vifs stopped in %v", time.Since(began))
	b, _ = w.start()
	w.await(b, names...)
	if !maps.Equal(before, w.taps()) {
		t.Error("the successor made TAPs of its own")
	}
	w.must(w.tool.Remove(t.Context(), "/local/domain/0/backend"))
	w.await(b)
}

// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/sdnotify"
)

// manager plays the service manager.
type manager struct {
	t *testing.T

	mu    sync.Mutex // guards all below
	files []sdnotify.File
}

func (k *manager) Store(name string, fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	own, err := unix.Dup(fd)
	k.files = append(k.files, sdnotify.File{Name: name, FD: own})
	return err
}

func (k *manager) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files = slices.DeleteFunc(k.files, func(f sdnotify.File) bool {
		return f.Name == name && unix.Close(f.FD) == nil
	})
	return nil
}

// hand returns copies of the kept files, as a successor receives them.
func (k *manager) hand() (files []sdnotify.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files {
		fd, err := unix.Dup(f.FD)
		if err != nil {
			k.t.Fatal(err)
		}
		files = append(files, sdnotify.File{Name: f.Name, FD: fd})
	}
	return files
}

func (k *manager) names() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, f := range k.files {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// await waits until the files of these names are kept.
func (k *manager) await(names string) {
	k.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); k.names() != names; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("kept %q, want %q", k.names(), names)
		}
	}
}

// add keeps a file that belongs to no vif.
func (k *manager) add(name string) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		k.t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files = append(k.files, sdnotify.File{Name: name, FD: fd})
}

// TestKept: a successor takes the kept files of the vifs that exist. It closes the others
// and removes them from the keeper and the host.
func TestKept(t *testing.T) {
	w := newWorld(t)
	open := openFiles(t)
	k := &manager{t: t}
	w.keeper = k
	b, stop := w.start()
	w.attach(1, 0)
	w.attach(2, 0)
	w.await(b, "vif1.0", "vif2.0")
	k.await("tap-1.0-0 tap-2.0-0")
	before := w.taps()
	stop()
	w.detach(2, 0)
	for _, name := range []string{"stored", "tap-1.0-2", "tap-3.0-1", "tap-4.0-0", "tap-4.0-0", "tap-5.0-0"} {
		k.add(name)
	}
	w.kept = k.hand()
	b, stop = w.start()
	w.await(b, "vif1.0")
	k.await("tap-1.0-0")
	after := w.taps()
	if len(after) != 1 || after["vif1.0"] != before["vif1.0"] {
		t.Errorf("interfaces %v, before %v", after, before)
	}
	if b.Vifs() != 1 {
		t.Errorf("%d vifs", b.Vifs())
	}
	stop()
	if got, want := k.names(), "tap-1.0-0"; got != want {
		t.Errorf("kept at the end %q, want %q", got, want)
	}
	w.must(k.Remove("tap-1.0-0"))
	if now := openFiles(t); now != open {
		t.Errorf("%d files are open, %d were at the beginning", now, open)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestKeptWithoutXenstore: files that cannot be used yet stay kept.
func TestKeptWithoutXenstore(t *testing.T) {
	w := newWorld(t)
	k := &manager{t: t}
	k.add("tap-1.0-0")
	w.keeper, w.kept = k, k.hand()
	w.down = errors.New("xenstored is down")
	b := w.backend()
	if err := b.Run(context.Background(), func() {}); err == nil {
		t.Error("ran")
	}
	if got, want := k.names(), "tap-1.0-0"; got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
	w.must(k.Remove("tap-1.0-0"))
}

// TestPing: Run answers, with and without xenstore, and not while xenstore hangs.
func TestPing(t *testing.T) {
	w := newWorld(t)
	b, stop := w.start()
	ctx := context.Background()
	w.must(b.Ping(ctx))
	w.cut()
	w.must(b.Ping(ctx))
	w.mend()
	letGo := w.hang()
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := b.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	letGo()
	w.must(b.Ping(ctx))
	stop()
	ended, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := b.Ping(ended); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the end: %v", err)
	}
}

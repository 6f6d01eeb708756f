// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/iouring"
)

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		fmt.Fprintln(os.Stderr, fenceChild(args))
		os.Exit(1)
	}
	before := openFiles()
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines leak:", err)
		code = 1
	}
	// Go's poller opens one epoll and one eventfd on first use.
	if after := openFiles(); after > before+2 {
		fmt.Fprintf(os.Stderr, "%d files were open before the tests, %d are after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

// mode is one way in which an engine runs operations.
type mode struct {
	name     string
	cfg      Config
	noInline bool // writes through the page cache go to io_uring
}

var modes = []mode{
	{"io_uring", Config{}, false},
	{"io_uring alone", Config{}, true},
	{"threads", Config{NoIOUring: true}, false},
}

// eachMode runs a test in every mode, on a thread that it keeps.
func eachMode(t *testing.T, test func(t *testing.T, m mode)) {
	t.Helper()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			runtime.LockOSThread()
			t.Cleanup(runtime.UnlockOSThread)
			timer := time.AfterFunc(60*time.Second, func() { panic(t.Name() + " hangs") })
			t.Cleanup(func() { timer.Stop() })
			test(t, m)
		})
	}
}

// engine makes an engine of the mode for d.
func (m mode) engine(t testing.TB, d *disk.Disk) *Engine {
	t.Helper()
	e, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, e) })
	if !m.cfg.NoIOUring && errors.Is(e.IOUring(), iouring.ErrNotSupported) {
		t.Skip(e.IOUring())
	}
	m.set(t, e, d)
	return e
}

func (m mode) set(t testing.TB, e *Engine, d *disk.Disk) {
	t.Helper()
	if err := e.SetDisk(d); err != nil {
		t.Fatal(err)
	}
	e.inline.on = e.inline.on && !m.noInline
}

func shut(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// image makes a file of size bytes, not in tmpfs as a rule.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, o disk.Options) *disk.Disk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d, err := disk.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, d) })
	return d
}

// mapMemory maps n bytes outside the Go heap.
func mapMemory(t testing.TB, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// finish waits for n completions and returns their results by user value.
func finish(t testing.TB, e *Engine, n int) map[uint64]int32 {
	t.Helper()
	results := map[uint64]int32{}
	var done [3]Completion
	deadline := time.Now().Add(20 * time.Second)
	for len(results) < n {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d completions: %v", len(results), n, results)
		}
		if err := e.SubmitAndWait(1, time.Second); err != nil {
			t.Fatal(err)
		}
		for _, c := range done[:e.Completions(done[:])] {
			if _, twice := results[c.User]; twice {
				t.Fatalf("operation %d has completed twice", c.User)
			}
			results[c.User] = c.Res
		}
	}
	return results
}

// one waits for the completion of one operation, which was queued if ok.
func one(t testing.TB, e *Engine, ok bool) int32 {
	t.Helper()
	if !ok {
		t.Fatal("the engine is full")
	}
	for _, res := range finish(t, e, 1) {
		return res
	}
	return 0
}

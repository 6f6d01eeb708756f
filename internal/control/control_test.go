// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testProgram Program = "netbackd"

func client(t *testing.T, path string) *Client {
	c := NewClient(testProgram, path)
	t.Cleanup(c.Close)
	return c
}

func TestNoProcessListens(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	missing := filepath.Join(dir, "missing.sock")
	err := client(t, missing).Do(ctx, http.MethodGet, "/v1/vifs", nil)
	want := "netbackd is not running: no process listens at " + missing + "; start it with `systemctl start netbackd`, or `netbackd run` by hand"
	if !errors.Is(err, ErrNotRunning) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	// A socket that its daemon left.
	stale := filepath.Join(dir, "stale.sock")
	leaveSocket(t, stale)
	if err := client(t, stale).Do(ctx, http.MethodPost, "/v1/reset", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	// A socket without access.
	c := client(t, stale)
	if err := c.explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}); err.Error() !=
		"no permission to open "+stale+": run as root, or as a member of its group" {
		t.Errorf("got %v", err)
	}
	if other := errors.New("other"); c.explain(other) != other {
		t.Error("explained what it does not know")
	}
	// A canceled request.
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Do(ctx, http.MethodGet, "/v1/vifs", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// leaveSocket makes a socket as a killed daemon leaves it.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "control.sock")
	first, err := Listen(testProgram, path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}

	// One at a time, even if it does not answer.
	other, err := Listen(testProgram, path)
	if other != nil {
		t.Error("a listener and an error")
	}
	want := "another netbackd is running: it holds " + path + ".lock; stop it, or give this one another --run-dir"
	if !errors.Is(err, ErrRunning) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first one's socket is gone: %v", err)
	} else {
		_ = c.Close()
	}
	// Elsewhere is another matter.
	second, err := Listen(testProgram, filepath.Join(dir, "other", "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}

	if err := first.Close(); err != nil {
		t.Error(err)
	}
	leaveSocket(t, path)
	third, err := Listen(testProgram, path)
	if err != nil {
		t.Fatalf("after a daemon that was killed: %v", err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}

	t.Run("what is in the way", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(path, "directory"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(testProgram, path); !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("got %v", err)
		}
		// And it holds no lock.
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		l, err := Listen(testProgram, path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := Listen(testProgram, filepath.Join(dir, "run", "control.sock.lock", "control.sock")); err == nil {
			t.Error("listens below a file")
		}
		if _, err := Listen(testProgram, filepath.Join(dir, strings.Repeat("x", 200), "control.sock")); err == nil {
			t.Error("listens at a path longer than sockets have")
		}
	})
}

// TestServeFails: a closed listener is an error, the end of ctx is none.
func TestServeFails(t *testing.T) {
	l, err := Listen(testProgram, filepath.Join(t.TempDir(), "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Serve(context.Background(), l, http.NotFoundHandler(), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestLockOfRemovedFile: processes that begin and end at the same time never have a lock
// together.
func TestLockOfRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var mu sync.Mutex
	holders := 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				f, err := takeLock(testProgram, path)
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if holders++; holders > 1 {
					t.Error("two have the lock")
				}
				mu.Unlock()
				mu.Lock()
				holders--
				mu.Unlock()
				if err := errors.Join(os.Remove(path), f.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

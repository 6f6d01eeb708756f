// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// listen serves connections to a unix socket: every READ is answered with
// answer.
func listen(t *testing.T, path, answer string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				p := &peer{t: t, conn: conn, in: NewMessageReader(conn)}
				p.serve(func(m message) { p.reply(m, answer) })
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
}

// whoIs returns what the other side of c answers, and closes c.
func whoIs(t *testing.T, c *Client) string {
	t.Helper()
	defer c.Close()
	if c.Kind() != Socket {
		t.Errorf("kind %v", c.Kind())
	}
	got, err := c.Read(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDialSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen(t, path, "me")
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if got := whoIs(t, c); got != "me" {
		t.Errorf("got %q", got)
	}
}

func TestDialFirstTakesTheFirstThatAnswers(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	listen(t, b, "b")
	c, err := dialFirst(t.Context(), []string{a, b}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := whoIs(t, c); got != "b" {
		t.Errorf("got %q", got)
	}
	listen(t, a, "a")
	if c, err = dialFirst(t.Context(), []string{a, b}, nil); err != nil {
		t.Fatal(err)
	}
	if got := whoIs(t, c); got != "a" {
		t.Errorf("got %q", got)
	}
}

// Where xenstored has died, what is asked through the device waits for the next.
func TestDialFirstDoesNotGoOnFromTheSocketOfADeadXenstored(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, b, "b")
	if _, err := dialFirst(t.Context(), []string{a, b}, nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

func TestOpenFollowsTheEnvironment(t *testing.T) {
	if _, err := os.Stat(socketPath); err == nil {
		t.Skip("an xenstored runs here")
	}
	path := filepath.Join(t.TempDir(), "s")
	t.Setenv(pathEnv, path)
	if _, err := Open(t.Context()); err == nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("without a socket: %v", err)
	}
	listen(t, path, "me")
	c, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := whoIs(t, c); got != "me" {
		t.Errorf("got %q", got)
	}
}

func TestDialRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for name, path := range map[string]string{
		"nothing":                        filepath.Join(dir, "nothing"),
		"a file":                         file,
		"a directory":                    dir,
		"a socket without a listener":    stale,
		"a device that cannot be polled": "/dev/null",
	} {
		if c, err := Dial(t.Context(), path); err == nil {
			_ = c.Close()
			t.Errorf("%s: connected", name)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v does not name it", name, err)
		}
	}
}

// TestCloseWakesTheReaderOfADevice uses a pseudo terminal, which is like xenbus
// in all that matters: a character device with poll and nothing to read.
func TestCloseWakesTheReaderOfADevice(t *testing.T) {
	c, err := Dial(t.Context(), "/dev/ptmx")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.Kind() != Xenbus {
		t.Errorf("kind %v", c.Kind())
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-c.stopped:
	default:
		t.Error("the reader is left behind")
	}
}

func TestKind(t *testing.T) {
	if Socket.String() != "socket" || Xenbus.String() != "xenbus" {
		t.Errorf("%v %v", Socket, Xenbus)
	}
	if Socket.MaxRequest() != 4096 || Xenbus.MaxRequest() != 4080 {
		t.Errorf("%d %d", Socket.MaxRequest(), Xenbus.MaxRequest())
	}
}

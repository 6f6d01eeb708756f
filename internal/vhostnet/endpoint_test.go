// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// meets checks that a connection of an endpoint and one of a front end are the same.
func meets(t *testing.T, e Endpoint, front net.Conn) {
	t.Helper()
	back, err := e.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if _, err := front.Write([]byte{42}); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := io.ReadFull(back, b[:]); err != nil || b[0] != 42 {
		t.Errorf("got %d, %v", b[0], err)
	}
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// stale leaves a socket that no process listens on.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale(t, path)
	e, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode() != "listen" || e.Path() != path {
		t.Errorf("mode %s, path %s", e.Mode(), e.Path())
	}
	for range 2 {
		meets(t, e, dial(t, path))
	}
	if _, err := Listen(path, -1); err == nil || !strings.Contains(err.Error(), "another process listens at "+path) {
		t.Errorf("a second one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	<-ctx.Done()
	if c, err := dialed(ctx, e); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v, %v", c, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// dialed returns the next connection that is not the look of a second process for a listener.
func dialed(ctx context.Context, e Endpoint) (*net.UnixConn, error) {
	for {
		c, err := e.Next(ctx)
		if err != nil {
			return nil, err
		}
		_ = c.Close()
	}
}

func TestListenForGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	e, err := Listen(path, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                           "exists and is no socket",
		filepath.Join(dir, "no", "s"):  "its directory does not exist",
		dir + strings.Repeat("/x", 80): "invalid argument",
	} {
		e, err := Listen(path, -1)
		if err == nil {
			_ = e.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// TestConnect: a front end that is not there yet is tried again, and each new reason is told
// once.
func TestConnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	failures := make(chan error, 10)
	e := Connect(path, func(err error) { failures <- err })
	defer e.Close()
	listening := make(chan *net.UnixListener, 1)
	go func() {
		first := <-failures
		if !errors.Is(first, unix.ENOENT) {
			t.Errorf("error %v", first)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Error(err)
		}
		listening <- l
	}()
	back, err := e.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	l := <-listening
	defer l.Close()
	front, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	if len(failures) != 0 {
		t.Errorf("told again: %v", <-failures)
	}
	again, err := e.Next(t.Context()) // after the front end was restarted
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-failures; cancel() }()
	if _, err := e.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestInherit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	e, err := Inherit(fd)
	if err != nil {
		t.Fatal(err)
	}
	meets(t, e, dial(t, path))
	if e.Mode() != "fd" || e.Path() != path {
		t.Errorf("mode %s, path %s", e.Mode(), e.Path())
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its maker's socket is gone: %v", err)
	}

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	front := os.NewFile(uintptr(pair[0]), "front")
	defer front.Close()
	if e, err = Inherit(pair[1]); err != nil {
		t.Fatal(err)
	}
	c, err := e.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if _, err := e.Next(t.Context()); !errors.Is(err, ErrNoMore) {
		t.Errorf("a second connection: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestInheritErrors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, make := range map[string]func() (int, error){
		"a pipe":     func() (int, error) { return int(r.Fd()), nil },
		"not open":   func() (int, error) { return 1 << 20, nil },
		"a datagram": func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) },
		"netlink":    func() (int, error) { return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) },
	} {
		fd, err := make()
		if err != nil {
			t.Fatal(err)
		}
		if e, err := Inherit(fd); err == nil || !strings.Contains(err.Error(), "pass a unix stream socket") {
			t.Errorf("%s: %v, %v", name, e, err)
		}
		if name == "a datagram" || name == "netlink" {
			_ = unix.Close(fd)
		}
	}
}

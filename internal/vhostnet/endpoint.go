// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// ErrNoMore is returned by an Endpoint that has had its last connection.
var ErrNoMore = errors.New("no more connections")

// Endpoint makes the connections with front ends.
type Endpoint interface {
	// Next returns the next connection, and waits for one until ctx ends.
	Next(ctx context.Context) (*net.UnixConn, error)
	// Mode is "listen", "connect" or "fd".
	Mode() string
	// Path is that of the socket; empty: it has none.
	Path() string
	Close() error
}

// listening is an endpoint that front ends connect to.
type listening struct {
	l    *net.UnixListener
	mode string
}

// Listen makes a socket that front ends connect to. It replaces a socket of that path that
// no process listens on. Members of the group may connect; if it is negative the umask
// decides.
func Listen(path string, group int) (Endpoint, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	if group >= 0 {
		defer unix.Umask(unix.Umask(0o117)) // others cannot connect at any time
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen at %s: its directory does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, errors.Unwrap(err))
	}
	if group >= 0 {
		if err := os.Chown(path, -1, group); err != nil {
			return nil, errors.Join(fmt.Errorf("give the socket to its group: %w", err), l.Close())
		}
	}
	return &listening{l: l, mode: "listen"}, nil
}

// removeStale removes a socket that no process listens on.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: give another --socket-path, or remove it", path)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("another process listens at %s: end it, give another --socket-path, or connect to it with --connect", path), c.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a socket that no process listens on: %w", err)
		}
		return nil
	}
	return fmt.Errorf("find out if a process listens at %s: %w", path, errors.Unwrap(err))
}

func (e *listening) Next(ctx context.Context) (*net.UnixConn, error) {
	stop := context.AfterFunc(ctx, func() { _ = e.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := e.l.AcceptUnix()
	if ctx.Err() != nil {
		if c != nil {
			_ = c.Close()
		}
		return nil, ctx.Err()
	}
	return c, err
}

func (e *listening) Mode() string { return e.mode }
func (e *listening) Path() string { return e.l.Addr().String() }
func (e *listening) Close() error { return e.l.Close() }

// connecting is an endpoint that connects to a front end that listens.
type connecting struct {
	path   string
	failed func(error) // called for an error that differs from the last one
	reason string      // of the last failure
	wait   time.Duration
	ended  time.Time // when Next last returned a connection
}

// Waits of a connecting endpoint.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
	steady     = 5 * time.Second // a connection that has lasted so long is no failure
)

// Connect makes an endpoint that connects to a socket that a front end listens on, again and
// again, with waits between 100 ms and 2 s. It calls failed for each new kind of failure.
func Connect(path string, failed func(error)) Endpoint {
	return &connecting{path: path, failed: failed}
}

func (e *connecting) Next(ctx context.Context) (*net.UnixConn, error) {
	if e.wait > 0 && time.Since(e.ended) > steady {
		e.wait = firstRetry
	}
	for {
		if err := sleep(ctx, e.wait); err != nil {
			return nil, err
		}
		e.wait = min(max(2*e.wait, firstRetry), lastRetry)
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", e.path)
		if ctx.Err() != nil {
			if c != nil {
				_ = c.Close()
			}
			return nil, ctx.Err()
		}
		if err == nil {
			e.reason, e.ended = "", time.Now()
			return c.(*net.UnixConn), nil
		}
		if text := err.Error(); text != e.reason {
			e.reason = text
			e.failed(err)
		}
	}
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *connecting) Mode() string { return "connect" }
func (e *connecting) Path() string { return e.path }
func (e *connecting) Close() error { return nil }

// once is an endpoint with one connection, which another program has made.
type once struct{ c *net.UnixConn }

func (e *once) Next(context.Context) (*net.UnixConn, error) {
	if e.c == nil {
		return nil, ErrNoMore
	}
	c := e.c
	e.c = nil
	return c, nil
}

func (e *once) Mode() string { return "fd" }
func (e *once) Path() string { return "" }

func (e *once) Close() error {
	if e.c == nil {
		return nil
	}
	return e.c.Close()
}

// Inherit makes an endpoint of a stream socket that another program passed: one that it
// listens on, or one that is connected. The descriptor is the endpoint's from then on, unless
// there is an error.
func Inherit(fd int) (Endpoint, error) {
	listens, err := checkSocket(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: pass a unix stream socket that is connected or that is listened on", fd, err)
	}
	unix.CloseOnExec(fd)
	if !listens {
		c, err := vhostuser.NewConn(fd)
		if err != nil {
			return nil, err
		}
		return &once{c}, nil
	}
	f := os.NewFile(uintptr(fd), "vhost-user")
	defer f.Close() // the listener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener) // checkSocket has seen it
	u.SetUnlinkOnClose(false)  // its maker's
	return &listening{l: u, mode: "fd"}, nil
}

// checkSocket reports whether a unix stream socket is listened on.
func checkSocket(fd int) (listens bool, err error) {
	for _, want := range []struct{ option, value int }{{unix.SO_DOMAIN, unix.AF_UNIX}, {unix.SO_TYPE, unix.SOCK_STREAM}} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil {
			return false, err
		}
		if v != want.value {
			return false, unix.EPROTOTYPE
		}
	}
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return v != 0, err
}

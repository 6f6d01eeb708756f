// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning: another daemon serves at the socket.
var ErrRunning = errors.New("another netbackd is running")

// Listen makes the socket. One daemon at a time holds the lock beside it, for as
// long as it lives, however it ends; so the socket that a dead one left can be
// replaced, and what else is in the directory belongs to one daemon alone.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, err
	}
	l, err := listen(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &listener{Listener: l, lock: lock}, nil
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		err = fmt.Errorf("%w: it holds %s; stop it, or give this one another --run-dir", ErrRunning, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// listener keeps the lock as long as the socket.
type listener struct {
	net.Listener
	lock *os.File
}

func (l *listener) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// limits bound what clients take. One that does not send, or does not read, has its
// connection closed; until then it is one of clients.
type limits struct {
	clients int
	read    time.Duration // for a request to come
	write   time.Duration // for an answer to be made and read
	idle    time.Duration // between two requests
}

// served are the limits of Serve. An answer may take 15 s to make.
var served = limits{clients: 64, read: 5 * time.Second, write: 20 * time.Second, idle: 10 * time.Second}

const maxHeader = 8 << 10 // bytes

// crowd is a listener that accepts a connection when fewer than its capacity are open.
type crowd struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newCrowd(l net.Listener, most int) *crowd {
	return &crowd{Listener: l, places: make(chan struct{}, most), closed: make(chan struct{})}
}

func (c *crowd) Accept() (net.Conn, error) {
	select {
	case c.places <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.Listener.Accept()
	if err != nil {
		<-c.places
		return nil, err
	}
	return &placed{Conn: conn, leave: sync.OnceFunc(func() { <-c.places })}, nil
}

func (c *crowd) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Listener.Close()
}

// placed is a connection that gives its place back when it is closed.
type placed struct {
	net.Conn
	leave func()
}

func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}

// Serve answers at l until ctx ends. It writes to log what goes wrong with clients.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *log.Logger) error {
	return served.serve(ctx, l, h, log)
}

func (m limits) serve(ctx context.Context, l net.Listener, h http.Handler, log *log.Logger) error {
	l = newCrowd(l, m.clients)
	s := &http.Server{
		Handler: h, ErrorLog: log,
		ReadTimeout: m.read, WriteTimeout: m.write, IdleTimeout: m.idle, MaxHeaderBytes: maxHeader,
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

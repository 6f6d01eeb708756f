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

// Listen makes the socket. A daemon holds a lock file beside it until its process ends. So
// the next daemon can replace the socket of a dead one, and the directory belongs to one
// daemon at a time.
func Listen(program Program, path string) (net.Listener, error) {
	l, err := listenLocked(program, path)
	if err != nil {
		return nil, err // without the nil pointer
	}
	return l, nil
}

func listenLocked(program Program, path string) (*listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	lock, err := takeLock(program, path+lockSuffix)
	if err != nil {
		return nil, err
	}
	l, err := listen(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &listener{Listener: l, lock: lock}, nil
}

// lockSuffix ends the name of the lock file of a socket.
const lockSuffix = ".lock"

// takeLock takes the lock. A file that was removed before it was locked is no lock.
func takeLock(program Program, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK {
			err = kindError{ErrRunning, fmt.Sprintf("another %s is running: it holds %s; stop it, or give this one another --run-dir", program, path)}
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if isFile(f, path) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// isFile reports whether f is still the file of a path.
func isFile(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(ours, theirs)
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

// ListenOnce is Listen for a process that may be the last one of its socket: Close removes
// the lock as well, and may be called again.
func ListenOnce(program Program, path string) (net.Listener, error) {
	l, err := listenLocked(program, path)
	if err != nil {
		return nil, err
	}
	return &onceListener{l, path}, nil
}

// onceListener removes the socket and its lock.
type onceListener struct {
	*listener
	path string
}

func (l *onceListener) Close() error {
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	// The lock is removed while it is held, so that no other process has it.
	return errors.Join(err, os.Remove(l.path+lockSuffix), l.lock.Close())
}

// RemoveDead removes the socket and the lock of a process that was killed, if this user may.
// A process that is about to listen there has the lock.
func RemoveDead(program Program, path string) {
	lock, err := takeLock(program, path+lockSuffix)
	if err != nil {
		return
	}
	defer lock.Close()
	if err := unix.Unlink(path); err == nil || errors.Is(err, os.ErrNotExist) {
		_ = unix.Unlink(path + lockSuffix)
	}
}

// limits bound the resources of clients. The connection of a client that does not send, or
// does not read, is closed when its time is over.
type limits struct {
	clients int
	read    time.Duration // to receive a request
	write   time.Duration // to make an answer and have it read
	idle    time.Duration // between two requests
}

// served are the limits of Serve. An answer may take 15 s to make.
var served = limits{clients: 64, read: 5 * time.Second, write: 20 * time.Second, idle: 10 * time.Second}

const maxHeader = 8 << 10 // bytes

// limitedListener accepts a connection when fewer than its limit are open.
type limitedListener struct {
	net.Listener
	open   chan struct{} // holds one for each open connection
	closed chan struct{}
	once   sync.Once
}

func newLimitedListener(l net.Listener, most int) *limitedListener {
	return &limitedListener{Listener: l, open: make(chan struct{}, most), closed: make(chan struct{})}
}

func (c *limitedListener) Accept() (net.Conn, error) {
	select {
	case c.open <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.Listener.Accept()
	if err != nil {
		<-c.open
		return nil, err
	}
	return &limitedConn{Conn: conn, closed: sync.OnceFunc(func() { <-c.open })}, nil
}

func (c *limitedListener) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Listener.Close()
}

// limitedConn is a connection of a limitedListener.
type limitedConn struct {
	net.Conn
	closed func()
}

func (c *limitedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// Serve serves requests at l until ctx ends. It logs the errors of connections.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *log.Logger) error {
	return served.serve(ctx, l, h, log)
}

func (m limits) serve(ctx context.Context, l net.Listener, h http.Handler, log *log.Logger) error {
	l = newLimitedListener(l, m.clients)
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

// SPDX-License-Identifier: Apache-2.0

package xensim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// Options are the settings of Run.
type Options struct {
	// Dom0 sizes dom0, which exists from the start.
	Dom0 wire.DomainConfig
	// Store sets up the xenstored.
	Store store.Options
	// Ready, if not nil, is called once both sockets accept connections.
	Ready func()
}

// ErrBusy is returned by Run when another simulation serves the directory.
var ErrBusy = errors.New("another simulation runs in this directory")

// Run serves the simulation in dir until ctx is done, and then returns nil. It makes dir
// if it does not exist. The sockets appear under their names only when they accept
// connections. All domains end with the simulation.
func Run(ctx context.Context, dir string, opts Options) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()

	hv, err := hyp.New(opts.Dom0)
	if err != nil {
		return fmt.Errorf("dom0: %w", err)
	}
	defer hv.Close()
	xs := store.New(opts.Store)
	s := newServer(hv, xs)

	storeListener, err := listenStore(dir)
	if err != nil {
		return errors.Join(err, xs.Close())
	}
	listener, err := listen(dir, wire.HypercallSocket)
	if err != nil {
		return errors.Join(err, storeListener.Close(), xs.Close())
	}
	failed := make(chan error, 2)
	go func() { failed <- xs.Serve(storeListener) }()
	go func() { failed <- s.accept(listener) }()
	if opts.Ready != nil {
		opts.Ready()
	}

	running := 2
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
	}
	hv.Interrupt()
	_ = unix.Shutdown(listener, unix.SHUT_RDWR) // ends accept
	s.close()
	err = errors.Join(err, xs.Close())
	for range running {
		<-failed //nolint:errcheck // ended by us
	}
	_ = unix.Close(listener)
	s.wait()
	for _, name := range []string{wire.HypercallSocket, wire.XenstoreSocket} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	return err
}

// lock makes this process the only one that serves dir.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%s: %w", dir, ErrBusy)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// listen makes the socket name in dir. The socket gets its name only after it listens, so
// that a process that finds it can connect.
func listen(dir, name string) (int, error) {
	typ := unix.SOCK_SEQPACKET
	if name == wire.XenstoreSocket {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) {
		_ = unix.Close(fd)
		return -1, err
	}
	tmp := name + ".new"
	if err := os.Remove(filepath.Join(dir, tmp)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	if err := wire.AtSocket(dir, tmp, func(addr unix.Sockaddr) error { return unix.Bind(fd, addr) }); err != nil {
		return fail(err)
	}
	if err := os.Chmod(filepath.Join(dir, tmp), 0o600); err != nil {
		return fail(err)
	}
	if err := unix.Listen(fd, 512); err != nil {
		return fail(fmt.Errorf("listen on %s/%s: %w", dir, name, err))
	}
	if err := os.Rename(filepath.Join(dir, tmp), filepath.Join(dir, name)); err != nil {
		return fail(err)
	}
	return fd, nil
}

// listenStore is like listen for the socket xenstored serves.
func listenStore(dir string) (net.Listener, error) {
	fd, err := listen(dir, wire.XenstoreSocket)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), wire.XenstoreSocket)
	defer f.Close() // FileListener has a descriptor of its own
	return net.FileListener(f)
}

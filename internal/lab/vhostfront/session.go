// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// session is a connection with a back end.
type session struct {
	*vhostuser.Frontend
	features, protocol uint64
	memory             bool          // the back end has the memory
	lost               chan struct{} // closed when the back end has closed the connection
	end                func() error
}

// retry is the time between two attempts to connect.
const retry = 10 * time.Millisecond

// connect waits for a back end.
func (d *Device) connect(ctx context.Context) (*net.UnixConn, error) {
	if d.ln != nil {
		defer context.AfterFunc(ctx, func() { _ = d.ln.SetDeadline(time.Unix(1, 0)) })()
		_ = d.ln.SetDeadline(time.Time{})
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, err := d.ln.AcceptUnix()
		if err != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		return c, nil
	}
	var dialer net.Dialer
	for {
		c, err := dialer.DialContext(ctx, "unix", d.cfg.Socket)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// listen opens the socket of a server.
func (d *Device) listen() (err error) {
	if !d.cfg.Server {
		return nil
	}
	if err := os.Remove(d.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d.ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: d.cfg.Socket, Net: "unix"})
	return err
}

// newSession begins a session and watches the connection.
func newSession(c *net.UnixConn) (*session, error) {
	raw, err := c.SyscallConn()
	fd := -1
	if err == nil {
		err = errors.Join(raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) }), err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vhostfront: watch the connection: %w", err), c.Close())
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vhostfront: watch the connection: %w", err), c.Close(), unix.Close(fd))
	}
	s := &session{Frontend: vhostuser.NewFrontend(c), lost: make(chan struct{})}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if hungUp(fd, stop) {
			close(s.lost)
		}
	}()
	s.end = sync.OnceValue(func() error {
		notify(stop)
		<-watched
		return errors.Join(s.Frontend.Close(), unix.Close(fd), unix.Close(stop))
	})
	return s, nil
}

// hungUp waits until the other end of a connection is closed, or, and then it returns false,
// stop is readable.
func hungUp(fd, stop int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil || fds[1].Revents != 0:
			return false
		case fds[0].Revents != 0:
			return true
		}
	}
}

// negotiate agrees on features in the order of QEMU. Those that are not the first session's
// are an error, since the rings exist already.
func (d *Device) negotiate(s *session, want uint64) error {
	if d.cfg.MTU > 0 {
		if err := d.sendMTU(s); err != nil {
			return err
		}
	}
	features, protocol, err := s.Negotiate(want, d.cfg.protocol())
	if err != nil {
		return fmt.Errorf("vhostfront: negotiate: %w", err)
	}
	s.features, s.protocol = features, protocol
	if d.began && features&^featLogAll != d.rules.features {
		return fmt.Errorf("vhostfront: the back end agrees on features %#x, its predecessor on %#x", features, d.rules.features)
	}
	if n, err := s.Get(vhostuser.GetQueueNum); err != nil || n < uint64(d.cfg.Pairs) {
		return errors.Join(fmt.Errorf("vhostfront: %d pairs of queues, the back end has %d", d.cfg.Pairs, n), err)
	}
	if s.has(vhostuser.ProtocolStatus) {
		return s.U64(vhostuser.SetStatus, 0xb) // acknowledge, driver, features
	}
	return nil
}

func (s *session) has(bit uint64) bool { return s.protocol&bit != 0 }

// sendMTU tells the MTU, before the features, if the back end takes it.
func (d *Device) sendMTU(s *session) error {
	offered, err := s.Get(vhostuser.GetFeatures)
	if err != nil || offered&featMTU == 0 {
		return err
	}
	have, err := s.Get(vhostuser.GetProtocolFeatures)
	if err != nil || have&vhostuser.ProtocolMTU == 0 {
		return err
	}
	if err := s.U64(vhostuser.SetProtocolFeatures, have&d.cfg.protocol()); err != nil {
		return err
	}
	return s.U64(vhostuser.NetSetMTU, uint64(d.cfg.MTU))
}

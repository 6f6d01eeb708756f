// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Errors of Server, beside those with which the store ends a connection.
var (
	// ErrClosed: the server is closed.
	ErrClosed = errors.New("xenstore server closed")

	// ErrNoDomain: there is no such domain to connect.
	ErrNoDomain = errors.New("no such domain")

	// ErrTooLong: the client announced a request longer than its connection
	// may carry.
	ErrTooLong = errors.New("request too long")
)

// Options are the settings of a Server.
type Options struct {
	// Quota limits unprivileged domains. The zero value is xenstored's.
	Quota Quota
}

// Server is a xenstored. Its methods may be called from any goroutine.
type Server struct {
	work chan func() // to be run by the loop
	done chan struct{}

	// The fields below belong to the loop.
	state     *state
	links     []*link
	listeners map[net.Listener]bool
	users     int // Serve and ServeConn calls under way
	closing   bool
}

// link transports a connection's bytes: a reader and a writer around a conn.
type link struct {
	conn *conn
	rw   io.Closer

	// The loop sends one token for each request that it will take.
	turn chan struct{}
	// The loop sends a message when the writer has none.
	send chan []byte
	// Closed by the loop, after conn.dead is set.
	gone chan struct{}

	granted bool // turn was given and not used yet; belongs to the loop
}

// New starts a store with the content of xenstored after boot: domain 0, introduced, and
// the nodes /, /tool and /tool/xenstored. Close stops it.
func New(opts Options) *Server {
	s := &Server{
		work:      make(chan func()),
		done:      make(chan struct{}),
		state:     newState(opts.Quota),
		listeners: map[net.Listener]bool{},
	}
	go s.loop()
	return s
}

// Close ends all connections, closes the listeners given to Serve, and waits until the
// calls of Serve and ServeConn return.
func (s *Server) Close() error {
	s.do(func() {
		s.closing = true
		for l := range s.listeners {
			_ = l.Close()
		}
		for _, k := range s.links {
			s.state.kill(k.conn, ErrClosed)
		}
	})
	<-s.done
	return nil
}

// DomainCreated tells the store that a domain exists. Only then can it be introduced and
// get permissions and nodes. The toolstack introduces it by INTRODUCE.
func (s *Server) DomainCreated(domid xen.Domid) {
	s.do(func() { s.state.created(uint32(domid)) })
}

// DomainShutdown tells the store that a domain has shut down, crashed or suspended, but
// still exists: @releaseDomain fires, once until RESUME.
func (s *Server) DomainShutdown(domid xen.Domid) {
	s.do(func() { s.state.wentDown(uint32(domid)) })
}

// DomainDied tells the store that a domain is dying or gone. The store closes its
// connections, removes the nodes that it owns with all below them, and voids the
// permissions granted to it. If it was introduced, @releaseDomain fires.
func (s *Server) DomainDied(domid xen.Domid) {
	s.do(func() {
		if d := s.state.domains[uint32(domid)]; d != nil && d.unprivileged() {
			s.state.died(d, ErrDomainDied)
		}
	})
}

// Serve serves the connections l accepts as Socket, until l fails or the server
// is closed. It closes l. The error is ErrClosed after Close.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	ok := s.do(func() {
		s.users++
		s.listeners[l] = true
		if s.closing {
			_ = l.Close()
		}
	})
	if !ok {
		return ErrClosed
	}
	var err error
	for {
		var c net.Conn
		if c, err = l.Accept(); err != nil {
			break
		}
		go func() {
			// It is refused if the server has closed meanwhile.
			_ = s.ServeConn(c, 0, xenstore.Socket)
		}()
	}
	s.do(func() {
		s.users--
		delete(s.listeners, l)
		if s.closing {
			err = ErrClosed
		}
	})
	return err
}

// ServeConn serves one connection until the client or the server ends it. It closes rw,
// which must end a running Read or Write. The error is the server's reason for the end,
// nil if the client ended the connection.
//
// A Socket is like xenstored's own socket: domain 0's, privileged, with relative paths
// below /local/domain/0. A Xenbus is /dev/xen/xenbus of a domain, which may open it as
// soon as it exists. Its requests wait until the domain is introduced, have the domain's
// rights and quotas, and relative paths start at its home.
func (s *Server) ServeConn(rw io.ReadWriteCloser, domid xen.Domid, kind xenstore.Kind) error {
	defer rw.Close()
	k := &link{
		rw:   rw,
		turn: make(chan struct{}, 1),
		send: make(chan []byte, 1),
		gone: make(chan struct{}),
	}
	var err error
	ok := s.do(func() { err = s.attach(k, domid, kind) })
	if !ok {
		return ErrClosed
	}
	if err != nil {
		return err
	}
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		s.write(k, rw)
	}()
	end := s.read(k, rw, kind)
	s.do(func() { s.state.kill(k.conn, end) })
	<-wrote
	s.do(func() {
		err = k.conn.dead
		s.users--
	})
	if errors.Is(err, errHungUp) {
		return nil
	}
	return err
}

// errHungUp: the client ended the connection, or it broke.
var errHungUp = errors.New("client hung up")

// read passes the requests of a connection to the loop and returns the reason for the end.
// It reads one request ahead of the loop, so that it sees the client hang up even while
// the client has to wait.
func (s *Server) read(k *link, r io.Reader, kind xenstore.Kind) error {
	in := xenstore.NewMessageReader(r)
	for {
		h, payload, err := in.Next()
		switch {
		case errors.Is(err, xenstore.ErrProtocol):
			return fmt.Errorf("%w: %w", ErrTooLong, err)
		case err != nil:
			return errHungUp
		case int(h.Len) > kind.MaxRequest():
			return fmt.Errorf("%w: %v has %d bytes of payload, over %v at most %d are allowed",
				ErrTooLong, h.Type, h.Len, kind, kind.MaxRequest())
		}
		payload = bytes.Clone(payload)
		select {
		case <-k.turn:
		case <-k.gone:
			return errHungUp // the connection has a better reason already
		}
		s.do(func() {
			k.granted = false
			s.state.serve(k.conn, h, payload)
		})
	}
}

// write writes the loop's messages, one at a time.
func (s *Server) write(k *link, w io.Writer) {
	for {
		select {
		case m := <-k.send:
			_, err := w.Write(m)
			s.do(func() {
				s.state.written(k.conn)
				if err != nil {
					s.state.kill(k.conn, errHungUp)
				}
			})
		case <-k.gone:
			return
		}
	}
}

// do has the loop run f and returns when it has. It reports false if the server
// is closed.
func (s *Server) do(f func()) bool {
	ran := make(chan struct{})
	select {
	case s.work <- func() { f(); close(ran) }:
		<-ran
		return true
	case <-s.done:
		return false
	}
}

// loop owns the state. It never waits for a client: readers send requests to it, and it
// sends a message only to an idle writer.
func (s *Server) loop() {
	defer close(s.done)
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for !s.closing || s.users > 0 {
		select {
		case f := <-s.work:
			f()
		case <-alarm.C:
		}
		if next, ok := s.settle(time.Now()); ok {
			alarm.Reset(time.Until(next))
		} else {
			alarm.Stop()
		}
	}
}

func (s *Server) attach(k *link, domid xen.Domid, kind xenstore.Kind) error {
	var d *domain
	switch {
	case s.closing:
		return ErrClosed
	case kind == xenstore.Xenbus:
		if d = s.state.domains[uint32(domid)]; d == nil {
			return fmt.Errorf("%w: %d", ErrNoDomain, domid)
		}
	case domid != 0:
		return fmt.Errorf("%w: a socket is domain 0's, not domain %d's", ErrNoDomain, domid)
	}
	k.conn = s.state.newConn(d)
	s.links = append(s.links, k)
	s.users++
	return nil
}

// settle updates every connection: it drops events that waited too long, gives idle
// writers a message, allows reads from clients that may be read, and closes dead
// connections. It returns the next time at which the passing of time changes something.
func (s *Server) settle(now time.Time) (next time.Time, ok bool) {
	sooner := func(t time.Time) {
		if !ok || t.Before(next) {
			next, ok = t, true
		}
	}
	// Drop events first, since another client may wait for that.
	for _, k := range s.links {
		if t := s.state.expire(k.conn, now); !t.IsZero() {
			sooner(t)
		}
	}
	alive := s.links[:0]
	for _, k := range s.links {
		c := k.conn
		if c.dead != nil {
			close(k.gone)
			_ = k.rw.Close()
			continue
		}
		alive = append(alive, k)
		if !c.taken && len(c.out) > 0 {
			k.send <- c.take()
		}
		if k.granted {
			continue
		}
		may, wait := s.state.mayBeRead(c, now)
		if may {
			k.granted = true
			k.turn <- struct{}{}
		} else if wait > 0 {
			sooner(now.Add(wait))
		}
	}
	if len(alive) < len(s.links) {
		clear(s.links[len(alive):])
		s.links = alive
		s.state.bury()
	}
	return next, ok
}

// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Mapper maps pages of a guest. *gntdev.Device is one.
type Mapper interface {
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
	Close() error
}

// Events is a handle for event channels. *evtchn.Device is one.
type Events interface {
	dataplane.Events
	BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error)
	Close() error
}

// Records keeps the record of a control ring for a successor.
type Records interface {
	// Load returns the last record that was stored, or fs.ErrNotExist.
	Load() ([]byte, error)
	// Store replaces the record. When it returns, a successor finds the new one.
	Store(record []byte) error
}

// Steering steers the packets of a TAP in the host's kernel. *steer.Kernel is one.
type Steering interface {
	// Set makes the kernel steer by c; nil leaves the choice to the host. When it returns,
	// the last packet has been steered the old way.
	Set(c *steer.Config) error
	Close() error
}

// StaticGrants bounds the pages that the backend keeps mapped for a guest.
type StaticGrants struct {
	PerQueue int                 // 0: static grants are not supported
	Budget   *staticgrant.Budget // shared by all vifs of the guest; nil: no bound
}

// Config describes the connection of a control ring.
type Config struct {
	Domid      xen.Domid
	Connection Connection
	Offered    Protocols // protocols that were offered to the frontend

	// Known is set if a predecessor served this connection, so that its record is
	// valid. Served is set if any backend has served its rings before.
	Known, Served bool

	StaticGrants StaticGrants
	// Steering steers packets in the kernel; nil: it takes no steering programs, because of
	// NoBPF. The server closes it.
	Steering Steering
	NoBPF    error
	Records  Records // keeps the record; nil: nothing does
	Guest    *budget.Guest
	Log      *zap.Logger
}

// Server serves a control ring. Its methods belong to the goroutine of the vif.
type Server struct {
	cfg  Config
	log  *zap.Logger
	turn *budget.Turn // turn of the server's goroutine

	mapper Mapper
	page   *gntdev.Mapping
	events Events
	port   evtchn.Port

	ring     ctrlring.Back     // nil: not served any more
	failed   error             // reason for that
	protocol ctrlring.Protocol // 0: not known, and there are no settings
	calls    ctrlring.Calls

	hash  hashHandler
	grefs grefHandler
	steer steering
	conn  *dataplane.Conn

	messages, refused uint64
	status            atomic.Pointer[Status]

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // nil: not started
}

// Open maps the control ring, binds its event channel, and restores the record of a
// predecessor. If it fails it closes mapper and events. An unusable ring is not a failure:
// the connection is made without it, and Status returns the reason.
func Open(cfg Config, mapper Mapper, events Events) (_ *Server, err error) {
	s := &Server{cfg: cfg, log: cfg.Log, turn: cfg.Guest.Turn(), mapper: mapper, events: events}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = fmt.Errorf("control ring: %w", errors.Join(err, s.Close()))
		}
	}()
	ring := cfg.Connection.Control
	if s.page, err = mapper.Map(cfg.Domid, []xen.Gref{ring.Gref}, gntdev.ReadWrite); err != nil {
		return nil, fmt.Errorf("map ring: %w", err)
	}
	if s.port, err = events.BindInterdomain(cfg.Domid, ring.Port); err != nil {
		return nil, err
	}
	queues := len(cfg.Connection.Queues)
	s.hash = newHashHandler(queues)
	s.calls = ctrlring.Calls{Domid: cfg.Domid, Mapper: mapper, Hash: &s.hash}
	if cfg.StaticGrants.PerQueue > 0 {
		source := staticgrant.Source{Mapper: mapper, Domid: cfg.Domid, Budget: cfg.StaticGrants.Budget}
		s.grefs = newGrefHandler(s.ctx, s.log, source, cfg.StaticGrants.PerQueue, queues)
		s.calls.Grefs = &s.grefs
	}
	if queues > 1 {
		s.steer.userspace = cfg.NoBPF
		s.steer.kernel = cfg.Steering
	}
	return s, s.attach()
}

// attach attaches to the ring, with the state from a predecessor's record or as a new one.
// It records a new ring, because the protocol cannot be found out from the page of a ring
// that has been used.
func (s *Server) attach() error {
	r := s.loadRecord()
	var err error
	switch p, one := s.cfg.Offered.only(); {
	case r != nil:
		s.restore(r)
		s.ring, err = ctrlring.Restore(s.page.Bytes(), r.ring)
	case s.cfg.Served && !one:
		err = errors.New("the record of its protocol is lost; it is served again when the frontend reconnects")
	case s.cfg.Served:
		// The indices in the page are the whole state of a ring between two messages.
		// The settings are lost, and begin with their defaults.
		s.start(p)
		s.ring, err = ctrlring.Restore(s.page.Bytes(), ctrlring.State{Protocol: p})
	default:
		if !one {
			p, err = ctrlring.Sniff(s.page.Bytes())
		}
		if err == nil {
			s.ring, err = ctrlring.Attach(s.page.Bytes(), p)
		}
		if err == nil {
			s.start(p)
		}
	}
	if err != nil {
		s.disable(err)
	}
	s.publishStatus()
	if s.ring == nil || r != nil {
		return nil
	}
	return s.save(s.ring.State())
}

// start sets the protocol and its default settings.
func (s *Server) start(p ctrlring.Protocol) {
	s.protocol = p
	s.calls.Start(p)
}

// restore applies a predecessor's record.
func (s *Server) restore(r *record) {
	s.protocol = r.ring.Protocol
	if err := s.hash.now.restore(r); err != nil {
		s.log.Warn("hash settings not restored", zap.Error(err))
	}
	s.grefs.restore(r.grefs)
}

// PacketHash returns the configuration of the hash that packets carry from the start, or
// nil if they carry none.
func (s *Server) PacketHash() *steer.Config { return s.hash.now.packetHash(s.protocol) }

// Steers reports whether the guest's settings choose the queues of packets from the start. Then
// the TAP's program of a predecessor stays until Start has set another one, so that the packets
// of a flow do not change their queue meanwhile.
func (s *Server) Steers() bool { return s.hash.now.steering() != nil }

// Table returns the static grants of a queue, or nil if they are not supported. The table
// belongs to the queue's worker from Start on.
func (s *Server) Table(queue int) *staticgrant.Table {
	if s.grefs.tables == nil {
		return nil
	}
	return s.grefs.tables[queue]
}

// Start begins to serve the ring and applies the settings to the data path.
func (s *Server) Start(conn *dataplane.Conn) {
	path := turnConn{conn, s.turn}
	s.conn, s.grefs.conn, s.steer.conn = conn, path, path
	if s.protocol == 0 {
		return
	}
	s.hash.install = func(was, next *hashing) error { return s.install(path, was, next) }
	s.done = make(chan struct{})
	go s.run()
}

// Stop stops serving the ring. When it returns, the server does not use the ring, the
// tables or the data path any more. A message that has no response stays on the ring, for a
// successor.
func (s *Server) Stop() {
	s.cancel()
	if s.done != nil {
		s.conn.Hurry()
		<-s.done
	}
}

// Close unmaps the ring and all static grants, and closes the event channel. Call it
// after Stop, and after the data path was closed.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.events.Close(), s.grefs.close())
	if s.page != nil {
		err = errors.Join(err, s.page.Unmap())
	}
	return errors.Join(err, s.mapper.Close())
}

// recordRetry is the time between two attempts to write a record.
const recordRetry = time.Second

// run serves the ring until Stop, or until the frontend breaks its protocol.
func (s *Server) run() {
	defer close(s.done)
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			s.disable(fmt.Errorf("internal error: %v", r))
			s.publishStatus()
		}
	}()
	debug.SetPanicOnFault(true) // a bad page costs the control ring only
	defer s.turn.Do(func() {
		if err := s.steer.close(); err != nil {
			s.log.Warn("close steering program", zap.Error(err))
		}
	})
	s.turn.Do(func() {
		if err := s.steer.follow(&s.hash.now); err != nil { // settings from the record
			s.log.Warn("steering not restored", zap.Error(err))
		}
	})
	s.publishStatus()
	if s.ring == nil {
		return
	}
	if err := s.serve(); err != nil && s.ctx.Err() == nil {
		s.disable(err)
		s.publishStatus()
	}
}

// serve serves messages at the rate of the guest's budget, and waits for an event when
// there is none. It returns nil after Stop, and otherwise the error for which the ring is
// not served any more.
func (s *Server) serve() error {
	w, err := newPortWaiter(s.ctx, s.events)
	if err != nil {
		return err
	}
	defer w.close()
	for s.ctx.Err() == nil {
		now := time.Now()
		if !s.pause(s.cfg.Guest.Control.ReserveN(now, 1).DelayFrom(now)) {
			return nil
		}
		var more bool
		var err error
		s.turn.Do(func() { more, err = s.serveOne() })
		switch {
		case errors.As(err, new(*ctrlring.Error)):
			return err
		case err != nil:
			s.log.Warn("control ring record not written", zap.Error(err))
			if !s.pause(recordRetry) {
				return nil
			}
		case !more:
			if err := w.wait(s.port); err != nil {
				return err
			}
		}
	}
	return nil
}

// serveOne takes a message, carries it out and publishes the response. It reports false
// if there was no message.
func (s *Server) serveOne() (more bool, err error) {
	if err := s.publish(); err != nil { // the last response, if it could not be recorded before
		return false, err
	}
	q, ok, err := s.ring.Next()
	if err != nil {
		return false, err
	}
	if ok {
		r := s.do(q)
		if s.ctx.Err() != nil {
			return false, nil // a successor carries it out again
		}
		s.ring.Reply(r)
	}
	return ok, s.publish()
}

// publish records a response that is not published yet, then publishes it and notifies the
// guest.
func (s *Server) publish() error {
	if state, ok := s.ring.Unflushed(); ok {
		if err := s.save(state); err != nil {
			return err
		}
	}
	notify, err := s.ring.Flush()
	if notify {
		_ = s.events.Notify(s.port) // fails if the guest has closed its end; the vif detects that
	}
	return err
}

// grefsPerToken is the number of pages that a message may map for one token of the
// guest's budget. Each page is two system calls and two hypercalls.
const grefsPerToken = 8

// do carries out a message.
func (s *Server) do(q ctrlring.Request) ctrlring.Response {
	r := s.calls.Do(q)
	if n := q.Data[2]; q.Type == netif.CtrlAddGrefMapping || q.Type == netif.CtrlDelGrefMapping {
		s.cfg.Guest.Control.ReserveN(time.Now(), int(min(n, staticgrant.MaxList)/grefsPerToken))
	}
	s.cfg.Guest.Commanded()
	s.messages++
	if r.Status != netif.CtrlSuccess {
		s.refused++
	}
	s.log.Debug("control message", zap.Stringer("message", q), zap.Stringer("status", r.Status),
		zap.Uint32("data", r.Data), zap.Error(r.Err))
	s.publishStatus() // before the guest has its response
	return r
}

// install makes the data path follow next in place of was. On error it follows was.
func (s *Server) install(path turnConn, was, next *hashing) error {
	if err := s.steer.follow(next); err != nil {
		s.log.Warn("steering not changed", zap.Error(err))
		return errors.Join(err, s.steer.follow(was))
	}
	if next.samePackets(was) { // only the mapping has changed, which packets do not carry
		return nil
	}
	if err := path.SetHash(next.packetHash(s.protocol)); err != nil {
		return errors.Join(err, s.steer.follow(was))
	}
	return nil
}

// save writes the record: the state of the ring and all settings.
func (s *Server) save(state ctrlring.State) error {
	if s.cfg.Records == nil {
		return nil
	}
	r := s.hash.now.record()
	r.connection, r.ring, r.grefs = s.cfg.Connection, state, s.grefs.lists
	b, err := r.marshal()
	if err != nil {
		return err
	}
	return s.cfg.Records.Store(b)
}

// disable stops serving the ring because of err.
func (s *Server) disable(err error) {
	s.ring, s.failed = nil, err
	s.log.Warn("control ring out of use; packets are not affected", zap.Error(err))
}

// pause waits for d, and reports false if Stop was called meanwhile.
func (s *Server) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

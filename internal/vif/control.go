// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// control serves the control ring of one connection, in a goroutine of its own:
// a message may take as long as it takes to map five hundred pages, and neither
// the vif nor any queue waits for that. From start to close all of it is that
// goroutine's, but for shown.
//
// A ring that breaks its protocol is let go of; packets are not affected.
type control struct {
	log    *zap.Logger
	front  *frontend
	stamp  netif.Stamp // of the connection
	events Events
	port   evtchn.Port
	page   []byte
	path   string // of the record; empty: there is none

	protocol ctrlring.Protocol // 0: not known, and nothing was asked for

	ring  ctrlring.Back // nil: of no use
	calls ctrlring.Calls
	hash  hashHandler
	grefs grefHandler
	steer steering
	conn  *dataplane.Conn

	guest  *budget.Guest
	turn   *budget.Turn // of the goroutine
	stats  struct{ messages, refused uint64 }
	failed error // why the ring is of no use
	shown  atomic.Pointer[ControlStatus]

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // nil: not started
}

// openControl maps the frontend's control ring and binds its channel, and sets up
// what the queues need from the start: their tables of static grants, and what
// packets carry. Nobody may use the tables before the frontend asked for that, so
// there is none without a control ring.
func (v *Vif) openControl(l *link, queues []dataplane.QueueConfig, cfg *dataplane.Config) error {
	if !l.front.ctrl.there {
		return nil
	}
	n := len(queues)
	c := &control{log: v.log, front: l.front, guest: v.cfg.Guest, turn: v.cfg.Guest.Turn()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	l.control = c
	c.hash = hashHandler{now: hashing{mapping: toeplitz.NewMapping(n)}, install: func(*hashing) error { return nil }}
	mapper, err := v.cfg.Host.OpenMapper()
	if err != nil {
		return fmt.Errorf("control ring: %w", err)
	}
	l.mapper = mapper
	c.calls = ctrlring.Calls{Domid: v.cfg.Domid, Mapper: mapper, Hash: &c.hash}
	m, err := mapper.Map(v.cfg.Domid, []gntdev.Ref{l.front.ctrl.gref}, gntdev.ReadWrite)
	if err != nil {
		return fmt.Errorf("map control ring: %w", err)
	}
	l.mappings = append(l.mappings, m)
	c.page = m.Bytes()
	if c.events, err = v.cfg.Host.OpenEvents(v.cfg.Domid); err != nil {
		return fmt.Errorf("control ring: %w", err)
	}
	l.events = append(l.events, c.events)
	if c.port, err = c.events.BindInterdomain(v.cfg.Domid, l.front.ctrl.port); err != nil {
		return fmt.Errorf("control ring: %w", err)
	}
	l.ports++
	if v.cfg.StaticGrants.PerQueue > 0 {
		c.grefs = grefHandler{
			ctx: c.ctx, log: v.log,
			source: staticgrant.Source{Mapper: mapper, Domid: v.cfg.Domid, Budget: v.cfg.StaticGrants.Budget},
			lists:  make([][]netif.GrefEntry, n),
		}
		for i := range queues {
			t := staticgrant.New(v.cfg.StaticGrants.PerQueue)
			c.grefs.tables = append(c.grefs.tables, t)
			queues[i].Static = t
		}
		c.calls.Grefs = &c.grefs
	}
	if v.cfg.RunDir != "" {
		c.path = v.ctrlPath()
	}
	if n > 1 {
		// As long as there is a connection nobody else changes the TAP's queues.
		c.steer.set, c.steer.user = v.tap.SetSteering, v.cfg.NoBPF
		cfg.OneWorker = c.steer.user != nil
	}
	c.stamp = l.stamp
	was := v.loadControl(l)
	c.take(was, v.nodes.offered(), l.served)
	if cfg.Hash, err = c.hash.now.forPackets(c.protocol); err != nil || c.ring == nil || was != nil {
		return err
	}
	// From here on a successor knows the protocol, which the page of a ring
	// that has been used does not tell. A predecessor's record is as good to it as
	// it was to us, and a host that has no room to write it anew is no reason not
	// to serve.
	if err := c.save(c.ring.State()); err != nil {
		return fmt.Errorf("control ring: %w", err)
	}
	return nil
}

// take takes the ring: as a predecessor left it, or as a frontend does that has
// just connected, whose rings were not served before. A ring of no use is no reason not to connect, or to forget what
// was asked for.
func (c *control) take(r *ctrlRecord, offered ControlRings, served bool) {
	var err error
	switch p, one := offered.only(); {
	case r != nil:
		c.restore(r)
		c.ring, err = ctrlring.Restore(c.page, r.ring)
	case served && !one:
		err = errors.New("which protocol the control ring has is lost; it is served again when the frontend connects anew")
	case served:
		// Between two messages its indices tell all but what was asked for,
		// which is as it was in the beginning.
		c.protocol = p
		c.calls.Start(p)
		c.ring, err = ctrlring.Restore(c.page, ctrlring.State{Protocol: p})
	default:
		if !one {
			p, err = ctrlring.Sniff(c.page)
		}
		if err == nil {
			c.ring, err = ctrlring.Attach(c.page, p, ctrlring.WidthDrawn)
		}
		if err == nil {
			c.protocol = p
			c.calls.Start(p)
		}
	}
	if err != nil {
		c.ring = nil
		c.fail(err)
	}
	c.show()
}

// restore sets up what a predecessor had been asked for.
func (c *control) restore(r *ctrlRecord) {
	c.protocol = r.ring.Protocol
	h := &c.hash.now
	h.algorithm, h.types, h.key = r.algorithm, r.types&uint32(toeplitz.AllTypes), r.key
	if err := h.mapping.SetSize(uint32(len(r.table))); err == nil {
		_ = h.mapping.Set(0, r.table)
	}
	c.grefs.restore(r.grefs)
}

// start begins to serve the ring.
func (c *control) start(conn *dataplane.Conn) {
	aside := asideConn{conn, c.turn}
	c.conn, c.grefs.conn, c.steer.conn = conn, aside, aside
	if c.protocol == 0 {
		return
	}
	was := c.hash.now
	c.hash.install = func(next *hashing) error {
		if err := c.steer.follow(next); err != nil {
			c.log.Warn("steering", errField(err))
			return errors.Join(err, c.steer.follow(&was))
		}
		if !next.samePackets(&was) { // the mapping is nothing that they carry
			h, err := next.forPackets(c.protocol)
			if err == nil {
				err = aside.SetHash(h)
			}
			if err != nil {
				return errors.Join(err, c.steer.follow(&was))
			}
		}
		was = *next
		return nil
	}
	c.done = make(chan struct{})
	go c.run()
}

// close ends service. Nobody touches ring, tables or data path any more when it
// returns. What was asked for and not answered stays on the ring.
func (c *control) close() {
	c.cancel()
	if c.done != nil {
		c.conn.Hurry()
		<-c.done
	}
}

// forgetControl undoes what the guest has asked for and only this connection
// knew.
func (v *Vif) forgetControl(c *control) {
	// Also if it is not known to steer: a change may have failed half-way.
	if c.steer.set != nil && c.steer.user == nil {
		if err := v.tap.SetSteering(-1); err != nil && !errors.Is(err, tap.ErrGone) {
			v.log.Warn("tap steering", errField(err))
		}
	}
}

// retryRecord is when to try again to write a record for which there was no
// room.
const retryRecord = time.Second

// run serves the ring until it is closed or breaks its protocol.
func (c *control) run() {
	defer close(c.done)
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			c.fail(fmt.Errorf("internal error: %v", r))
			c.show()
		}
	}()
	debug.SetPanicOnFault(true) // a page gone bad costs the control ring
	defer c.turn.Do(c.steer.close)
	c.turn.Do(func() {
		if err := c.steer.follow(&c.hash.now); err != nil { // as a predecessor was told
			c.log.Warn("steering", errField(err))
		}
	})
	c.show()
	if c.ring == nil {
		return
	}
	w, err := newPortWaiter(c.ctx, c.events)
	if err != nil {
		c.fail(err)
		c.show()
		return
	}
	defer w.close()
	s := ctrlring.Server{
		Ring: c.ring, Do: c.do, Save: c.save,
		Notify: func() error { _ = c.events.Notify(c.port); return nil }, // that it cannot be sent, the vif will find out
		Stop:   func() bool { return c.ctx.Err() != nil },
	}
	for c.ctx.Err() == nil {
		now := time.Now()
		if !c.pause(c.guest.Control.ReserveN(now, 1).DelayFrom(now)) {
			return
		}
		var more bool
		var err error
		c.turn.Do(func() { more, err = s.ServeOne() })
		switch {
		case err != nil && errors.As(err, new(*ctrlring.Error)):
			c.fail(err)
			c.show()
			return
		case err != nil:
			c.log.Warn("control ring", errField(err))
			if !c.pause(retryRecord) {
				return
			}
		case !more:
			if err := w.wait(c.port); err != nil {
				if c.ctx.Err() == nil {
					c.fail(err)
					c.show()
				}
				return
			}
		}
	}
}

// pause waits, and reports false if service ended meanwhile.
func (c *control) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// do carries a message out.
func (c *control) do(q ctrlring.Request) ctrlring.Response {
	r := c.calls.Do(q)
	if n := q.Data[2]; q.Type == netif.CtrlAddGrefMapping || q.Type == netif.CtrlDelGrefMapping {
		c.guest.Control.ReserveN(time.Now(), int(min(n, staticgrant.MaxList)/grefsPerToken))
	}
	c.guest.Commanded()
	c.stats.messages++
	if r.Status != netif.CtrlSuccess {
		c.stats.refused++
	}
	c.log.Debug("control message", zap.Stringer("message", q), zap.Stringer("status", r.Status),
		zap.Uint32("data", r.Data), zap.NamedError("reason", r.Err))
	c.show() // before the guest has its answer
	return r
}

// save writes down, in one, what a successor must know: the ring's state and what
// the message that it answers has changed.
func (c *control) save(s ctrlring.State) error {
	if c.path == "" {
		return nil
	}
	r := ctrlRecord{
		stamp: c.stamp, front: *c.front, ring: s,
		algorithm: c.hash.now.algorithm, types: c.hash.now.types, key: c.hash.now.key,
		grefs: c.grefs.lists,
	}
	for _, q := range c.hash.now.mapping.Table() {
		r.table = append(r.table, uint32(q))
	}
	if r.grefs == nil {
		r.grefs = make([][]netif.GrefEntry, len(c.front.queues))
	}
	b, err := r.marshal()
	if err != nil {
		return err
	}
	return writeFile(c.path, b)
}

// fail lets go of the ring.
func (c *control) fail(err error) {
	c.failed = err
	c.log.Warn("the control ring is out of use; packets are not affected", errField(err))
}

// samePackets reports whether packets carry the same with both.
func (h *hashing) samePackets(o *hashing) bool {
	return h.algorithm == o.algorithm && h.types == o.types && string(h.key) == string(o.key)
}

// sameQueues reports whether both lead every packet to the same queue, by the same
// hash.
func (h *hashing) sameQueues(o *hashing) bool {
	return h.samePackets(o) && h.mapping == o.mapping
}

// grefsPerToken counts the pages of a message that are mapped for the token that each
// message, and each event for nothing, takes of the guest's budget. Each is two system
// calls and two hypercalls; more pages take more tokens.
const grefsPerToken = 8

// asideConn is a connection as the control ring's goroutine uses it: without its turn
// while it waits for workers, which may be a second.
type asideConn struct {
	conn *dataplane.Conn
	turn *budget.Turn
}

func (a asideConn) SetHash(h *dataplane.Hash) (err error) {
	a.turn.Aside(func() { err = a.conn.SetHash(h) })
	return err
}

func (a asideConn) SetSteering(c *steer.Config) (err error) {
	a.turn.Aside(func() { err = a.conn.SetSteering(c) })
	return err
}

// Resteer makes the change within a turn.
func (a asideConn) Resteer(from, to *steer.Config, change func() error) (err error) {
	a.turn.Aside(func() {
		err = a.conn.Resteer(from, to, func() (err error) {
			a.turn.Do(func() { err = change() })
			return err
		})
	})
	return err
}

func (a asideConn) AddGrants(queue int, p *staticgrant.Prepared) (now []netif.GrefEntry, err error) {
	a.turn.Aside(func() { now, err = a.conn.AddGrants(queue, p) })
	return now, err
}

func (a asideConn) RemoveGrants(queue int, list []netif.GrefEntry) (r *staticgrant.Removed, now []netif.GrefEntry, err error) {
	a.turn.Aside(func() { r, now, err = a.conn.RemoveGrants(queue, list) })
	return r, now, err
}

// portWaiter waits for events without a thread of its own: a thousand idle
// control rings are a thousand goroutines.
type portWaiter struct {
	events Events
	file   *os.File
	raw    syscall.RawConn
	stop   func() bool
	masked bool
}

// newPortWaiter makes a waiter that gives up when ctx ends.
func newPortWaiter(ctx context.Context, ev Events) (*portWaiter, error) {
	// The runtime closes what it is given.
	fd, err := unix.FcntlInt(uintptr(ev.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("event channel: %w", err)
	}
	w := &portWaiter{events: ev, file: os.NewFile(uintptr(fd), "event channels")}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("event channel: %w", err)
	}
	w.stop = context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	return w, nil
}

// wait lets the port fire again, now that the ring was found empty, and waits
// until it has.
func (w *portWaiter) wait(p evtchn.Port) error {
	if w.masked {
		w.masked = false
		if err := w.events.Unmask([]evtchn.Port{p}); err != nil {
			return err
		}
	}
	var ports [2]evtchn.Port
	var n int
	var err error
	if e := w.raw.Read(func(uintptr) bool {
		n, err = w.events.Pending(ports[:])
		return n > 0 || err != nil
	}); e != nil {
		return e
	}
	w.masked = true
	if errors.Is(err, evtchn.ErrOverflow) {
		return w.events.Reset()
	}
	return err
}

func (w *portWaiter) close() {
	w.stop()
	_ = w.file.Close()
}

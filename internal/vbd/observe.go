// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// guestView holds the last observation of the guest.
type guestView struct {
	alive bool         // its domain exists
	state xenbus.State // state of the frontend; Unknown if its directory or its domain is gone
	keys  frontendKeys

	hidden     bool // the frontend's directory may not be read any more
	stateIsNew bool // the state was read after the frontend wrote it, and no plan was made since
}

// frontendKeys holds the rings and features that the frontend names, or the error in its
// keys.
type frontendKeys struct {
	read     bool // the keys were read, for this offer
	offer    offer
	frontend *frontend
	err      error
}

// wantFrontState describes the states that a frontend may show.
const wantFrontState = "a state that a frontend of a vbd can have"

// observe reads all nodes that decide the next steps, if they may have changed since they
// were last read. After an error they stay marked as unread.
func (v *Vbd) observe(ctx context.Context) error {
	n := v.nodes
	if err := n.readState(ctx, v.work, v.cfg.Path); err != nil {
		return err
	}
	if !n.present {
		return errDirGone
	}
	if n.state == xenbus.Initialising && v.lastNode != xenbus.Initialising {
		v.unread |= unreadAll // the directory may be a new one
	}
	if n.state != v.lastNode {
		// The toolstack writes online with the state. Its event may be on its way.
		v.unread |= unreadNodes
	}
	if v.unread&unreadNodes != 0 {
		if err := n.readRest(ctx, v.work, v.cfg.Path); err != nil {
			return err
		}
		if n.frontendDir != v.nodes.frontendDir {
			v.unread |= unreadFront
		}
	}
	switch {
	case v.own == xenbus.Unknown:
		v.adoptState(n.state)
	case n.state == xenbus.Initialising && v.lastNode != xenbus.Initialising:
		// Only a toolstack writes that. It has removed the device and made it again
		// since the last observation.
		v.startAnew()
	}
	if n.state == xenbus.Closing && v.lastNode != xenbus.Closing && (v.own == xenbus.InitWait || v.own == xenbus.Connected) && n.online {
		v.log.Error("another program wrote Closing into the vbd's state; see `blkbackd check`")
	}
	v.nodes, v.lastNode = n, n.state
	if err := v.observeFrontend(ctx); err != nil {
		return err
	}
	v.unread = 0
	v.checkDetach()
	return nil
}

// observeFrontend reads the frontend's directory. It returns no error for a state that
// cannot be read or parsed: otherwise a guest could keep the toolstack from removing the
// vbd.
func (v *Vbd) observeFrontend(ctx context.Context) error {
	g := &v.guest
	state, f := g.state, g.keys.frontend
	defer func() {
		if g.state != state || g.keys.frontend != f && !g.keys.frontend.same(f) {
			v.work.FoundNew()
		}
	}()
	if v.unread&unreadDomain != 0 {
		var err error
		if g.alive, err = device.DomainLives(ctx, v.work, v.cfg.ID.Domid); err != nil {
			return err
		}
	}
	dir := v.nodes.frontendDir
	if !g.alive || dir == "" || g.hidden {
		g.state, g.keys = xenbus.Unknown, frontendKeys{}
		return nil
	}
	if err := device.CheckFrontendDir(dir, v.cfg.ID.Domid); err != nil {
		g.state, g.keys = xenbus.Unknown, frontendKeys{}
		v.reportError(ctx, "bad key", err)
		return nil
	}
	blind := v.frontWatch.Blind() // the vbd may have missed changes
	if err := v.frontWatch.Follow(ctx, v.work, dir+"/state"); err != nil {
		if device.Unanswered(err) {
			return err
		}
		// A driver domain may run out of watches. Then the vbd reconciles once per
		// retryAfter, and still gets events for the toolstack's nodes.
		v.reportError(ctx, "watch failed", err)
		v.alarm.In(retryAfter)
	}
	if blind || v.unread&unreadFront != 0 {
		if err := v.readFrontState(ctx); err != nil {
			return err
		}
	}
	return v.readKeys(ctx)
}

// readFrontState reads the frontend's state. It always makes readKeys read the keys again:
// the frontend may have had another state in between.
func (v *Vbd) readFrontState(ctx context.Context) error {
	g := &v.guest
	f, err := device.ReadFrontState(ctx, xenbus.GuestStore(v.work), v.nodes.frontendDir, g.state, wantFrontState)
	if err != nil {
		return err
	}
	if f.Bad != nil {
		v.reportError(ctx, "bad frontend key", frontendError(f.Bad))
	}
	g.state, g.keys, g.hidden, g.stateIsNew = f.State, frontendKeys{}, f.Hidden, true
	return nil
}

// hasKeys reports whether a frontend in a state has rings.
func hasKeys(s xenbus.State) bool {
	return s == xenbus.Initialised || s == xenbus.Connected || s == xenbus.Closing
}

// readKeys reads the keys of a frontend that has rings, unless they have been read already.
func (v *Vbd) readKeys(ctx context.Context) error {
	g := &v.guest
	// The nodes show the offer to the frontend, perhaps that of a predecessor with other
	// settings.
	k := frontendKeys{read: true, offer: v.nodes.offered}
	switch {
	case !hasKeys(g.state), v.own == xenbus.Initialising, v.own == xenbus.Closed && v.block.phase() == blockNone:
		g.keys = frontendKeys{}
		return nil
	case g.keys.read && g.keys.offer == k.offer:
		return nil
	}
	k.frontend, k.err = readFrontend(ctx, v.work, v.nodes.frontendDir, k.offer)
	if device.Unanswered(k.err) {
		return k.err
	}
	g.keys = k
	return nil
}

// checkDetach starts the frontend's grace when the toolstack wants the device gone: it
// sets online to 0 and writes Closing into the vbd's node in one transaction.
func (v *Vbd) checkDetach() {
	switch {
	case v.nodes.online:
		v.detachAt = time.Time{}
	case (v.nodes.state == xenbus.Closing || v.own == xenbus.Closing) && v.detachAt.IsZero():
		v.detachAt = time.Now().Add(v.cfg.Grace)
		v.log.Info("toolstack detaches the vbd", zap.Stringer("frontend", v.guest.state))
	}
}

// situation returns the last observation as input for the state machine.
func (v *Vbd) situation() situation {
	if v.unblocked() {
		v.block = block{}
	}
	s := situation{
		own: v.own, node: v.nodes.state, front: v.guest.state,
		conn:    v.connPhase(),
		disk:    v.diskPhase(),
		block:   v.block.phase(),
		online:  v.nodes.online,
		plugged: v.nodes.plugged(),
		resized: v.resized(),
		served:  !v.conn.busy() && !v.predecessor.Connection.IsZero() && (v.own == xenbus.Connected || v.own == xenbus.Closing),
	}
	if !v.detachAt.IsZero() {
		s.detach = detachGrace
		if !time.Now().Before(v.detachAt) {
			s.detach = detachForced
		}
	}
	return s
}

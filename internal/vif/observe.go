// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// guestView holds the last observation of the guest.
type guestView struct {
	alive bool         // its domain exists
	state xenbus.State // state of the frontend; Unknown if its directory or its domain is gone
	offer frontendOffer
	mtu   string

	hidden     bool // the frontend's directory may not be read any more
	wroteState bool // the frontend has written its state, which was not read since
	stateIsNew bool // it was read, and no plan was made since
}

// frontendOffer holds the rings and features that the frontend names, or the error in its
// keys.
type frontendOffer struct {
	frontend *frontend
	err      error

	// read is set if the keys were read, for this number of queues and these control
	// rings.
	read      bool
	maxQueues int
	control   ctrlserver.Protocols
}

// observe reads all nodes that decide the next steps, if they may have changed since they
// were last read. After an error they stay marked as unread.
func (v *Vif) observe(ctx context.Context) error {
	n := v.nodes
	if err := n.readState(ctx, v.cfg.Store, v.cfg.Path); err != nil {
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
		if err := n.readRest(ctx, v.cfg.Store, v.cfg.Path); err != nil {
			return err
		}
		if n.frontendDir != v.nodes.frontendDir {
			v.unread |= unreadFront
		}
	}
	switch {
	case v.own == xenbus.Unknown:
		v.adoptState(n)
	case n.state == xenbus.Initialising && v.lastNode != xenbus.Initialising:
		// Only a toolstack writes that. It has removed the device and made it again
		// since the last observation.
		v.startAnew(&n)
	}
	if n.state == xenbus.Closing && v.lastNode != xenbus.Closing && (v.own == xenbus.InitWait || v.own == xenbus.Connected) && n.online {
		v.log.Error("another program wrote Closing into the vif's state, as the kernel's xen-netback does when it is loaded while others serve; see `netbackd check`")
	}
	v.nodes, v.lastNode = n, n.state
	if err := v.observeFrontend(ctx); err != nil {
		return err
	}
	v.unread = 0
	if v.tap != nil {
		v.checkTap()
	}
	v.checkDetach()
	return nil
}

// observeFrontend reads the frontend's directory. It returns no error for a state that
// cannot be read or parsed: otherwise a guest could keep the toolstack from removing the
// vif.
func (v *Vif) observeFrontend(ctx context.Context) error {
	g := &v.guest
	state, f := g.state, g.offer.frontend
	defer func() {
		if g.state != state || g.offer.frontend != f && !g.offer.frontend.same(f) {
			v.work.FoundNew()
		}
	}()
	if v.unread&unreadDomain != 0 {
		var err error
		if g.alive, err = device.DomainLives(ctx, v.cfg.Store, v.cfg.ID.Domid); err != nil {
			return err
		}
	}
	if dir := v.nodes.frontendDir; !g.alive || dir == "" || g.hidden {
		g.state, g.mtu, g.offer = xenbus.Unknown, "", frontendOffer{}
		return nil
	}
	if err := device.CheckFrontendDir(v.nodes.frontendDir, v.cfg.ID.Domid); err != nil {
		g.state, g.mtu, g.offer = xenbus.Unknown, "", frontendOffer{}
		v.reportError(ctx, "bad key", err)
		return nil
	}
	// Without these watches the vif may have missed changes.
	blind := v.frontWatch.Blind() || g.state == xenbus.Reconfiguring && v.headroomWatch.Blind()
	if err := v.watchFrontend(ctx); err != nil {
		return err
	}
	r := xenbus.GuestStore(v.cfg.Store)
	if v.unread&unreadNodes != 0 {
		g.mtu, _ = r.Read(ctx, v.nodes.frontendDir+"/mtu") // the script may have written it
	}
	if blind || v.unread&unreadFront != 0 {
		if err := v.readFrontState(ctx, r); err != nil {
			return err
		}
	}
	if err := v.watchHeadroom(ctx); err != nil {
		return err
	}
	return v.readOffer(ctx)
}

// readFrontState reads the frontend's state. It always makes readOffer read the keys
// again: the frontend may have had another state in between.
func (v *Vif) readFrontState(ctx context.Context, r xenbus.Store) error {
	g := &v.guest
	before := g.state
	g.state, g.offer = xenbus.Unknown, frontendOffer{}
	g.stateIsNew, g.wroteState = g.stateIsNew || g.wroteState, false
	f, err := device.ReadFrontState(ctx, r, v.nodes.frontendDir, before, wantFrontState)
	if err != nil {
		return err
	}
	g.state, g.hidden = f.State, f.Hidden
	if f.Bad != nil {
		v.reportError(ctx, "bad frontend key", frontendError(f.Bad))
	}
	return nil
}

// readOffer reads the keys of a frontend that is Connected or Reconfiguring, unless they
// have been read already.
func (v *Vif) readOffer(ctx context.Context) error {
	g := &v.guest
	if g.state != xenbus.Connected && g.state != xenbus.Reconfiguring {
		g.offer = frontendOffer{}
		return nil
	}
	o := frontendOffer{read: true, maxQueues: v.maxQueues(), control: v.nodes.offered.control}
	if was := g.offer; was.read && was.maxQueues == o.maxQueues && was.control == o.control {
		return nil
	}
	o.frontend, o.err = readFrontend(ctx, v.cfg.Store, v.nodes.frontendDir, o.maxQueues, o.control)
	if device.Unanswered(o.err) {
		return o.err
	}
	g.offer = o
	return nil
}

// maxQueues returns the number of queues that the frontend may have. A frontend that has
// connected was offered them by a predecessor, which may have had other settings. A TAP
// made by a predecessor that offered one queue cannot have more.
func (v *Vif) maxQueues() int {
	n := v.cfg.MaxQueues
	if v.own == xenbus.Connected || v.own == xenbus.InitWait && (v.guest.state == xenbus.Connected || v.guest.state == xenbus.Reconfiguring) {
		n = max(n, v.nodes.offered.maxQueues)
	}
	if v.tap != nil {
		n = min(n, v.tap.MaxQueues())
	}
	return n
}

// checkDetach starts the frontend's grace when the toolstack wants the device gone: it
// sets online to 0 and writes Closing into the vif's node in one transaction.
func (v *Vif) checkDetach() {
	switch {
	case v.nodes.online:
		v.detachAt = time.Time{}
	case (v.nodes.state == xenbus.Closing || v.own == xenbus.Closing) && v.detachAt.IsZero():
		v.detachAt = time.Now().Add(v.cfg.Grace)
		v.log.Info("toolstack detaches the vif", zap.Stringer("frontend", v.guest.state))
	}
}

// situation returns the last observation as input for the state machine.
func (v *Vif) situation() situation {
	s := situation{
		own: v.own, node: v.nodes.state, front: v.guest.state,
		conn:    v.connPhase(),
		online:  v.nodes.online,
		plugged: v.nodes.plugged(),
		noTap:   v.own == xenbus.InitWait && v.tap == nil,
		claimed: v.claimed,
	}
	if !v.detachAt.IsZero() {
		s.detach = detachGrace
		if !time.Now().Before(v.detachAt) {
			s.detach = detachForced
		}
	}
	s.keyPending = s.front == xenbus.Reconfiguring && s.own == xenbus.Connected &&
		s.node != xenbus.Reconfigured && s.detach == detachNone && !v.reconf.over()
	if v.unblocked() {
		v.block = block{}
	}
	s.block = v.block.phase()
	return s
}

// connPhase returns the phase of the connection.
func (v *Vif) connPhase() connPhase {
	switch {
	case v.conn == nil:
		return connNone
	case v.guest.offer.frontend != nil && v.hasNewRings():
		return connStale
	case v.conn.carrier != carrierWaiting:
		return connLive
	}
	return connReady
}

// unblocked reports whether the frontend's keys differ from those of the failed attempt, or
// the frontend has reconnected after a quarantine.
func (v *Vif) unblocked() bool {
	b := &v.block
	return b.attempt != nil && !b.attempt.same(v.attempt()) || b.reason != "" && v.blockedRingsRenewed()
}

// hasNewRings reports whether the frontend uses other rings than those that are mapped. The
// new rings may have the same grefs and ports.
func (v *Vif) hasNewRings() bool {
	if !v.guest.offer.frontend.sameRings(v.conn.frontend) || v.link.RingsRenewed() {
		return true
	}
	return v.guest.state == xenbus.Connected && v.guest.stateIsNew && v.link.ChannelsRenewed()
}

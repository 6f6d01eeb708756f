// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// maxReconciles bounds the number of times that reconcile starts over because the nodes
// have changed meanwhile.
const maxReconciles = 8

// reconcile reads both directories and brings the vif to the state that they call for. It
// reports whether the vif has ended.
func (v *Vif) reconcile(ctx context.Context) (gone bool) {
	for range maxReconciles {
		err := v.reconcileOnce(ctx)
		switch {
		case err == nil, errors.Is(err, errWait):
			return false
		case device.Unanswered(err):
			return false
		case errors.Is(err, netengine.ErrDied):
			return false // the end of the process wakes the vif
		case errors.Is(err, errDirGone):
			v.endRemoved(ctx)
			return true
		case errors.Is(err, errTaken):
			v.endTaken()
			return true
		case errors.Is(err, errAgain):
			v.unread |= unreadNodes
			continue
		}
		v.reportError(ctx, "reconcile failed", err)
		break
	}
	v.unread = unreadAll
	v.alarm.In(retryAfter)
	return false
}

// reconcileOnce observes, plans, and performs the steps planned.
func (v *Vif) reconcileOnce(ctx context.Context) error {
	if err := v.observe(ctx); err != nil {
		return err
	}
	if v.setup == tapReplaced {
		if err := v.resetHotplug(ctx); err != nil {
			return err
		}
	}
	if err := v.adoptQuarantine(ctx); err != nil {
		return err
	}
	v.reportScriptError(ctx)
	v.closeSpareQueues()
	v.applyRate(ctx)
	v.applyWeight(ctx)
	v.applyMulticast(ctx)
	if err := v.applyHeadroom(); err != nil {
		return err
	}
	now := v.situation()
	v.guest.stateIsNew = false
	for _, s := range plan(now) {
		v.log.Debug("step", zap.Stringer("step", s), zap.Stringer("own", v.own), zap.Stringer("frontend", v.guest.state))
		if err := v.perform(ctx, s); err != nil {
			return err
		}
	}
	if v.setup == tapReplaced {
		return errAgain
	}
	return nil
}

// perform performs one step.
func (v *Vif) perform(ctx context.Context, s step) error {
	switch s {
	case stepPublish:
		return v.publish(ctx)
	case stepInitWait:
		return v.moveTo(ctx, xenbus.InitWait)
	case stepTap:
		if v.guest.offer.err != nil {
			return v.giveUp(ctx, v.guest.offer.err)
		}
		return v.ensureTap(ctx)
	case stepConnect:
		return v.connect(ctx)
	case stepPlug:
		if err := v.plug(ctx); err != nil {
			return err
		}
		if v.own == xenbus.Connected {
			v.clearError(ctx)
		}
	case stepConnected:
		if err := v.moveTo(ctx, xenbus.Connected); err != nil {
			return err
		}
		f := v.conn.frontend
		v.log.Info("connected", zap.Int("queues", len(f.queues)), zap.Strings("features", f.features.names()))
		v.clearError(ctx)
	case stepDisconnect:
		v.disconnect()
	case stepClosing:
		return v.moveTo(ctx, xenbus.Closing)
	case stepClosed:
		return v.moveTo(ctx, xenbus.Closed)
	case stepReconfigured:
		// The vif's own state does not change: the frontend continues with the same
		// rings, and does not connect again.
		return v.writeState(ctx, xenbus.Reconfigured)
	case stepDetaching:
		return v.writeState(ctx, xenbus.Closing)
	case stepAwaitKey:
		v.alarm.In(max(time.Until(v.reconf.since.Add(keyGrace)), 0) + time.Millisecond)
	case stepUnregister:
		v.unregister()
	case stepGrace:
		v.alarm.Set(v.detachAt.Add(time.Millisecond))
	case stepUnexpected:
		return v.giveUp(ctx, frontendError(&xenbus.KeyError{
			Key: "state", Value: v.guest.state.Value(), Want: wantFrontState,
		}))
	}
	return nil
}

// wantFrontState describes the states that a frontend may show.
const wantFrontState = "a state that a frontend of a vif can have"

// adoptState finds out the state in which a predecessor left the vif.
func (v *Vif) adoptState(n nodes) {
	v.own, v.lastNode = xenbus.Initialising, n.state
	switch n.state {
	case xenbus.InitWait, xenbus.Closing, xenbus.Closed:
		v.own = n.state
	case xenbus.Connected:
		v.own = xenbus.Connected
	case xenbus.Reconfigured:
		v.own = xenbus.Connected
		switch n.reconfiguredIn {
		case xenbus.InitWait, xenbus.Closing, xenbus.Closed:
			if !n.claimed {
				v.own = n.reconfiguredIn
			}
		}
	}
	if v.own == xenbus.Initialising {
		// A TAP, record or journal of this name belongs to a device that is gone. If
		// that device was connected there is a record, and a script may have moved its
		// TAP.
		if len(v.keptQueues) > 0 || v.saved.Exists() {
			v.setup = tapSetUp
		}
		v.unregister()
	} else {
		v.loadRecord()
	}
	v.claimed = n.claimed
	v.setup = tapUntouched
	// The script of a claimed vif has set up the other back end's interface. It has
	// set up ours only when hotplug-status is connected again.
	if v.own != xenbus.Initialising && (!v.claimed || n.plugged()) {
		v.setup = tapSetUp
		if len(v.keptQueues) == 0 && (v.own == xenbus.InitWait || v.own == xenbus.Connected) {
			// This must come before the vif makes another TAP: a successor could
			// not tell that the hotplug script has never set up that one.
			if found, err := v.findTap(); err == nil && found == nil {
				v.setup = tapReplaced
			}
		}
	}
	v.log.Debug("state adopted", zap.Stringer("state", n.state))
}

// startAnew removes the old device after the toolstack has removed it and made it again
// under the same name.
//
// The hotplug script runs after InitWait is shown, so it cannot be done with a new device.
// If hotplug-status shows that it is done, only the state was written again, and the script
// has not set up the next TAP.
func (v *Vif) startAnew(n *nodes) {
	v.log.Info("device was removed and made again")
	v.unregister()
	v.own, v.setup = xenbus.Initialising, tapUntouched
	if n.hotplug == "connected" {
		v.setup = tapSetUp
	}
	v.detachAt = time.Time{}
	v.block = block{}
	v.guest.hidden = false
}

// moveTo moves the vif to a state and shows it to the frontend.
func (v *Vif) moveTo(ctx context.Context, s xenbus.State) error {
	if err := v.writeState(ctx, s); err != nil {
		return err
	}
	v.own = s
	return nil
}

// writeState writes the state node, unless it has changed since it was last read. If the
// node is gone, a write would bring back a directory that the toolstack has removed. If it
// shows another state, a write could overwrite the Closing of a toolstack that detaches
// the device.
func (v *Vif) writeState(ctx context.Context, s xenbus.State) error {
	err := v.changeDir(ctx, func(tx *xenstore.Tx, was xenbus.State) error {
		if was == s {
			return nil
		}
		if err := v.recordReconfiguredIn(ctx, tx, was, s); err != nil {
			return err
		}
		return tx.Write(ctx, v.cfg.Path+"/state", s.Value())
	})
	if err == nil {
		v.lastNode = s
	}
	return err
}

// reconfiguredInKey is a key of the backend directory. It tells a successor the vif's own
// state while the node shows Reconfigured. If the key is missing that state is Connected,
// as with xen-netback.
const reconfiguredInKey = "reconfigured-in"

// recordReconfiguredIn writes or removes reconfiguredInKey when the node changes from
// one state to another.
func (v *Vif) recordReconfiguredIn(ctx context.Context, tx *xenstore.Tx, from, to xenbus.State) error {
	state := v.own
	if !v.detachAt.IsZero() {
		state = xenbus.Closing // the toolstack has written it, and it is about to be overwritten
	}
	if to == xenbus.Reconfigured && state != xenbus.Connected {
		return tx.Write(ctx, v.cfg.Path+"/"+reconfiguredInKey, state.Value())
	}
	if from != xenbus.Reconfigured {
		return nil
	}
	if err := tx.Remove(ctx, v.cfg.Path+"/"+reconfiguredInKey); !errors.Is(err, xenstore.ErrNotExist) {
		return err
	}
	return nil
}

// changeDir changes the backend directory in a transaction. It fails if the directory is
// gone, or if its state has changed since it was last read.
func (v *Vif) changeDir(ctx context.Context, f func(tx *xenstore.Tx, state xenbus.State) error) error {
	return v.cfg.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		s, err := tx.Read(ctx, v.cfg.Path+"/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return errDirGone
		}
		if err != nil {
			return err
		}
		state, err := xenbus.ParseState(xenbus.Trim(s))
		if err != nil {
			state = xenbus.Unknown
		}
		if state != v.lastNode {
			return errAgain
		}
		return f(tx, state)
	})
}

// publish makes the TAP, which must exist before the state makes the toolstack run its
// script, and writes the features.
func (v *Vif) publish(ctx context.Context) error {
	if v.own != xenbus.InitWait || v.guest.state != xenbus.Connected && v.guest.state != xenbus.Reconfiguring {
		// The next frontend has new rings, which may have the old grefs.
		v.removeJournals()
	}
	if v.nodes.mac != "" {
		if _, err := parseMAC(v.nodes.mac); err != nil {
			return v.giveUp(ctx, err)
		}
	}
	if err := v.ensureTap(ctx); err != nil {
		return err
	}
	split, err := v.splitChannels(ctx)
	if err != nil {
		return err
	}
	offered := backendOffer{maxQueues: v.maxQueues(), offload: v.offload(), split: split, control: v.controlRings(ctx)}
	list := offered.nodes()
	err = v.changeDir(ctx, func(tx *xenstore.Tx, _ xenbus.State) error {
		for _, n := range list {
			if err := tx.Write(ctx, v.cfg.Path+"/"+n.key, n.value); err != nil {
				return fmt.Errorf("publish features: %w", err)
			}
		}
		return nil
	})
	if err == nil {
		v.nodes.offered = offered
	}
	return err
}

// endRemoved ends the vif because its directory is gone.
func (v *Vif) endRemoved(ctx context.Context) {
	v.unregister()
	v.clearError(ctx)
}

// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// maxReconciles bounds the number of times that reconcile starts over because the nodes
// have changed meanwhile.
const maxReconciles = 8

// reconcile reads both directories and brings the vbd to the state that they call for. It
// reports whether the vbd has ended.
func (v *Vbd) reconcile(ctx context.Context) (gone bool) {
	for range maxReconciles {
		err := v.reconcileOnce(ctx)
		switch {
		case err == nil, errors.Is(err, errWait):
			return false
		case device.Unanswered(err):
			return false
		case errors.Is(err, errDirGone):
			v.endRemoved(ctx)
			return true
		case errors.Is(err, errTaken):
			v.log.Warn("another back end has taken the device")
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
func (v *Vbd) reconcileOnce(ctx context.Context) error {
	if err := v.observe(ctx); err != nil {
		return err
	}
	v.adoptQuarantine(ctx)
	v.reportScriptError(ctx)
	v.applyWeight(ctx)
	if err := v.raiseOffer(ctx); err != nil {
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
	return nil
}

// perform performs one step.
func (v *Vbd) perform(ctx context.Context, s step) error {
	switch s {
	case stepInitWait:
		return v.publish(ctx)
	case stepOpen:
		return v.openDisk(ctx)
	case stepConnect:
		return v.connect(ctx)
	case stepConnected:
		return v.showConnected(ctx)
	case stepDisconnect:
		v.disconnect()
	case stepClosing:
		return v.moveTo(ctx, xenbus.Closing)
	case stepClosed:
		return v.moveTo(ctx, xenbus.Closed)
	case stepRelease:
		v.release()
	case stepGrace:
		v.alarm.Set(v.detachAt.Add(time.Millisecond))
	case stepUnexpected:
		return v.giveUp(ctx, frontendError(&xenbus.KeyError{
			Key: "state", Value: v.guest.state.Value(), Want: wantFrontState,
		}))
	}
	return nil
}

// adoptState finds out the state in which a predecessor left the vbd.
func (v *Vbd) adoptState(node xenbus.State) {
	v.own, v.lastNode = xenbus.Initialising, node
	switch node {
	case xenbus.InitWait, xenbus.Connected, xenbus.Closing, xenbus.Closed:
		v.own = node
		v.loadRecord()
	default:
		// Files of this name belong to a device that is gone.
		v.forget()
	}
	v.log.Debug("state adopted", zap.Stringer("state", node))
}

// startAnew removes the old device after the toolstack has removed it and made it again
// under the same name.
func (v *Vbd) startAnew() {
	v.log.Info("device was removed and made again")
	v.disconnect()
	v.release()
	v.own = xenbus.Initialising
	v.detachAt = time.Time{}
	v.block = block{}
	v.guest.hidden = false
}

// moveTo moves the vbd to a state and shows it to the frontend.
func (v *Vbd) moveTo(ctx context.Context, s xenbus.State) error { return v.show(ctx, s, nil) }

// show moves the vbd to a state and shows it to the frontend, with other nodes in the same
// transaction. The state is written even if the node shows it: a frontend may wait for the
// event.
func (v *Vbd) show(ctx context.Context, s xenbus.State, list []node) error {
	err := v.changeDir(ctx, func(tx *xenstore.Tx) error {
		if err := v.writeNodes(ctx, tx, list); err != nil {
			return err
		}
		return tx.Write(ctx, v.cfg.Path+"/state", s.Value())
	})
	if err == nil {
		v.own, v.lastNode, v.nodes.state = s, s, s
	}
	return err
}

// writeNodes writes nodes, and removes those with an empty value.
func (v *Vbd) writeNodes(ctx context.Context, tx *xenstore.Tx, list []node) error {
	for _, n := range list {
		path := v.cfg.Path + "/" + n.key
		var err error
		if n.value != "" {
			err = tx.Write(ctx, path, n.value)
		} else if err = tx.Remove(ctx, path); errors.Is(err, xenstore.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("publish features: %w", err)
		}
	}
	return nil
}

// changeDir changes the backend directory in a transaction, unless the state has changed
// since it was last read. If the directory is gone, a write would bring back the
// directory that the toolstack has removed. If it shows another state, a write could overwrite the Closing of a
// toolstack that detaches the device.
func (v *Vbd) changeDir(ctx context.Context, f func(tx *xenstore.Tx) error) error {
	return v.work.Transaction(ctx, func(tx *xenstore.Tx) error {
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
		return f(tx)
	})
}

// publish writes the offer of the vbd and shows InitWait.
func (v *Vbd) publish(ctx context.Context) error {
	if v.own != xenbus.InitWait {
		// The next frontend has new rings, which may have the old grefs.
		v.forgetConnection()
	}
	o := v.offer()
	if err := v.show(ctx, xenbus.InitWait, o.nodes()); err != nil {
		return err
	}
	v.nodes.offered = o
	return nil
}

// showConnected writes the nodes that describe the disk and shows Connected.
func (v *Vbd) showConnected(ctx context.Context) error {
	c := v.conn.now
	list := diskNodes(v.disk.open, &v.disk.target, c.persistent)
	first := v.own != xenbus.Connected
	if err := v.show(ctx, xenbus.Connected, list); err != nil {
		return err
	}
	v.nodes.shown = shown{sectorsText(v.disk.open), v.disk.open.SectorSize(), c.persistent}
	v.log.Info("connected", zap.Bool("again", !first), zap.Int("queues", len(c.frontend.queues)),
		zap.Stringer("protocol", c.frontend.protocol), zap.Uint64("sectors", v.disk.open.Sectors()))
	v.clearError(ctx)
	return nil
}

// endRemoved ends the vbd because its directory is gone.
func (v *Vbd) endRemoved(ctx context.Context) {
	v.disconnect()
	v.release()
	v.clearError(ctx)
}

// release gives up everything of a device that is gone, or about to go: the disk with its
// lock, the record and the journals. A connection whose operations do not end keeps the disk
// and so the lock until they do: nothing else can be served from it.
func (v *Vbd) release() {
	v.closeDisk()
	v.conn.ending = nil
	v.forget()
}

// suspend stops serving without any sign to the frontend: the journals, the record and the
// rings stay as they are, for a successor.
func (v *Vbd) suspend() {
	v.stop()
	v.closeDisk()
	v.frontWatch.Close(v.work)
}

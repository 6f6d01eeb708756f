// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// maxRounds bounds how often a look starts over because what it saw changed.
const maxRounds = 8

// look reads both directories and does what they call for. It reports whether
// the vif is at its end.
func (v *Vif) look() (gone bool) {
	for range maxRounds {
		err := v.round()
		switch {
		case err == nil, errors.Is(err, errWait):
			return false
		case errors.Is(err, xenstore.ErrClosed):
			return false // SetStore will poke
		case errors.Is(err, errDirGone):
			v.leave()
			return true
		case errors.Is(err, errTaken):
			v.yield()
			return true
		case errors.Is(err, errAgain):
			v.unread |= unreadNodes
			continue
		}
		v.fail(err)
		break
	}
	v.unread = unreadAll
	v.wakeIn(retryAfter)
	return false
}

// round observes once, plans once, and takes the steps planned.
func (v *Vif) round() error {
	if err := v.observe(); err != nil {
		return err
	}
	if v.lost {
		if err := v.unplug(); err != nil {
			return err
		}
	}
	if err := v.inheritQuarantine(); err != nil {
		return err
	}
	v.followHotplug()
	v.dropSpares()
	v.followRate()
	v.followMcast()
	if err := v.followHeadroom(); err != nil {
		return err
	}
	now := v.situation()
	v.spoke = false
	for _, s := range plan(now) {
		v.log.Debug("step", zap.Stringer("step", s), zap.Stringer("own", v.own), zap.Stringer("frontend", v.front))
		if err := v.take(s); err != nil {
			return err
		}
	}
	if v.lost {
		return errAgain
	}
	return nil
}

// take takes one step.
func (v *Vif) take(s step) error {
	switch s {
	case stepPublish:
		return v.publish()
	case stepInitWait:
		return v.show(xenbus.InitWait)
	case stepTap:
		if v.offer.err != nil {
			return v.giveUp(v.offer.err)
		}
		return v.makeTap()
	case stepConnect:
		return v.connect()
	case stepPlug:
		if err := v.plug(); err != nil {
			return err
		}
		if v.own == xenbus.Connected {
			v.clearTrouble()
		}
	case stepConnected:
		if err := v.show(xenbus.Connected); err != nil {
			return err
		}
		f := v.link.front
		v.log.Info("connected", zap.Int("queues", len(f.queues)), zap.Strings("features", f.features.names()))
		v.clearTrouble()
	case stepDisconnect:
		v.disconnect()
	case stepClosing:
		return v.show(xenbus.Closing)
	case stepClosed:
		return v.show(xenbus.Closed)
	case stepReconfigured:
		// Our own state stays: the frontend goes on with the same rings and
		// does not connect again.
		return v.write(xenbus.Reconfigured)
	case stepDetaching:
		return v.write(xenbus.Closing)
	case stepAwaitKey:
		v.wakeIn(max(time.Until(v.reconf.since.Add(keyGrace)), 0) + time.Millisecond)
	case stepUnregister:
		v.unregister()
	case stepGrace:
		v.wakeAt(v.detachAt.Add(time.Millisecond))
	case stepUnexpected:
		return v.giveUp(frontError(&xenbus.KeyError{
			Key: "state", Value: v.front.Value(),
			Want: "a state that a frontend of a vif goes to",
		}))
	}
	return nil
}

// takeOver finds out where a predecessor left the vif.
func (v *Vif) takeOver(n nodes) {
	v.own, v.shown = xenbus.Initialising, n.state
	switch n.state {
	case xenbus.InitWait, xenbus.Closing, xenbus.Closed:
		v.own = n.state
	case xenbus.Connected:
		v.own = xenbus.Connected
	case xenbus.Reconfigured:
		v.own = xenbus.Connected
		switch n.behind {
		case xenbus.InitWait, xenbus.Closing, xenbus.Closed:
			if !n.claimed {
				v.own = n.behind
			}
		}
	}
	if v.own == xenbus.Initialising {
		// What there is of a vif in this place is of a device that is no more. Of
		// one that was connected there is a record; a script may have moved its TAP.
		v.hadTap = len(v.kept) > 0
		if v.cfg.RunDir != "" {
			_, err := os.Stat(v.recordPath())
			v.hadTap = v.hadTap || err == nil
		}
		v.unregister()
	} else {
		v.loadRecord()
	}
	v.claimed = n.claimed
	// Of one that was claimed the other back end had the interface, until the
	// hotplug script is through with ours.
	v.hadTap = v.own != xenbus.Initialising && (!v.claimed || n.plugged())
	if v.hadTap && len(v.kept) == 0 && (v.own == xenbus.InitWait || v.own == xenbus.Connected) {
		// Now, before there is another: a successor could not tell that the
		// hotplug script has never seen that one.
		found, err := v.findTap()
		v.lost = err == nil && found == nil
	}
	v.log.Debug("takes over", zap.Stringer("state", n.state))
}

// startOver forgets all about a device that the toolstack removed and made
// again in the same place.
//
// Of a device that is new no hotplug script can be through: it runs when InitWait is
// shown. Where hotplug-status says so, only the state was written, and the
// script has not seen the next TAP.
func (v *Vif) startOver(n *nodes) {
	v.log.Info("the toolstack made the device anew")
	v.unregister()
	v.own, v.hadTap, v.lost = xenbus.Initialising, n.hotplug == "connected", false
	v.detachAt = time.Time{}
	v.tried, v.reason = nil, ""
	v.hidden = false
}

// show moves the vif to a state and tells the frontend.
func (v *Vif) show(s xenbus.State) error {
	if err := v.write(s); err != nil {
		return err
	}
	v.own = s
	return nil
}

// write writes the state node, if it still is as it was seen last. If it is not
// there any more, a write would bring a directory back that the toolstack has
// removed. If it holds something else, a write would hide that the toolstack
// wants the device gone.
func (v *Vif) write(s xenbus.State) error {
	err := v.change(func(tx *xenstore.Tx, was xenbus.State) error {
		if was == s {
			return nil
		}
		if err := v.keepBehind(tx, was, s); err != nil {
			return err
		}
		return tx.Write(v.cfg.Path+"/state", s.Value())
	})
	if err == nil {
		v.shown = s
	}
	return err
}

// behindKey is where the vif really is while its node shows Reconfigured. Without
// it that is Connected, as with xen-netback. A successor needs to know.
const behindKey = "reconfigured-in"

// keepBehind keeps behindKey when the node is to show something else.
func (v *Vif) keepBehind(tx *xenstore.Tx, was, s xenbus.State) error {
	behind := v.own
	if !v.detachAt.IsZero() {
		behind = xenbus.Closing // which the toolstack wrote, and we are about to hide
	}
	if s == xenbus.Reconfigured && behind != xenbus.Connected {
		return tx.Write(v.cfg.Path+"/"+behindKey, behind.Value())
	}
	if was != xenbus.Reconfigured {
		return nil
	}
	if err := tx.Remove(v.cfg.Path + "/" + behindKey); !errors.Is(err, xenstore.ErrNotExist) {
		return err
	}
	return nil
}

// change changes the backend directory, unless it is gone, or its state is not
// what was seen last.
func (v *Vif) change(f func(tx *xenstore.Tx, state xenbus.State) error) error {
	return v.cfg.Store.Transaction(func(tx *xenstore.Tx) error {
		s, err := tx.Read(v.cfg.Path + "/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return errDirGone
		}
		if err != nil {
			return err
		}
		state, err := xenbus.ParseState(tidy(s))
		if err != nil {
			state = xenbus.Unknown
		}
		if state != v.shown {
			return errAgain
		}
		return f(tx, state)
	})
}

// publish makes the TAP, which has to be there before the state tells the
// toolstack to run its script on it, and writes what the backend can do.
func (v *Vif) publish() error {
	if v.own != xenbus.InitWait || v.front != xenbus.Connected && v.front != xenbus.Reconfiguring {
		// What connects next has new rings, perhaps with the old grefs.
		v.removeJournals()
	}
	if v.nodes.mac != "" {
		if _, err := parseMAC(v.nodes.mac); err != nil {
			return v.giveUp(err)
		}
	}
	if err := v.makeTap(); err != nil {
		return err
	}
	list := offers(v.maxQueues(), v.offload(), v.controlRings())
	err := v.change(func(tx *xenstore.Tx, _ xenbus.State) error {
		for _, p := range list {
			if err := tx.Write(v.cfg.Path+"/"+p.key, p.value); err != nil {
				return fmt.Errorf("publish features: %w", err)
			}
		}
		return nil
	})
	if err == nil {
		v.nodes.wrote(list)
	}
	return err
}

// leave ends the vif: its directory is gone, and nobody is left to read of
// errors.
func (v *Vif) leave() {
	v.unregister()
	v.clearTrouble()
}

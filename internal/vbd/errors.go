// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Errors that tell reconcile how to continue.
var (
	errDirGone = errors.New("the toolstack has removed the backend directory")
	errAgain   = errors.New("what was observed has changed")
	errWait    = errors.New("nothing can be done now; the alarm is set")
	errTaken   = errors.New("another back end has taken the device")
)

// retryAfter is the time between two attempts after a failure of xenstored or of the host.
const retryAfter = time.Second

// block keeps a vbd from connecting. Its zero value does not.
type block struct {
	attempt *attempt  // failed, and is not repeated unchanged; nil in a quarantine that a predecessor began
	reason  string    // reason of the quarantine; empty: the vbd is not quarantined
	stamp   xen.Stamp // of the quarantined connection; zero: there was none
}

func (b *block) phase() blockPhase {
	switch {
	case b.reason != "":
		return blockQuarantined
	case b.attempt != nil:
		return blockRefused
	}
	return blockNone
}

// attempt holds everything that decides the outcome of an attempt to connect. A failed
// attempt is not repeated before one of these has changed: otherwise a frontend that waits
// would make the vbd try without end.
type attempt struct {
	frontState xenbus.State
	target     target
	frontend   *frontend
	err        string // of the frontend's keys
}

// attempt returns the attempt that would be made now.
func (v *Vbd) attempt() *attempt {
	a := &attempt{frontState: v.guest.state, target: v.nodes.target, frontend: v.guest.keys.frontend}
	if v.guest.keys.err != nil {
		a.err = v.guest.keys.err.Error()
	}
	return a
}

// same reports whether both attempts have the same outcome.
func (a *attempt) same(b *attempt) bool {
	return a.frontState == b.frontState && a.target == b.target && a.err == b.err &&
		(a.frontend == b.frontend || a.frontend.same(b.frontend))
}

// unblocked reports whether the frontend's keys differ from those of the failed attempt, or
// the frontend has reconnected after a quarantine.
func (v *Vbd) unblocked() bool {
	b := &v.block
	if b.attempt == nil {
		return false
	}
	if b.reason == "" {
		return !b.attempt.same(v.attempt())
	}
	now := v.guest.keys.frontend
	return !hasKeys(v.guest.state) || now != nil && (!now.same(b.attempt.frontend) || v.guest.stateIsNew && v.ringRenewed(now, b.stamp))
}

// giveUp records that the frontend's request cannot be fulfilled. The next plan closes the
// device. The frontend may then request something else.
func (v *Vbd) giveUp(ctx context.Context, cause error) error {
	if v.cfg.Taken != nil && v.cfg.Taken() {
		return errTaken // the other back end has caused the failure, and serves the device now
	}
	v.reportError(ctx, "connection given up", cause)
	v.block = block{attempt: v.attempt()}
	return errAgain
}

// retryOrGiveUp decides whether to retry after a failure to connect. A guest whose keys are
// right must not lose its disk because the host is short of a resource for a while, or
// because a dying predecessor still has its event channels: the vbd tries again until it
// succeeds. After any other failure it gives up.
func (v *Vbd) retryOrGiveUp(ctx context.Context, cause error) error {
	if !isHostError(cause) && !v.boundByPredecessor(cause) {
		return v.giveUp(ctx, cause)
	}
	v.alarm.In(busyPoll)
	if time.Since(v.conn.failingSince) > busyFor {
		v.reportError(ctx, "host failed, trying again", cause)
		v.alarm.In(retryAfter)
	}
	return errWait
}

// A dying predecessor closes its files one by one. busyFor bounds the time that this may
// take; busyPoll is the time between two attempts meanwhile.
const (
	busyFor  = time.Second
	busyPoll = 20 * time.Millisecond
)

// boundByPredecessor reports whether a predecessor that still has the guest's event
// channels may be the cause of a failure: Xen binds each port only once.
func (v *Vbd) boundByPredecessor(err error) bool {
	var e *evtchn.Error
	bound := v.own == xenbus.Connected && errors.As(err, &e) && e.Op == "bind" && errors.Is(err, unix.EINVAL)
	return bound && time.Since(v.conn.failingSince) <= busyFor
}

// hostErrors are errors that no guest can cause.
var hostErrors = [...]error{
	unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EDQUOT,
	unix.EAGAIN, unix.EINTR, unix.EIO, unix.EROFS, unix.EACCES, unix.EPERM, unix.ENODEV, unix.ENOENT,
	blkplane.ErrThreads, blkengine.ErrDied,
}

// isHostError reports whether an error is due to the host, and not to what the guest has
// published.
func isHostError(err error) bool {
	var key *xenbus.KeyError
	if errors.As(err, &key) {
		return false
	}
	for _, e := range hostErrors {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// quarantine takes a vbd out of service whose frontend has broken the protocol. Its state
// stays, so that toolstack and guest can still close it properly. The quarantine ends
// when the frontend reconnects.
func (v *Vbd) quarantine(ctx context.Context, cause error) {
	v.block = block{attempt: v.attempt(), reason: cause.Error()}
	if c := v.conn.now; c != nil {
		v.block.stamp = c.stamp
	}
	v.reportError(ctx, "quarantined", fmt.Errorf("quarantined: %w", cause))
	v.disconnect()
	v.saveRecord()
}

// adoptQuarantine continues a quarantine that a predecessor began, unless the frontend has
// reconnected.
func (v *Vbd) adoptQuarantine(ctx context.Context) {
	if v.block.reason == "" || v.block.attempt != nil {
		return
	}
	f := v.guest.keys.frontend
	if f == nil || v.block.stamp.IsZero() || v.ringRenewed(f, v.block.stamp) {
		v.block = block{}
		return
	}
	v.block.attempt = v.attempt()
	v.reportError(ctx, "quarantine adopted", errors.New("quarantined: "+v.block.reason))
}

// reportScriptError reports the error of a hotplug script that has failed.
func (v *Vbd) reportScriptError(ctx context.Context) {
	if v.nodes.scriptErr != "" {
		v.reportError(ctx, "hotplug script failed", errors.New("hotplug script: "+xenbus.Clip(v.nodes.scriptErr)))
	}
}

// reportError logs an error under the name of the event, and writes it into the error node.
func (v *Vbd) reportError(ctx context.Context, event string, err error) {
	v.errorNode.Report(ctx, v.work, event, err)
}

// clearError removes the error node.
func (v *Vbd) clearError(ctx context.Context) { v.errorNode.Clear(ctx, v.work) }

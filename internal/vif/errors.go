// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
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

// block keeps a vif from connecting. Its zero value does not.
type block struct {
	attempt *attempt    // failed, and is not repeated unchanged; nil in a quarantine that a predecessor began
	reason  string      // reason of the quarantine; empty: the vif is not quarantined
	stamp   netif.Stamp // of the quarantined connection; zero: there was none
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
// attempt is not repeated before one of these has changed: otherwise a frontend in state
// Connected would make the vif try without end.
type attempt struct {
	frontState xenbus.State
	mac, mtu   string
	offer      frontendOffer
}

// attempt returns the attempt that would be made now.
func (v *Vif) attempt() *attempt {
	a := &attempt{frontState: v.guest.state, mac: v.nodes.mac, mtu: v.nodes.mtu, offer: v.guest.offer}
	if a.frontState == xenbus.Reconfiguring {
		a.frontState = xenbus.Connected // the frontend returns to it, with the same rings
	}
	return a
}

// same reports whether both attempts have the same outcome.
func (a *attempt) same(b *attempt) bool {
	if a.frontState != b.frontState || a.mac != b.mac || a.mtu != b.mtu {
		return false
	}
	if a.offer.err != nil && b.offer.err != nil {
		return a.offer.err.Error() == b.offer.err.Error()
	}
	return a.offer.frontend == b.offer.frontend || a.offer.frontend.same(b.offer.frontend)
}

// giveUp records that the frontend's request cannot be fulfilled. The next plan closes the
// device. The frontend may then request something else.
func (v *Vif) giveUp(ctx context.Context, cause error) error {
	if v.cfg.Taken != nil && v.cfg.Taken() {
		return errTaken // the other back end has caused the failure, and serves the device now
	}
	v.reportError(ctx, "connection given up", cause)
	v.block = block{attempt: v.attempt()}
	return errAgain
}

// retryOrGiveUp decides whether to retry after a failure. A connected guest whose keys are
// right must not lose its network because the host is short of a resource for a while, or
// is set up wrongly: the vif tries again until it succeeds. After any other failure it
// gives up.
func (v *Vif) retryOrGiveUp(ctx context.Context, cause error) error {
	if v.own != xenbus.Connected || !isHostError(cause) {
		return v.giveUp(ctx, cause)
	}
	v.reportError(ctx, "host failed, trying again", cause)
	v.alarm.In(retryAfter)
	return errWait
}

// hostErrors are errors that no guest can cause.
var hostErrors = [...]error{
	unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EDQUOT,
	unix.EAGAIN, unix.EINTR, unix.EIO, unix.EROFS, unix.EACCES, unix.EPERM, unix.ENODEV, unix.ENOENT,
	tap.ErrMismatch, tap.ErrNotSupported, tap.ErrElsewhere, dataplane.ErrClosed,
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

// A dying predecessor closes its files one by one. busyFor bounds the time that this may
// take; busyPoll is the time between two attempts meanwhile.
const (
	busyFor  = time.Second
	busyPoll = 20 * time.Millisecond
)

// waitWhileBusy is called with err when something that the vif needs is in use. It makes
// the vif try again soon and returns errWait, or returns err if that has lasted for more
// than busyFor.
func (v *Vif) waitWhileBusy(err error) error {
	now := time.Now()
	if v.busySince.IsZero() {
		v.busySince = now
	}
	if now.Sub(v.busySince) > busyFor {
		return err
	}
	v.alarm.In(busyPoll)
	return errWait
}

// quarantine takes a vif out of service whose frontend has broken the protocol. Its state
// stays, so that toolstack and guest can still close it properly. The quarantine ends
// when the frontend reconnects.
func (v *Vif) quarantine(ctx context.Context, cause error) {
	v.block = block{attempt: v.attempt(), reason: cause.Error()}
	if v.conn != nil {
		v.block.stamp = v.conn.Stamp
	}
	v.reportError(ctx, "quarantined", fmt.Errorf("quarantined: %w", cause))
	v.disconnect()
	v.saveRecord()
}

// reportError logs an error under the name of the event, and writes it into the error
// node. It does nothing if the node has this error already.
func (v *Vif) reportError(ctx context.Context, event string, err error) {
	v.errorNode.Report(ctx, v.cfg.Store, event, err)
}

// clearError removes the error node.
func (v *Vif) clearError(ctx context.Context) { v.errorNode.Clear(ctx, v.cfg.Store) }

// frontendError marks an error as one of the frontend's keys.
func frontendError(err error) error { return fmt.Errorf("frontend %w", err) }

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"path"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

var (
	// errDirGone: the toolstack removed the backend directory.
	errDirGone = errors.New("backend directory is gone")
	// errAgain: what was observed has changed. Look again.
	errAgain = errors.New("the situation has changed")
	// errWait: nothing to be done now. The alarm is set.
	errWait = errors.New("not yet")
	// errTaken: another back end has the device.
	errTaken = errors.New("another back end has taken the device")
)

// retryAfter is when to try again what failed on the way to xenstore.
const retryAfter = time.Second

// attempt is all that can decide whether a connection comes about. What failed
// is not tried again before one of it has changed: a frontend in state Connected
// would otherwise have us try without end.
type attempt struct {
	front    xenbus.State
	mac, mtu string
	offer    offer
}

// attempt is what would be tried now.
func (v *Vif) attempt() *attempt {
	a := &attempt{front: v.front, mac: v.nodes.mac, mtu: v.nodes.mtu, offer: v.offer}
	if a.front == xenbus.Reconfiguring {
		a.front = xenbus.Connected // and back, with the same rings
	}
	return a
}

// same reports whether both would go the same way.
func (a *attempt) same(b *attempt) bool {
	if a.front != b.front || a.mac != b.mac || a.mtu != b.mtu {
		return false
	}
	if a.offer.err != nil && b.offer.err != nil {
		return a.offer.err.Error() == b.offer.err.Error()
	}
	return a.offer.rings == b.offer.rings || a.offer.rings.same(b.offer.rings)
}

// giveUp remembers what cannot be. The plan made next closes the device; the
// frontend may come again.
func (v *Vif) giveUp(cause error) error {
	if v.cfg.Taken != nil && v.cfg.Taken() {
		return errTaken // its doing, and its turn
	}
	v.fail(cause)
	v.tried, v.reason = v.attempt(), ""
	return errAgain
}

// hostFails is called when something cannot be done. A guest that is connected,
// and has named nothing wrong, is not to lose its network because the host is
// short of something for a while, or is set up wrongly: that is tried again until
// it succeeds. Anything else is given up.
func (v *Vif) hostFails(cause error) error {
	if v.own != xenbus.Connected || !ofHost(cause) {
		return v.giveUp(cause)
	}
	v.fail(cause)
	v.wakeIn(retryAfter)
	return errWait
}

// hostErrors are errors that no guest can cause.
var hostErrors = [...]error{
	unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EDQUOT,
	unix.EAGAIN, unix.EINTR, unix.EIO, unix.EROFS, unix.EACCES, unix.EPERM, unix.ENODEV, unix.ENOENT,
	tap.ErrMismatch, tap.ErrNotSupported, tap.ErrElsewhere, dataplane.ErrClosed,
}

// ofHost reports whether an error is the host's, whatever the guest has named.
func ofHost(err error) bool {
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

// A predecessor that is dying lets go of what it holds one by one. busyFor is how
// long that may take, busyPoll how often to try meanwhile.
const (
	busyFor  = time.Second
	busyPoll = 20 * time.Millisecond
)

// await is called when what the vif needs is in use. That is not for ever, so it
// is no reason to close the device, but after a while to complain.
func (v *Vif) await(err error) error {
	now := time.Now()
	if v.busySince.IsZero() {
		v.busySince = now
	}
	if now.Sub(v.busySince) > busyFor {
		return err
	}
	v.wakeIn(busyPoll)
	return errWait
}

// quarantine takes a vif whose frontend broke the protocol out of service. Its
// state stays, so that toolstack and guest can still close it properly; it comes
// back when the frontend connects again.
func (v *Vif) quarantine(cause error) {
	v.tried = v.attempt()
	v.reason, v.barred = cause.Error(), netif.Stamp{}
	if v.link != nil {
		v.barred = v.link.stamp
	}
	v.fail(fmt.Errorf("quarantined: %w", cause))
	v.disconnect()
	v.saveRecord()
}

// fail makes an error known: in the log, and where the toolstack's people look.
func (v *Vif) fail(err error) {
	text := errText(err)
	if text == v.trouble {
		return
	}
	v.trouble = text
	v.log.Error("trouble", errField(err))
	if v.cfg.ErrorPath == "" {
		return
	}
	if werr := v.cfg.Store.Write(v.cfg.ErrorPath, text); werr != nil && !errors.Is(werr, xenstore.ErrClosed) {
		v.log.Warn("error node", errField(werr))
	}
}

// clearTrouble takes the error back. Were its node to stay, it would mislead
// people, and one by one use up the nodes that a driver domain may have.
func (v *Vif) clearTrouble() {
	v.trouble = ""
	if v.cfg.ErrorPath == "" {
		return
	}
	err := v.cfg.Store.Transaction(func(tx *xenstore.Tx) error {
		dev := path.Dir(v.cfg.ErrorPath)
		if err := tx.Remove(dev); err != nil {
			return err
		}
		dom := path.Dir(dev)
		if others, err := tx.List(dom); err != nil || len(others) > 0 {
			return err
		}
		return tx.Remove(dom)
	})
	if err != nil && !errors.Is(err, xenstore.ErrNotExist) && !errors.Is(err, xenstore.ErrClosed) {
		v.log.Warn("error node", errField(err))
	}
}

// frontError says whose key it is.
func frontError(err error) error { return fmt.Errorf("frontend %w", err) }

// errText is an error as Linux back ends write it: an errno and a text.
func errText(err error) string {
	errno := unix.EINVAL // what was found makes no sense
	_ = errors.As(err, &errno)
	text := fmt.Sprintf("%d %v", int(errno), err)
	const most = 512
	if len(text) > most {
		text = text[:most]
	}
	return text
}

func errField(err error) zap.Field { return zap.NamedError("reason", err) }

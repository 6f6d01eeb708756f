// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Reasons for which a vif cannot be released to, or adopted from, another back end.
var (
	ErrEnded   = errors.New("the vif has ended, or waits for xenstored")
	ErrNotOpen = errors.New("the vif is neither connected nor waiting for its guest")
	// ErrMcast: the guest sends its multicast list once. Without it, all multicast
	// would be lost.
	ErrMcast = errors.New("its guest has sent its multicast list, and would not send it to another back end")
	// ErrCtrlRing: the guest sends its hash settings and static grants once.
	ErrCtrlRing = errors.New("its guest has a control ring, and would not repeat its settings to another back end")
)

// ctrlRingKey is the frontend's key for the gref of its control ring.
const ctrlRingKey = "ctrl-ring-ref"

// CanAdopt returns an error if the vif in the backend directory at path cannot be served
// by this back end. Its guest may be connected to another one. maxQueues is that of
// [Options].
func CanAdopt(ctx context.Context, s Store, path string, maxQueues int) error {
	n, err := readNodes(ctx, s, path)
	if err != nil {
		return err
	}
	switch n.state {
	case xenbus.Initialising, xenbus.InitWait, xenbus.Connected, xenbus.Reconfigured:
	default:
		return fmt.Errorf("%w: it is %v", ErrNotOpen, n.state)
	}
	k := xenbus.NewReader(ctx, xenbus.GuestStore(s), n.frontendDir)
	state, _ := k.Text("state")
	if front, err := xenbus.ParseState(state); k.Err() != nil || err != nil || front != xenbus.Connected && front != xenbus.Reconfiguring {
		return k.Err() // the frontend has not published anything yet
	}
	if _, has := k.Text(ctrlRingKey); has {
		return ErrCtrlRing
	}
	if k.Err() != nil {
		return k.Err()
	}
	_, err = readFrontend(ctx, s, n.frontendDir, max(n.offered.maxQueues, maxQueues), 0)
	return err
}

// Release releases the vif to another back end. When it returns, no page is mapped, no
// channel is bound, and the TAP is gone. The rings and everything in xenstore stay as they
// are. Every packet that was taken from the guest has been sent. lost counts the packets
// from the host that the guest has not received.
//
// If Release fails, the vif is still served.
func (v *Vif) Release(ctx context.Context) (lost int, err error) {
	err = ErrEnded
	v.mail.Call(ctx, func() { lost, err = v.release(ctx) })
	if err != nil {
		return 0, fmt.Errorf("%v cannot be released: %w", v.cfg.ID, err)
	}
	return lost, nil
}

func (v *Vif) release(ctx context.Context) (lost int, err error) {
	switch {
	case v.own != xenbus.InitWait && v.own != xenbus.Connected, !v.detachAt.IsZero():
		return 0, ErrNotOpen
	case v.block.attempt != nil:
		return 0, fmt.Errorf("%w: %s", ErrNotOpen, v.errorNode.Text())
	case v.conn != nil && v.conn.frontend.features.mcast:
		return 0, ErrMcast
	}
	switch _, err := xenbus.GuestStore(v.cfg.Store).Read(ctx, v.nodes.frontendDir+"/"+ctrlRingKey); {
	case err == nil:
		return 0, ErrCtrlRing
	case !errors.Is(err, xenstore.ErrNotExist):
		return 0, err
	}
	if v.conn != nil {
		v.setCarrier(false)
		for _, q := range v.link.Status().Queues {
			lost += q.Backlog
		}
		v.conn = nil
		v.closeLink(netengine.Leave)
		lost += v.drainTap()
	}
	v.removeTap()
	v.removeJournals()
	v.removeRecord()
	v.released = true
	v.log.Info("released to another back end", zap.Int("lost", lost))
	return lost, nil
}

// drainTap reads the packets that wait in the TAP's queues, and returns their number.
func (v *Vif) drainTap() (packets int) {
	var head [tap.VnetHdrLen + 1]byte // the kernel drops the rest of each packet
	for i := range v.tap.Queues() {
		for {
			if _, err := v.tap.Queue(i).Read(head[:]); err != nil {
				break
			}
			packets++
		}
	}
	return packets
}

// endTaken ends the vif because another back end has taken its device.
func (v *Vif) endTaken() {
	v.log.Warn("another back end has taken the device")
	v.suspend()
	v.released = true
}

// suspend stops serving without any sign to the frontend: the TAP, the journals and the
// rings stay as they are, for a successor.
func (v *Vif) suspend() {
	if v.conn != nil {
		v.closeLink(netengine.Leave)
		v.saveRecord()
		v.conn = nil
	}
	v.unwatch()
	v.closeKeptQueues()
	if v.tap == nil {
		return
	}
	if err := v.tap.CloseKeep(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("close TAP failed", zap.Error(err))
	}
	v.tap = nil
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Reasons why a vif cannot be released.
var (
	// ErrEnded: the vif has ended, or does not answer.
	ErrEnded = errors.New("the vif has ended, or waits for xenstored")
	// ErrNotOpen: a back end takes over from one that is in InitWait or
	// Connected.
	ErrNotOpen = errors.New("the vif is neither connected nor waiting for its guest")
	// ErrMcast: the guest's multicast list, which guests send once, would be
	// lost, and with it all multicast.
	ErrMcast = errors.New("its guest has told us which multicast it wants, and would not tell another back end")
)

// Release gives the vif up for another back end to take over: nothing of it is
// mapped or bound any more, the TAP is gone, and what stands in xenstore stays as
// it is, the frontend's rings with it. Every packet that was taken from the guest
// has been sent. Lost is how many the host had sent that the guest has not got.
//
// When it fails the vif is served on.
func (v *Vif) Release(ctx context.Context) (lost int, err error) {
	err = ErrEnded
	v.call(ctx, func() { lost, err = v.release() })
	if err != nil {
		return 0, fmt.Errorf("%s cannot be released: %w", v.Name(), err)
	}
	return lost, nil
}

func (v *Vif) release() (lost int, err error) {
	switch {
	case v.own != xenbus.InitWait && v.own != xenbus.Connected, !v.detachAt.IsZero():
		return 0, ErrNotOpen
	case v.tried != nil:
		return 0, fmt.Errorf("%w: %s", ErrNotOpen, v.trouble)
	case v.link != nil && v.link.front.features.mcast:
		return 0, ErrMcast
	}
	switch _, err := (guestNodes{v.cfg.Store}).Read(v.nodes.front + "/" + ctrlRingKey); {
	case err == nil:
		return 0, ErrCtrlRing
	case !errors.Is(err, xenstore.ErrNotExist):
		return 0, err
	}
	if v.link != nil {
		l := v.link
		v.setCarrier(false)
		for i := range l.conn.Queues() {
			v.turn.Aside(func() { lost += l.conn.State(i).Backlog })
		}
		v.link, v.live = nil, false
		l.release(v)
		lost += v.drain()
	}
	v.removeTap()
	v.removeJournals()
	v.removeRecord()
	v.left = true
	v.log.Info("released to another back end", zap.Int("lost", lost))
	return lost, nil
}

// drain takes what the host has sent to the TAP and nobody has read.
func (v *Vif) drain() (frames int) {
	var head [tap.VnetHdrLen + 1]byte // the rest of each is cut
	for i := range v.tap.Queues() {
		for {
			if _, err := v.tap.Queue(i).Read(head[:]); err != nil {
				break
			}
			frames++
		}
	}
	return frames
}

// yield ends the vif because another back end has its device.
func (v *Vif) yield() {
	v.log.Warn("another back end has taken the device")
	v.handOver()
	v.left = true
}

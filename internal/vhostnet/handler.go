// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// handler carries out the messages of one session: a vhostuser.Handler. The data path is
// told first, so that it never has fewer features than the TAP.
type handler struct{ *Device }

func (h *handler) SetFeatures(features uint64) error {
	before := h.view.get().features
	if err := h.rings.SetFeatures(features); err != nil {
		return err
	}
	if err := h.link.setOffload(dataplane.TapOffload(features)); err != nil {
		return errors.Join(h.hostFailed(fmt.Errorf("offloads: %w", err)), h.rings.SetFeatures(before))
	}
	h.view.set(func(v *viewed) { v.features = features })
	return nil
}

func (h *handler) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	if err := h.rings.SetMemory(t, rings); err != nil {
		return err
	}
	memory := memoryOf(t)
	h.view.set(func(v *viewed) { v.memory = memory })
	h.log.Debug("memory changed", zap.Any("regions", memory))
	return nil
}

func (h *handler) StartRing(r vhostuser.Ring, t *vhostuser.Table, log *virtqueue.Log) error {
	if err := h.rings.StartRing(r, t, log); err != nil {
		return err
	}
	h.log.Debug("ring started", zap.Int("ring", r.Index), zap.Int("size", r.Size), zap.Uint32("base", r.Base),
		zap.Bool("packed", r.Packed), zap.Bool("enabled", r.Enabled))
	if err := h.follow(r.Index, r.Enabled); err != nil {
		_, stopErr := h.rings.StopRing(r.Index) // its memory is unmapped after an error
		return errors.Join(err, stopErr)
	}
	return nil
}

func (h *handler) UpdateRing(r vhostuser.Ring) error {
	if err := h.rings.UpdateRing(r); err != nil {
		return err
	}
	return h.follow(r.Index, r.Enabled)
}

// follow gives the host the TAP queue of a pair when the ring to its guest is enabled, or
// takes it away.
func (h *handler) follow(ring int, enabled bool) error {
	if ring%2 != 0 {
		return nil
	}
	err := h.link.setRunning(ring/2, enabled)
	if err != nil && enabled {
		err = h.hostFailed(fmt.Errorf("queue pair %d: %w", ring/2, err))
	}
	return err
}

// hostFailed ends the session after a failure of the host, and returns it: a front end that
// connects again tries again, and one whose message is only refused may never do.
func (h *handler) hostFailed(err error) error {
	if !errors.Is(err, tap.ErrGone) {
		h.end(err)
	}
	return err
}

// StopRing takes the TAP queue away first, so that no packet is read for a ring that ends.
func (h *handler) StopRing(index int) (base uint32, err error) {
	if err := h.follow(index, false); err != nil {
		h.log.Warn("TAP queue not taken away", zap.Error(err))
	}
	base, err = h.rings.StopRing(index)
	h.notices.clear(index / 2)
	h.log.Debug("ring stopped", zap.Int("ring", index), zap.Uint32("base", base), zap.Error(err))
	return base, err
}

func (h *handler) SetLog(l *virtqueue.Log) error {
	if err := h.rings.SetLog(l); err != nil {
		return err
	}
	h.view.set(func(v *viewed) { v.logging = l != nil })
	return nil
}

// SetStatus has nothing to do: rings are stopped by GET_VRING_BASE or by the end of the
// session, before or after the driver's reset.
func (h *handler) SetStatus(status uint8) error {
	h.view.set(func(v *viewed) { v.status = status })
	return nil
}

func (h *handler) Reset() error {
	if err := h.rings.SetFeatures(0); err != nil {
		return err
	}
	h.view.set(func(v *viewed) { v.features, v.status = 0, 0 })
	return h.link.setOffload(tap.Offload{})
}

func (h *handler) SetMTU(mtu uint16) error {
	if err := h.link.setMTU(int(mtu)); err != nil {
		h.log.Warn("MTU refused", zap.Error(err))
		return err
	}
	h.view.set(func(v *viewed) { v.mtu = int(mtu) })
	return nil
}

func (h *handler) SendRARP(mac [6]byte) error {
	return h.rings.SendRARP(rarpFrame(mac))
}

var _ vhostuser.Handler = (*handler)(nil)

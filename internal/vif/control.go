// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// controlKey is a key of the backend directory. The toolstack writes there which control
// ring protocols this vif offers, in the words of [ctrlserver.ParseProtocols].
const controlKey = "control-ring"

// controlRings returns the control ring protocols that the vif offers.
func (v *Vif) controlRings(ctx context.Context) ctrlserver.Protocols {
	if text := v.nodes.control; text != "" {
		p, err := ctrlserver.ParseProtocols(text)
		if err == nil {
			return p
		}
		v.reportError(ctx, "bad key", &xenbus.KeyError{Key: controlKey, Value: text, Want: ctrlserver.Words})
	}
	return v.cfg.ControlRings
}

// ctrlName returns the name of the file with the record of a vif's control ring.
func ctrlName(id xenbus.VifID) string { return "ctrl-" + number(id) }

// ctrlPath returns the path of the record of the vif's control ring. It is empty if there
// is no run directory.
func (v *Vif) ctrlPath() string {
	if v.cfg.RunDir == "" {
		return ""
	}
	return filepath.Join(v.cfg.RunDir, ctrlName(v.cfg.ID))
}

// controlConfig configures the service of the frontend's control ring; nil: it has none.
func (v *Vif) controlConfig(f *frontend) *netengine.Control {
	if !f.ctrl.there {
		return nil
	}
	c := &netengine.Control{
		Offered: v.nodes.offered.control, StaticGrants: v.cfg.StaticGrants,
		SetSteering: v.tap.SetSteering, NoBPF: v.cfg.NoBPF,
	}
	if path := v.ctrlPath(); path != "" {
		c.Records = ctrlserver.RecordFile(path)
	}
	return c
}

// dropSteering removes the steering program that the TAP may have from a predecessor. A kernel
// without such programs returns EINVAL.
func (v *Vif) dropSteering() error {
	if !v.tap.Adopted() {
		return nil
	}
	if err := v.tap.SetSteering(-1); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// clearSteering removes the steering program of a frontend with a control ring from the
// TAP. The TAP may have a program even if setting it returned an error.
func (v *Vif) clearSteering(f *frontend) {
	if !f.ctrl.there || len(f.queues) < 2 || v.cfg.NoBPF != nil {
		return
	}
	if err := v.tap.SetSteering(-1); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("steering program not removed", zap.Error(err))
	}
}

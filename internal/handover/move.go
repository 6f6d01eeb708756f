// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Hotplug makes netbackd serve a vif that no guest uses yet, and returns when its TAP
// exists. It is for the hotplug script vif-netbackd. If the kernel's driver is loaded, the
// toolstack runs the script after the driver has taken the vif, and before the driver may
// connect to the guest.
func (m *Mover) Hotplug(ctx context.Context, id xenbus.VifID) error {
	if !m.Kernel.Serves(id) {
		return m.adopt(ctx, id)
	}
	if err := m.Daemon.CanAdopt(ctx, id.String()); err != nil {
		return err
	}
	_, err := m.unbindAndAdopt(context.WithoutCancel(ctx), id)
	return err
}

// unbindAndAdopt moves a vif from the kernel to netbackd. If netbackd cannot serve it, it
// is bound to the kernel's driver again, and rebound is true.
func (m *Mover) unbindAndAdopt(ctx context.Context, id xenbus.VifID) (rebound bool, err error) {
	if err := m.Kernel.Unbind(id); err != nil {
		return false, err
	}
	err = m.adopt(ctx, id)
	if err == nil {
		return false, nil
	}
	// A request that was not answered may still be carried out.
	_, _ = m.Daemon.Release(ctx, id.String())
	if berr := m.bind(ctx, id); berr != nil {
		return false, errors.Join(err, unserved(id, berr))
	}
	return true, fmt.Errorf("%w; the kernel serves it again", err)
}

// unserved returns the error for a vif that neither back end could be made to serve.
func unserved(id xenbus.VifID, err error) error {
	return fmt.Errorf("returning it failed, so no back end serves it now: %w; `netbackd adopt %s` tries again", err, id)
}

// Fail writes the reason of a failed hotplug to the nodes of the vif's directory that the
// toolstack reads.
func (m *Mover) Fail(ctx context.Context, id xenbus.VifID, cause error) error {
	dir, err := m.directory(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(
		m.Store.Write(ctx, dir+"/hotplug-error", cause.Error()),
		m.Store.Write(ctx, dir+"/hotplug-status", "error"),
	)
}

// Adopt moves a vif from the kernel's driver to netbackd. Its guest may be connected or
// not.
func (m *Mover) Adopt(ctx context.Context, id xenbus.VifID) (r Report, err error) {
	if !m.Kernel.Serves(id) {
		return r, m.adoptUnbound(ctx, id)
	}
	from, err := m.Kernel.Interface(id)
	if err != nil {
		return r, err
	}
	if err := m.Daemon.CanAdopt(ctx, id.String()); err != nil {
		return r, err
	}
	mv, err := m.begin(ctx, id, from)
	if err != nil {
		return r, err
	}
	// An interrupt from here on would leave a guest without network, so it is ignored.
	// Each step has its own time limit.
	ctx = context.WithoutCancel(ctx)
	rebound, err := m.unbindAndAdopt(ctx, id)
	switch {
	case err == nil:
		err = mv.place(ctx, id.String())
	case rebound:
		return mv.end(errors.Join(err, mv.placeKernels(ctx)))
	}
	if err == nil && mv.connected {
		err = m.awaitDaemon(ctx, id)
	}
	return mv.end(err)
}

// adoptUnbound adopts a vif that the kernel does not serve. Either no back end serves it,
// or netbackd does and the hotplug script was not run for its TAP: an adoption was killed
// half-way.
func (m *Mover) adoptUnbound(ctx context.Context, id xenbus.VifID) error {
	s, err := m.Daemon.Vif(ctx, id.String(), 0)
	unknown := errors.Is(err, control.ErrNotFound)
	switch {
	case unknown && !m.Kernel.Loaded():
		return fmt.Errorf("%s: %w, and %w", id, ErrNoVif, ErrKernelNotLoaded)
	case err != nil && !unknown:
		return err
	case err == nil && s.ServedBy == "" && s.Hotplug == "connected":
		return fmt.Errorf("%s: %w", id, ErrServed)
	}
	if err := m.Daemon.Adopt(ctx, id.String()); err != nil {
		return err
	}
	dir, err := m.directory(ctx, id)
	if err != nil {
		return err
	}
	return m.runScript(ctx, id, dir)
}

// Release moves a vif from netbackd to the kernel's driver. Its guest may be connected or
// not.
func (m *Mover) Release(ctx context.Context, id xenbus.VifID) (r Report, err error) {
	s, err := m.canRelease(ctx, id)
	if err != nil {
		return r, err
	}
	mv, err := m.begin(ctx, id, s.Interface)
	if err != nil {
		return r, err
	}
	ctx = context.WithoutCancel(ctx) // as in Adopt
	if mv.inside, err = m.Daemon.Release(ctx, id.String()); err != nil {
		return mv.end(err)
	}
	if err := m.bind(ctx, id); err != nil {
		return mv.end(mv.adoptAgain(ctx, err))
	}
	err = mv.placeKernels(ctx)
	if err == nil && mv.connected {
		err = mv.awaitKernel(ctx)
	}
	return mv.end(err)
}

// canRelease returns the status of a vif that netbackd serves. It returns an error if the
// kernel could not serve it, as far as that is known before the release.
func (m *Mover) canRelease(ctx context.Context, id xenbus.VifID) (s vif.Status, err error) {
	switch {
	case !m.Kernel.Loaded():
		return s, fmt.Errorf("%w; to load it without its taking the vifs that netbackd serves, as root: %s", ErrKernelNotLoaded, SafeLoad)
	case m.Kernel.Serves(id):
		return s, fmt.Errorf("%s: %w", id, ErrKernelServes)
	}
	if s, err = m.status(ctx, id, 0); err != nil {
		return s, err
	}
	most, err := m.Kernel.MaxQueues()
	if err != nil {
		return s, fmt.Errorf("max_queues of xen-netback: %w", err)
	}
	if n := len(s.Queues); n > most {
		return s, fmt.Errorf("%s has %d queues, xen-netback takes %d: it would close the vif; echo %d >/sys/module/xen_netback/parameters/max_queues", id, n, most, n)
	}
	return s, nil
}

// adoptAgain makes netbackd serve a vif again that the kernel cannot serve.
func (mv *move) adoptAgain(ctx context.Context, cause error) error {
	if err := mv.Daemon.Adopt(ctx, mv.id.String()); err != nil {
		return errors.Join(cause, unserved(mv.id, err))
	}
	return errors.Join(fmt.Errorf("%w; netbackd serves it again", cause), mv.place(ctx, mv.id.String()))
}

// status returns the status of a vif that netbackd serves. It waits while the status has
// the revision after.
func (m *Mover) status(ctx context.Context, id xenbus.VifID, after uint64) (vif.Status, error) {
	s, err := m.Daemon.Vif(ctx, id.String(), after)
	if errors.Is(err, control.ErrNotFound) || err == nil && s.ServedBy != "" {
		return s, fmt.Errorf("%s: %w", id, ErrNoVif)
	}
	return s, err
}

// move is a vif that is being moved.
type move struct {
	*Mover
	id        xenbus.VifID
	dir       string // the vif's directory in xenstore
	connected bool   // the guest was connected when the move began
	from      *place
	copy      bool // from can be copied; otherwise the script is run
	count     *counter
	began     time.Time
	through   []int // interfaces by which packets to the guest leave the bridge
	inside    int   // packets that netbackd and its TAP held when it released the vif
	report    Report
}

// begin reads everything that the move needs, so that the gap is short, and starts the
// clock.
func (m *Mover) begin(ctx context.Context, id xenbus.VifID, from string) (*move, error) {
	mv := &move{Mover: m, id: id, report: Report{Lost: -1}}
	var err error
	if mv.dir, err = m.directory(ctx, id); err != nil {
		return nil, err
	}
	state, err := mv.state(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	mv.connected = state == xenbus.Connected || state == xenbus.Reconfigured
	if mv.from, err = placeOf(from); err != nil {
		return nil, err
	}
	if mv.copy, err = mv.from.copyable(); err != nil {
		return nil, err
	}
	mv.through = []int{mv.from.index}
	if mv.from.bridge != 0 && mv.connected {
		text, err := m.Store.Read(ctx, mv.dir+"/mac")
		if err != nil {
			return nil, err
		}
		mac, err := net.ParseMAC(text)
		if err != nil {
			return nil, err
		}
		if mv.count, err = startCounter(mv.from.bridge, mac); err != nil {
			return nil, err
		}
	}
	mv.began = time.Now()
	return mv, nil
}

// place gives the vif's new interface the settings and the bridge port of the old one.
func (mv *move) place(ctx context.Context, name string) error {
	to, err := placeOf(name)
	if err != nil {
		return err
	}
	mv.through = append(mv.through, to.index)
	if !mv.copy {
		mv.report.Script = true
		return mv.runScript(ctx, mv.id, mv.dir)
	}
	if err := mv.from.give(name); err != nil {
		return err
	}
	// The script writes this at its end.
	return mv.Store.Write(ctx, mv.dir+"/hotplug-status", "connected")
}

// placeKernels calls place for the interface of the kernel's driver.
func (mv *move) placeKernels(ctx context.Context) error {
	name, err := mv.Kernel.Interface(mv.id)
	if err != nil {
		return err
	}
	return mv.place(ctx, name)
}

// end stops the clock and the counter.
func (mv *move) end(err error) (Report, error) {
	mv.report.Gap = time.Since(mv.began)
	if mv.count != nil {
		lost, more, cerr := mv.count.stop(mv.through...)
		mv.report.Lost, mv.report.AtLeast = lost+mv.inside, more
		err = errors.Join(err, cerr)
	}
	return mv.report, err
}

// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/pkg/nlsock"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

const (
	// nameTimeout bounds the time that the name of an interface may stay taken after
	// netbackd has released the vif.
	nameTimeout = 3 * time.Second

	// servedTimeout bounds the time until a connected guest is served again.
	servedTimeout = 20 * time.Second

	// recheckInterval bounds the wait for an event. The kernel drops events of interfaces
	// when many come at once.
	recheckInterval = 250 * time.Millisecond
)

// waitFor waits until done returns true or an error, or until ctx ends. It calls done
// again after each event of an interface, and of w if w is not nil.
func waitFor(ctx context.Context, w Watch, done func() (bool, error)) error {
	events, stop, err := nlsock.LinkEvents()
	if err != nil {
		return fmt.Errorf("events of interfaces: %w", err)
	}
	defer stop()
	var nodes <-chan xenstore.Event
	if w != nil {
		nodes = w.C()
	}
	recheck := time.NewTicker(recheckInterval)
	defer recheck.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		var ok bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok = <-events:
			if !ok {
				events = nil
			}
		case _, ok = <-nodes:
			if !ok {
				nodes = nil
			}
		case <-recheck.C:
		}
	}
}

// adopt makes the daemon serve a vif. If the daemon ends before it answers, and a service
// manager starts it again, adopt repeats the request: an adoption outlives the daemon.
func (m *Mover) adopt(ctx context.Context, id xenbus.VifID) error {
	return control.Insist(ctx, m.Daemon,
		func(ctx context.Context) bool { return m.daemonAnswers(ctx, id) },
		func(ctx context.Context) error { return m.Daemon.Adopt(ctx, id.String()) })
}

func (m *Mover) daemonAnswers(ctx context.Context, id xenbus.VifID) bool {
	_, err := m.Daemon.Vif(ctx, id.String(), 0)
	return err == nil || errors.Is(err, control.ErrNotFound)
}

// bind makes the kernel serve a vif that no back end serves. The driver would close the vif
// if the name of its interface were taken, so bind waits until it is free.
func (m *Mover) bind(ctx context.Context, id xenbus.VifID) error {
	limited, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	err := waitFor(limited, nil, func() (bool, error) {
		_, err := nlsock.LinkByName(id.String())
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return true, nil
		}
		return false, err
	})
	switch {
	case err == nil:
		return m.Kernel.Bind(id)
	case ctx.Err() == nil && limited.Err() != nil:
		return fmt.Errorf("interface %s still exists, so xen-netback would close the vif", id)
	}
	return err
}

// awaitDaemon waits until netbackd serves a vif whose guest is connected.
func (m *Mover) awaitDaemon(ctx context.Context, id xenbus.VifID) error {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	var revision uint64
	for {
		s, err := m.status(ctx, id, revision)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s is not served %v after it was adopted", id, servedTimeout)
		case err != nil:
			return err
		case s.State == xenbus.Closing || s.State == xenbus.Closed:
			return fmt.Errorf("%s: netbackd has closed it: %s", id, s.Error)
		case s.State == xenbus.Connected && len(s.Queues) > 0 && s.Carrier:
			return nil
		}
		revision = s.Revision
	}
}

// awaitKernel waits until the kernel serves a vif whose guest is connected.
func (mv *move) awaitKernel(ctx context.Context) error {
	w, err := mv.Store.Watch(ctx, mv.dir+"/state")
	if err != nil {
		return err
	}
	defer w.Close()
	limited, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	err = waitFor(limited, w, func() (bool, error) { return mv.kernelServes(limited) })
	if ctx.Err() == nil && limited.Err() != nil {
		return fmt.Errorf("%s is not served %v after it was released", mv.id, servedTimeout)
	}
	return err
}

// kernelServes reports whether the kernel serves the guest. The driver sets the state
// when the hotplug script is done. The bridge forwards once the kernel has noted the
// carrier, which it does once a second for interfaces that were up before.
func (mv *move) kernelServes(ctx context.Context) (bool, error) {
	state, err := mv.state(ctx)
	switch {
	case err != nil:
		return false, err
	case state == xenbus.Closing, state == xenbus.Closed:
		return false, errors.New("xen-netback has closed the vif; `dmesg` says why")
	case state != xenbus.Connected || !mv.copy || !mv.from.up:
		return state == xenbus.Connected, nil
	}
	l, err := nlsock.LinkByName(mv.from.name)
	if err != nil {
		return false, err
	}
	return l.Attrs().OperState == netlink.OperUp, nil
}

// state reads the back end's state node.
func (mv *move) state(ctx context.Context) (xenbus.State, error) {
	v, err := mv.Store.Read(ctx, mv.dir+"/state")
	if err != nil {
		return xenbus.Unknown, err
	}
	return xenbus.ParseState(v)
}

// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// AdoptTimeout bounds CanAdopt, Adopt and Release. Each makes some thirty requests to
// xenstored, which take seconds on a slow dom0 whose processors are busy with i/o. libxl
// gives a hotplug script, which calls two of the three, 40 s.
const AdoptTimeout = 15 * time.Second

// Errors of Adopt and Release. Their texts name the Kind's driver.
var (
	// ErrKernelServes: the device is still bound to the kernel's driver.
	ErrKernelServes = errors.New("the kernel's driver serves it")
	// ErrKernelNotLoaded: there is no driver to release a device to.
	ErrKernelNotLoaded = errors.New("the kernel's driver is not loaded")
)

// driverError is one of the errors above with the name of the driver.
type driverError struct {
	kind error
	text string
}

func (e driverError) Error() string { return e.text }
func (e driverError) Unwrap() error { return e.kind }

// request is a function for the goroutine in Run.
type request struct {
	do   func(context.Context) error
	done chan<- error
}

// ask makes the goroutine in Run call do, and returns its error.
func (s *Set[D, S]) ask(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case s.requests <- request{do, done}:
	case <-ctx.Done():
		return fmt.Errorf("%s has lost xenstore, or is about to end", s.cfg.Program)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s does not answer; is xenstored alive?", s.cfg.Program)
	}
}

// CanAdopt returns nil if Adopt would succeed for a device that the kernel's driver serves
// now, and otherwise an error with the reason.
func (s *Set[D, S]) CanAdopt(ctx context.Context, id xenbus.DeviceID) error {
	return s.ask(ctx, func(context.Context) error {
		if _, has := s.devices[id]; has {
			return nil
		}
		if err := s.wanted(ctx, id); err != nil {
			return err
		}
		return s.cfg.Kind.CanAdopt(ctx, s.store, s.path(id))
	})
}

// ErrNotWanted is returned for a device that the toolstack means another back end to serve.
var ErrNotWanted = errors.New("it is meant for another back end")

// wanted returns an error for a device that does not exist, or that is not the program's to
// serve.
func (s *Set[D, S]) wanted(ctx context.Context, id xenbus.DeviceID) error {
	exists, err := s.store.Exists(ctx, s.path(id)+"/state")
	if err == nil && !exists {
		err = s.cfg.NotFound
	}
	wants := false
	if err == nil {
		wants, err = s.cfg.Kind.Wants(ctx, s.store, s.path(id))
	}
	if err == nil && !wants {
		err = ErrNotWanted
	}
	if err != nil {
		return fmt.Errorf("%v: %w", id, err)
	}
	return nil
}

// Adopt starts to serve a device that was unbound from the kernel's driver, or does nothing
// if the device is served already. It returns the device.
func (s *Set[D, S]) Adopt(ctx context.Context, id xenbus.DeviceID) (d D, err error) {
	err = s.ask(ctx, func(ctx context.Context) error {
		err := s.adopt(ctx, id)
		d = s.devices[id]
		return err
	})
	return d, err
}

func (s *Set[D, S]) adopt(ctx context.Context, id xenbus.DeviceID) error {
	if _, has := s.devices[id]; has {
		return nil
	}
	if s.kernelServes(id) {
		return fmt.Errorf("%v: %w", id, driverError{ErrKernelServes, "the kernel's " + s.cfg.Driver + " serves it"})
	}
	if s.full(id.Domid) {
		return fmt.Errorf("%v: %s serves at most %d %s of a guest", id, s.cfg.Program, s.cfg.MaxPerGuest, s.cfg.Many)
	}
	if err := s.wanted(ctx, id); err != nil {
		return err
	}
	err := s.change(ctx, id, func(tx *xenstore.Tx) error {
		// The driver removes hotplug-status when it is unbound.
		if exists, err := tx.Exists(ctx, s.path(id)+"/hotplug-status"); err != nil {
			return err
		} else if !exists {
			if err := tx.Write(ctx, s.path(id)+"/hotplug-status", ""); err != nil {
				return err
			}
		}
		if s.cfg.Claimed != "" {
			if err := tx.Write(ctx, s.path(id)+"/"+s.cfg.Claimed, "1"); err != nil {
				return err
			}
		}
		return tx.Write(ctx, s.path(id)+"/"+servedByKey, s.cfg.Program)
	})
	if err != nil {
		return err
	}
	s.cfg.Log.Info(s.cfg.One+" adopted from the kernel's "+s.cfg.Driver, s.fields(id)...)
	s.start(ctx, id)
	return nil
}

// Release undoes Adopt: it calls release for the device, which must leave it to another back
// end. When it returns, no back end serves the device, and the kernel's driver can be bound
// to it.
func (s *Set[D, S]) Release(ctx context.Context, id xenbus.DeviceID, release func(D) error) error {
	return s.ask(ctx, func(run context.Context) error {
		d, has := s.devices[id]
		switch {
		case !has:
			return fmt.Errorf("%v: %w", id, s.cfg.NotFound)
		case s.cfg.Kernel == nil || !s.cfg.Kernel.Takes(id.Class):
			return driverError{ErrKernelNotLoaded, "the kernel's " + s.cfg.Driver + " is not loaded"}
		}
		if err := release(d); err != nil {
			return err
		}
		// Nothing serves the device now, so this does not end with the caller's ctx.
		return s.change(run, id, func(tx *xenstore.Tx) error {
			if err := s.unmark(run, tx, id); err != nil {
				return err
			}
			return tx.Write(run, s.path(id)+"/hotplug-status", "")
		})
	})
}

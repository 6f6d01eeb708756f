// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Kernel is the kernel's driver for the devices of a class. While it is loaded it takes each
// device of this domain that appears. To be adopted, a device must be unbound from it first.
type Kernel interface {
	// Takes reports whether the driver is loaded and takes devices of a class.
	Takes(xenbus.Class) bool
	// Serves reports whether the driver has the device.
	Serves(xenbus.DeviceID) bool
}

// Reason tells why a device of the watched classes is not served.
type Reason int

// Reasons. A device that is ours is served.
const (
	ours        Reason = iota
	NotWanted          // the toolstack means another back end to serve it
	KernelTakes        // the kernel's driver is loaded, and has it or will have it
	OverLimit          // its guest has too many devices
)

// servedByKey in a device's directory names the back end that serves it. So an adoption
// outlives the daemon. The key is removed with the device.
const servedByKey = "served-by"

// kernelServes reports whether the kernel's driver has the device.
func (s *Set[D, S]) kernelServes(id xenbus.DeviceID) bool {
	return s.cfg.Kernel != nil && s.cfg.Kernel.Serves(id)
}

// owner decides whether the program serves a device that it does not serve yet, and returns
// ours if so. It serves those that its Kind wants. While the kernel's driver is loaded, only
// adopted devices are ours: the driver will soon take the others, if it does not serve them
// yet. While the driver is not loaded all wanted devices are ours. They are marked, so that
// they stay ours if the driver is loaded later.
func (s *Set[D, S]) owner(ctx context.Context, id xenbus.DeviceID) (Reason, error) {
	wants, err := s.cfg.Kind.Wants(ctx, s.store, s.path(id))
	switch {
	case err != nil:
		return 0, err
	case !wants:
		return NotWanted, nil
	case s.kernelServes(id):
		return KernelTakes, nil
	case s.full(id.Domid):
		return OverLimit, nil
	case s.cfg.Kernel == nil:
		return ours, nil
	}
	// The mark that a predecessor wrote stays.
	by, err := s.store.Read(ctx, s.path(id)+"/"+servedByKey)
	switch marked := err == nil && by == s.cfg.Program; {
	case err != nil && !errors.Is(err, xenstore.ErrNotExist):
		return 0, err
	case marked:
		return ours, nil
	case s.cfg.Kernel.Takes(id.Class):
		return KernelTakes, nil
	}
	err = s.change(ctx, id, func(tx *xenstore.Tx) error { return tx.Write(ctx, s.path(id)+"/"+servedByKey, s.cfg.Program) })
	if errors.Is(err, s.cfg.NotFound) {
		return KernelTakes, nil // it was detached meanwhile
	}
	return ours, err
}

// change changes a device's directory in a transaction. It returns an error that is
// NotFound if the directory is gone.
func (s *Set[D, S]) change(ctx context.Context, id xenbus.DeviceID, f func(tx *xenstore.Tx) error) error {
	return s.store.Transaction(ctx, func(tx *xenstore.Tx) error {
		_, err := tx.Read(ctx, s.path(id)+"/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return fmt.Errorf("%v: %w", id, s.cfg.NotFound)
		}
		if err != nil {
			return err
		}
		return f(tx)
	})
}

// addOther notes that the program does not serve a device. If the kernel's driver has it,
// addOther removes the mark of owner, which the device may still have from before the driver
// was loaded.
func (s *Set[D, S]) addOther(ctx context.Context, id xenbus.DeviceID, why Reason) (err error) {
	s.mu.Lock()
	was, known := s.others[id]
	s.others[id] = why
	s.mu.Unlock()
	if known && was == why {
		return nil
	}
	switch why {
	case NotWanted:
		s.cfg.Log.Info(s.cfg.One+" not served: it is meant for another back end", s.fields(id)...)
	case KernelTakes:
		s.cfg.Log.Info(s.cfg.One+" not served: it belongs to the kernel's "+s.cfg.Driver, s.fields(id)...)
		err = s.change(ctx, id, func(tx *xenstore.Tx) error { return s.unmark(ctx, tx, id) })
	case OverLimit:
		text := fmt.Sprintf("%s serves at most %d %s of a guest", s.cfg.Program, s.cfg.MaxPerGuest, s.cfg.Many)
		s.cfg.Log.Warn(s.cfg.One+" not served: too many of one guest", append(s.fields(id), zap.Int("limit", s.cfg.MaxPerGuest))...)
		err = s.change(ctx, id, func(tx *xenstore.Tx) error { return tx.Write(ctx, id.ErrorPath(s.self), text) })
	}
	if errors.Is(err, s.cfg.NotFound) {
		return nil
	}
	return err
}

// unmark removes the keys that Adopt wrote.
func (s *Set[D, S]) unmark(ctx context.Context, tx *xenstore.Tx, id xenbus.DeviceID) error {
	for _, node := range [...]string{servedByKey, s.cfg.Claimed} {
		if node == "" {
			continue
		}
		err := tx.Remove(ctx, s.path(id)+"/"+node)
		if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *Set[D, S]) removeOther(id xenbus.DeviceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.others, id)
}

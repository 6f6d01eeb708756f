// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Kernel is the kernel's xen-netback. While it is loaded it takes each vif of this
// domain that appears. To be adopted, a vif must be unbound from it first.
type Kernel interface {
	Loaded() bool
	Serves(id xenbus.VifID) bool
}

// servedByKey in a vif's directory names the back end that serves it. So an adoption
// outlives the daemon. The key is removed with the device.
const (
	servedByKey = "served-by"
	servedByUs  = "netbackd"
)

var (
	// ErrKernelServes is returned for a vif that is still bound to the kernel's driver.
	ErrKernelServes = errors.New("the kernel's xen-netback serves it")
	// ErrKernelNotLoaded is returned when there is no driver to release a vif to.
	ErrKernelNotLoaded = errors.New("the kernel's xen-netback is not loaded")
)

// adoptTimeout bounds CanAdopt, Adopt and Release. Each makes some thirty requests to
// xenstored, which take seconds on a slow dom0 whose processors are busy with packets.
// libxl gives a hotplug script, which calls two of the three, 40 s.
const adoptTimeout = 15 * time.Second

// request is a function for the goroutine in Run.
type request struct {
	do   func(context.Context) error
	done chan<- error
}

// ask makes the goroutine in Run call do, and returns its error.
func (b *Backend) ask(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case b.requests <- request{do, done}:
	case <-ctx.Done():
		return errors.New("netbackd has lost xenstore, or is about to end")
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("netbackd does not answer; is xenstored alive?")
	}
}

// kernelServes reports whether the kernel's driver has the vif.
func (b *Backend) kernelServes(k xenbus.VifID) bool {
	return b.cfg.Kernel != nil && b.cfg.Kernel.Serves(k)
}

// isOurs decides whether netbackd serves a vif. While the kernel's driver is loaded, only
// adopted vifs are ours: the driver will soon take the others, if it does not serve them
// yet. While the driver is not loaded all vifs are ours. They are marked, so that they stay
// ours if the driver is loaded later.
func (b *Backend) isOurs(ctx context.Context, k xenbus.VifID) (bool, error) {
	switch {
	case b.cfg.Kernel == nil:
		return true, nil
	case b.kernelServes(k):
		return false, nil
	case b.cfg.Kernel.Loaded():
		got, err := b.store.Read(ctx, b.path(k)+"/"+servedByKey)
		if errors.Is(err, xenstore.ErrNotExist) {
			return false, nil
		}
		return got == servedByUs, err
	}
	err := b.change(ctx, k, func(tx *xenstore.Tx) error { return tx.Write(ctx, b.path(k)+"/"+servedByKey, servedByUs) })
	if errors.Is(err, ErrNoVif) {
		return false, nil // it was detached meanwhile
	}
	return err == nil, err
}

// change changes a vif's directory in a transaction. It returns ErrNoVif if the directory
// is gone.
func (b *Backend) change(ctx context.Context, k xenbus.VifID, f func(tx *xenstore.Tx) error) error {
	return b.store.Transaction(ctx, func(tx *xenstore.Tx) error {
		_, err := tx.Read(ctx, b.path(k)+"/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return fmt.Errorf("%v: %w", k, ErrNoVif)
		}
		if err != nil {
			return err
		}
		return f(tx)
	})
}

// addForeign notes that netbackd does not serve a vif. It removes the mark of isOurs, which
// the vif may still have from before the kernel's driver was loaded.
func (b *Backend) addForeign(ctx context.Context, k xenbus.VifID) error {
	b.mu.Lock()
	_, known := b.foreign[k]
	b.foreign[k] = struct{}{}
	b.mu.Unlock()
	if known {
		return nil
	}
	b.cfg.Log.Info("vif not served: it belongs to the kernel's xen-netback", zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.Domid)))
	err := b.change(ctx, k, func(tx *xenstore.Tx) error { return b.unmark(ctx, tx, k) })
	if errors.Is(err, ErrNoVif) {
		return nil
	}
	return err
}

// unmark removes the keys that Adopt wrote.
func (b *Backend) unmark(ctx context.Context, tx *xenstore.Tx, k xenbus.VifID) error {
	for _, node := range [...]string{servedByKey, vif.ClaimedKey} {
		err := tx.Remove(ctx, b.path(k)+"/"+node)
		if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (b *Backend) removeForeign(k xenbus.VifID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.foreign, k)
}

// foreignStatus returns the status of a vif that netbackd does not serve.
func (b *Backend) foreignStatus(k xenbus.VifID) vif.Status {
	s := vif.Status{
		Name: k.String(), Domid: k.Domid, Devid: k.Devid, ServedBy: "none",
		Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{},
		Counters: map[string]uint64{},
	}
	if b.kernelServes(k) {
		s.ServedBy = "kernel"
	}
	return s
}

// CanAdopt returns nil if Adopt would succeed for a vif that the kernel's driver serves
// now, and otherwise an error with the reason.
func (b *Backend) CanAdopt(name string) error {
	k, err := parseName(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptTimeout)
	defer cancel()
	return b.ask(ctx, func(context.Context) error {
		if b.vifs[k] != nil {
			return nil
		}
		exists, err := b.store.Exists(ctx, b.path(k)+"/state")
		if err == nil && !exists {
			err = fmt.Errorf("%v: %w", k, ErrNoVif)
		}
		if err != nil {
			return err
		}
		return vif.CanAdopt(ctx, b.store, b.path(k), b.cfg.MaxQueues)
	})
}

// Adopt starts to serve a vif that was unbound from the kernel's driver, and returns when
// the vif has its TAP. A connected guest then waits until the new interface has taken the
// place of the kernel's, for example in a bridge, and hotplug-status is "connected". For a
// vif that is ours already, Adopt only waits for the TAP.
func (b *Backend) Adopt(name string) error {
	k, err := parseName(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptTimeout)
	defer cancel()
	if err := b.ask(ctx, func(ctx context.Context) error { return b.adopt(ctx, k) }); err != nil {
		return err
	}
	v := b.find(k)
	for v != nil {
		s, ok := v.Status(ctx)
		switch {
		case ok && s.Interface != "":
			return nil
		case ok && s.Error != "":
			return fmt.Errorf("%v: %s", k, s.Error)
		case ctx.Err() != nil:
			return fmt.Errorf("%v has no TAP after %v", k, adoptTimeout)
		case !ok:
			v = nil // it has ended
		default:
			v.AwaitChange(ctx, s.Revision)
		}
	}
	return fmt.Errorf("%v: %w", k, ErrNoVif)
}

func (b *Backend) adopt(ctx context.Context, k xenbus.VifID) error {
	if b.vifs[k] != nil {
		return nil
	}
	if b.kernelServes(k) {
		return fmt.Errorf("%v: %w", k, ErrKernelServes)
	}
	err := b.change(ctx, k, func(tx *xenstore.Tx) error {
		// The driver removes hotplug-status when it is unbound.
		if exists, err := tx.Exists(ctx, b.path(k)+"/hotplug-status"); err != nil {
			return err
		} else if !exists {
			if err := tx.Write(ctx, b.path(k)+"/hotplug-status", ""); err != nil {
				return err
			}
		}
		if err := tx.Write(ctx, b.path(k)+"/"+vif.ClaimedKey, "1"); err != nil {
			return err
		}
		return tx.Write(ctx, b.path(k)+"/"+servedByKey, servedByUs)
	})
	if err != nil {
		return err
	}
	b.cfg.Log.Info("vif adopted from the kernel's xen-netback", zap.Stringer("vif", k), zap.Uint16("domid", uint16(k.Domid)))
	b.start(ctx, k)
	return nil
}

// Release undoes Adopt. When it returns, no back end serves the vif, and the kernel's
// driver can be bound to it. lost counts packets to the guest that were in netbackd or its
// TAP.
func (b *Backend) Release(name string) (lost int, err error) {
	k, err := parseName(name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptTimeout)
	defer cancel()
	err = b.ask(ctx, func(run context.Context) error {
		v := b.vifs[k]
		switch {
		case v == nil:
			return fmt.Errorf("%v: %w", k, ErrNoVif)
		case b.cfg.Kernel == nil || !b.cfg.Kernel.Loaded():
			return ErrKernelNotLoaded
		}
		if lost, err = v.Release(ctx); err != nil {
			return err
		}
		// Nothing serves the vif now, so this does not end with the caller's ctx.
		return b.change(run, k, func(tx *xenstore.Tx) error {
			if err := b.unmark(run, tx, k); err != nil {
				return err
			}
			return tx.Write(run, b.path(k)+"/hotplug-status", "")
		})
	})
	return lost, err
}

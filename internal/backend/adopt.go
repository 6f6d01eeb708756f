// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"

	"github.com/netbackd/netbackd/internal/devices"
)

// CanAdopt returns nil if Adopt would succeed for a vif that the kernel's driver serves
// now, and otherwise an error with the reason.
func (b *Backend) CanAdopt(name string) error {
	id, err := b.set.Parse(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	return b.set.CanAdopt(ctx, id)
}

// Adopt starts to serve a vif that was unbound from the kernel's driver, and returns when
// the vif has its TAP. A connected guest then waits until the new interface has taken the
// place of the kernel's, for example in a bridge, and hotplug-status is "connected". For a
// vif that is ours already, Adopt only waits for the TAP.
func (b *Backend) Adopt(name string) error {
	id, err := b.set.Parse(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	v, err := b.set.Adopt(ctx, id)
	if err != nil {
		return err
	}
	for {
		s, ok := v.Status(ctx)
		switch {
		case ok && s.Interface != "":
			return nil
		case ok && s.Error != "":
			return fmt.Errorf("%v: %s", id, s.Error)
		case ctx.Err() != nil:
			return fmt.Errorf("%v has no TAP after %v", id, devices.AdoptTimeout)
		case !ok: // it has ended
			return fmt.Errorf("%v: %w", id, ErrNoVif)
		}
		v.AwaitChange(ctx, s.Revision)
	}
}

// Release undoes Adopt. When it returns, no back end serves the vif, and the kernel's
// driver can be bound to it. lost counts packets to the guest that were in netbackd or its
// TAP.
func (b *Backend) Release(name string) (lost int, err error) {
	id, err := b.set.Parse(name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	err = b.set.Release(ctx, id, func(v served) (err error) {
		lost, err = v.Release(ctx)
		return err
	})
	return lost, err
}

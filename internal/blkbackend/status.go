// SPDX-License-Identifier: Apache-2.0

package blkbackend

import (
	"context"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Vbds returns the number of vbds that blkbackd serves.
func (b *Backend) Vbds() int { return b.set.Len() }

// Names returns the names of all vbds, also of those that blkbackd does not serve.
func (b *Backend) Names() []string { return b.set.Names() }

// List returns the status of all vbds, ordered by domain and number.
func (b *Backend) List() []vbd.Status { return b.set.List() }

// Status returns the status of one vbd. If the status still has the revision after, Status
// waits for another revision until ctx ends. It returns ErrNoVbd if there is no such vbd.
func (b *Backend) Status(ctx context.Context, name string, after uint64) (vbd.Status, error) {
	id, err := b.parse(name)
	if err == nil {
		if s, ok := b.set.Status(ctx, id, after); ok {
			return s, nil
		}
	}
	return vbd.Status{}, b.set.NoSuch(name)
}

// Reset ends the quarantine of a vbd, and makes it retry a failed connection and to open its
// disk.
func (b *Backend) Reset(name string) error {
	id, err := b.parse(name)
	if err != nil {
		return err
	}
	return b.set.Reset(id.String())
}

// Resize makes a vbd read the size of its disk again.
func (b *Backend) Resize(name string) error {
	id, err := b.parse(name)
	if err != nil {
		return err
	}
	v, has := b.set.Find(id)
	if !has {
		return b.set.NoSuch(name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	if !v.Resize(ctx) {
		return fmt.Errorf("%v does not answer; is xenstored alive?", id)
	}
	return nil
}

// CanAdopt returns nil if Adopt would succeed for a vbd that the kernel's driver serves now,
// and otherwise an error with the reason.
func (b *Backend) CanAdopt(name string) error {
	id, err := b.parse(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	return explain(b.set.CanAdopt(ctx, id))
}

// explain adds the remedy to the error for a vbd of another back end.
func explain(err error) error {
	if errors.Is(err, devices.ErrNotWanted) {
		return fmt.Errorf("%w: its script is not %s", err, Script)
	}
	return err
}

// Adopt starts to serve a vbd that was unbound from the kernel's driver, and returns when the
// vbd waits for its guest or its hotplug script. For a vbd that is ours already, Adopt only
// waits.
func (b *Backend) Adopt(name string) error {
	id, err := b.parse(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devices.AdoptTimeout)
	defer cancel()
	v, err := b.set.Adopt(ctx, id)
	if err != nil {
		return explain(err)
	}
	for {
		s, ok := v.Status(ctx)
		switch {
		case ok && (s.State == xenbus.InitWait || s.State == xenbus.Connected):
			return nil
		case ok && s.Error != "":
			return fmt.Errorf("%v: %s", id, s.Error)
		case ctx.Err() != nil:
			return fmt.Errorf("%v does not wait for its guest after %v", id, devices.AdoptTimeout)
		case !ok: // it has ended
			return fmt.Errorf("%v: %w", id, ErrNoVbd)
		}
		v.AwaitChange(ctx, s.Revision)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// deviceRings is the number of rings for workers that take the place of others.
const deviceRings = 4

// prepare decides the number of workers and makes their rings, which cannot be made in the
// sandbox.
func (v *vhostUser) prepare() error {
	if v.workers == 0 {
		v.workers = min(maxPairs, runtime.NumCPU())
		if v.queues > 0 {
			v.workers = min(runtime.NumCPU(), v.queues)
		}
	}
	if !v.sandbox {
		return nil
	}
	if err := confine.Supported(); err != nil {
		return fmt.Errorf("sandbox: %w: --sandbox=false runs without", err)
	}
	if !v.uring {
		return nil
	}
	err := iouring.Reserve(iouring.Reservation{Rings: v.workers + deviceRings, Entries: dataplane.RingEntries})
	if err != nil && !errors.Is(err, iouring.ErrNotSupported) {
		return fmt.Errorf("sandbox: %w", err)
	}
	return nil
}

// enter gives up what the device does not need. steers says that it steers packets by a
// program, which it loads anew when queues come and go.
func (v *vhostUser) enter(steers bool) error {
	if !v.sandbox {
		return nil
	}
	keep := []uint{unix.CAP_NET_ADMIN}
	if steers {
		keep = append(keep, unix.CAP_BPF)
	}
	switch err := confine.Keep(keep...); {
	case errors.Is(err, unix.ENOTSUP):
		v.Log.Warn("capabilities kept: a program with cgo cannot give them up")
	case err != nil:
		return fmt.Errorf("sandbox: %w", err)
	}
	ioctls := slices.Concat(gntdev.Ioctls(), vhostuser.Ioctls(), tap.Ioctls())
	if err := confine.Enter(confine.VhostUser(ioctls, v.connect, steers)); err != nil {
		return fmt.Errorf("sandbox: %w; --sandbox=false runs without", err)
	}
	v.Log.Debug("sandbox entered", zap.Bool("connects", v.connect), zap.Bool("steers", steers))
	return nil
}

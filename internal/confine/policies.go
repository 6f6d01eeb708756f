// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"slices"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// PacketProcess returns the policy of a process that serves the rings of vifs. Its TAP queues
// take reads and writes only.
func PacketProcess() Policy {
	return Policy{
		Ioctls:        slices.Concat(gntdev.Ioctls(), evtchn.Ioctls(), gntalloc.Ioctls()),
		Registrations: iouring.RegisterOps(),
	}
}

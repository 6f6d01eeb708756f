// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

// Copier copies between guests' pages and local memory, as *gntdev.Device does. It is
// called once per batch.
type Copier interface {
	Copy(segs []gntdev.Segment) error
}

// Events is the handle that a queue's event channels are bound to, such as an
// *evtchn.Device. Only the queue's worker uses it.
type Events interface {
	FD() int
	Pending(ports []evtchn.Port) (int, error)
	Unmask(ports []evtchn.Port) error
	Notify(port evtchn.Port) error
	Reset() error
}

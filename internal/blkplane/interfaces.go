// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Grants copies and maps a guest's pages, as *gntdev.Device does. Each queue has one, and
// calls it from its own thread.
type Grants interface {
	Copy(segs []gntdev.Segment) error
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
	Close() error
}

// Events is the handle to which a queue's event channel is bound, such as an
// *evtchn.Device. Each queue has one.
type Events interface {
	FD() int
	BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error)
	Pending(ports []evtchn.Port) (int, error)
	Unmask(ports []evtchn.Port) error
	Notify(port evtchn.Port) error
	Reset() error
	Close() error
}

// Host opens the devices through which queues reach guests.
type Host interface {
	OpenGrants() (Grants, error)
	OpenEvents() (Events, error)
}

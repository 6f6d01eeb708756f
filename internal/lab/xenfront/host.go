// SPDX-License-Identifier: Apache-2.0

package xenfront

import (
	"context"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Pages makes pages and grants another domain access to them. *gntalloc.Device
// implements it.
type Pages interface {
	Alloc(domid xen.Domid, n int, writable bool) (*gntalloc.Pages, error)
}

// UseChecker is a Pages that can tell whether another domain has a granted page mapped,
// as gnttab_query_foreign_access does. With it, a queue checks that the backend does not
// respond while it still uses the page.
type UseChecker interface {
	InUse(ref xen.Gref) (bool, error)
}

// Events is an open event channel device. *evtchn.Device implements it.
type Events interface {
	BindUnbound(domid xen.Domid) (evtchn.Port, error)
	Unbind(port evtchn.Port) error
	Notify(port evtchn.Port) error
	Pending(ports []evtchn.Port) (int, error)
	Unmask(ports []evtchn.Port) error
	FD() int
	Close() error
}

// Store is a connection to xenstore. *xenstore.Client implements it.
type Store interface {
	Read(ctx context.Context, path string) (string, error)
	Write(ctx context.Context, path, value string) error
	Remove(ctx context.Context, path string) error
	Transaction(ctx context.Context, fn func(*xenstore.Tx) error) error
	Watch(ctx context.Context, path string) (*xenstore.Watch, error)
}

// Host is the domain that a frontend runs in.
type Host struct {
	Pages Pages
	Store Store
	// Events opens an event channel device. Each queue has its own, so that
	// each queue sleeps independently.
	Events func() (Events, error)
}

// SPDX-License-Identifier: Apache-2.0

// Package simhost opens an embedded Xen for a back end in domain 0, as package host opens
// a real Xen.
package simhost

import (
	"context"
	"errors"

	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Socket is the name of a file in the directory of every running embedded Xen.
const Socket = wire.HypercallSocket

// Host is domain 0's access to an embedded Xen.
type Host struct {
	conn   *simclient.Conn
	grants *simclient.Grants
}

// Open joins the embedded Xen whose sockets are in dir.
func Open(dir string) (*Host, error) {
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		return nil, err
	}
	g, err := c.Grants()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Host{c, g}, nil
}

// Real reports that the kernel serves no vifs of an embedded Xen.
func (h *Host) Real() bool { return false }

// Grants returns the grant device.
func (h *Host) Grants() netengine.Grants { return h.grants }

// OpenMapper opens the grant device once more.
func (h *Host) OpenMapper() (netengine.Mapper, error) { return h.conn.Grants() }

// OpenOwnPages opens the device for pages that domain 0 grants to itself.
func (h *Host) OpenOwnPages() (*host.OwnPages, error) {
	p, err := h.conn.Pages()
	if err != nil {
		return nil, err
	}
	return host.NewOwnPages(p, h.grants, nil), nil
}

// OpenEvents opens the event channel device for the channels of one domain.
func (h *Host) OpenEvents(domid xen.Domid) (netengine.Events, error) {
	e, err := h.conn.Events()
	if err != nil {
		return nil, err
	}
	r, err := host.Restrict(e, domid)
	if err != nil {
		return nil, err // without the nil pointer
	}
	return r, nil
}

// DialStore connects to xenstore.
func (h *Host) DialStore(context.Context) (*xenstore.Client, error) { return h.conn.Xenstore() }

// Close leaves the embedded Xen.
func (h *Host) Close() error { return errors.Join(h.grants.Close(), h.conn.Close()) }

var _ netengine.Host = (*Host)(nil)

// SPDX-License-Identifier: Apache-2.0

// Package nethost opens the interfaces of a real Xen for vifs.
package nethost

import (
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Host is a real Xen with the grant device of all vifs.
type Host struct {
	*host.Host
	grants *gntdev.Device
}

// Open opens the Xen whose devices are in dir; see [host.Open].
func Open(dir string) (*Host, error) {
	h, err := host.Open(dir)
	if err != nil {
		return nil, err
	}
	g, err := h.OpenGrants()
	if err != nil {
		return nil, err
	}
	return &Host{h, g}, nil
}

// Grants returns the grant device.
func (h *Host) Grants() netengine.Grants { return h.grants }

// OpenMapper opens the grant device once more.
func (h *Host) OpenMapper() (netengine.Mapper, error) {
	g, err := h.OpenGrants()
	if err != nil {
		return nil, err // without the nil pointer
	}
	return g, nil
}

// OpenOwnPages opens the device for pages that this domain grants to itself.
func (h *Host) OpenOwnPages() (*host.OwnPages, error) { return h.Host.OpenOwnPages(h.grants) }

// OpenEvents opens the event channel device for the channels of one domain.
func (h *Host) OpenEvents(domid xen.Domid) (netengine.Events, error) {
	e, err := h.Host.OpenEvents(domid)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Close closes the grant device.
func (h *Host) Close() error { return h.grants.Close() }

var _ netengine.Host = (*Host)(nil)

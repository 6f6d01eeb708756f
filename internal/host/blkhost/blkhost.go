// SPDX-License-Identifier: Apache-2.0

// Package blkhost opens the interfaces of a real Xen for vbds.
package blkhost

import (
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Host is a real Xen.
type Host struct{ *host.Host }

// Open opens the Xen whose devices are in dir; see [host.Open].
func Open(dir string) (*Host, error) {
	h, err := host.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Host{h}, nil
}

// Guest returns what opens the devices for one domain.
func (h *Host) Guest(domid xen.Domid) blkplane.Host { return guest{h.Host, domid} }

// Close does nothing: each queue opens devices of its own.
func (h *Host) Close() error { return nil }

// Adopter makes devices of the files that a Host has opened in another process.
type Adopter struct{}

// Calls returns none: a policy for disk processes knows the calls of a real Xen.
func (Adopter) Calls() []uintptr { return nil }

// Traced returns false.
func (Adopter) Traced() bool { return false }

// Grants implements [blkengine.Adopter].
func (Adopter) Grants(fd int) (blkplane.Grants, error) { return gntdev.NewDevice(fd), nil }

// Events implements [blkengine.Adopter].
func (Adopter) Events(fds []int) blkplane.Events { return evtchn.NewDevice(fds[0]) }

type guest struct {
	host  *host.Host
	domid xen.Domid
}

// OpenGrants opens the grant device.
func (g guest) OpenGrants() (blkplane.Grants, error) {
	d, err := g.host.OpenGrants()
	if err != nil {
		return nil, err // without the nil pointer
	}
	return d, nil
}

// OpenEvents opens the event channel device for the channels of the domain.
func (g guest) OpenEvents() (blkplane.Events, error) {
	e, err := g.host.OpenEvents(g.domid)
	if err != nil {
		return nil, err
	}
	return e, nil
}

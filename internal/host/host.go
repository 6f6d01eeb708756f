// SPDX-License-Identifier: Apache-2.0

// Package host opens what a backend needs of the machine it runs on: a real
// Xen's devices below /dev/xen, or an embedded one's sockets. Everything above
// takes what it gets and does not ask which it is.
//
// It knows how to open things. It must not know what they are used for.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// DefaultDir is where a real Xen's devices are.
const DefaultDir = "/dev/xen"

// Host is a machine's Xen, opened.
type Host struct {
	real   bool
	grants grants
	mapper func() (vif.Mapper, error)
	events func(domid uint16) (vif.Events, error)
	dial   func() (*xenstore.Client, error)
	close  func() error
}

type grants interface {
	vif.Grants
	Close() error
}

// Open opens the Xen at dir: DefaultDir, or the directory of an embedded one.
func Open(dir string) (*Host, error) {
	if _, err := os.Stat(filepath.Join(dir, wire.HypercallSocket)); err == nil {
		return openSim(dir)
	}
	return openReal(dir)
}

func openReal(dir string) (*Host, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: this is not a Xen domain, or its modules are not loaded (modprobe xen-gntdev xen-evtchn); try `netbackd demo` to see netbackd work without Xen", dir)
	}
	g, err := gntdev.Open(filepath.Join(dir, "gntdev"))
	if err != nil {
		return nil, err
	}
	// Opened once now, so that what is missing is found at the start and not
	// by the first guest.
	path := filepath.Join(dir, "evtchn")
	e, err := evtchn.Open(path)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	if err := e.Close(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return &Host{
		real:   true,
		grants: g,
		mapper: func() (vif.Mapper, error) { return gntdev.Open(filepath.Join(dir, "gntdev")) },
		events: func(domid uint16) (vif.Events, error) {
			d, err := evtchn.Open(path)
			if err != nil {
				return nil, err
			}
			return restrict(d, domid)
		},
		dial:  func() (*xenstore.Client, error) { return xenstore.Open() },
		close: g.Close,
	}, nil
}

func openSim(dir string) (*Host, error) {
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		return nil, err
	}
	g, err := c.Grants()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Host{
		grants: g,
		mapper: func() (vif.Mapper, error) { return c.Grants() },
		events: func(domid uint16) (vif.Events, error) {
			d, err := c.Events()
			if err != nil {
				return nil, err
			}
			return restrict(d, domid)
		},
		dial:  func() (*xenstore.Client, error) { return c.Xenstore() },
		close: func() error { return errors.Join(g.Close(), c.Close()) },
	}, nil
}

// events is an event channel device that was just opened.
type events interface {
	vif.Events
	Restrict(domid uint16) error
}

// restrict gives up the channels of all domains but one. Xen has no way to name
// domain 0 here, which in a driver domain may be a guest like others.
func restrict(e events, domid uint16) (vif.Events, error) {
	if domid == 0 {
		return e, nil
	}
	if err := e.Restrict(domid); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Real reports whether it is a real Xen, where the kernel has drivers of its own.
func (h *Host) Real() bool { return h.real }

// Grants is the machine's grant device.
func (h *Host) Grants() vif.Grants { return h.grants }

// OpenMapper opens the grant device once more.
func (h *Host) OpenMapper() (vif.Mapper, error) { return h.mapper() }

// OpenEvents opens a handle for the event channels of one domain.
func (h *Host) OpenEvents(domid uint16) (vif.Events, error) { return h.events(domid) }

// DialStore connects to xenstore.
func (h *Host) DialStore() (*xenstore.Client, error) { return h.dial() }

// Close closes what was opened.
func (h *Host) Close() error { return h.close() }

var _ vif.Host = (*Host)(nil)

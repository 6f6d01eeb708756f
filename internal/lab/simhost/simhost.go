// SPDX-License-Identifier: Apache-2.0

// Package simhost opens an embedded Xen for a back end in domain 0, as package host opens
// a real Xen.
package simhost

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

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

// EventFiles implements [netengine.Opener]: a connection and a pipe.
func (h *Host) EventFiles() int { return 2 }

// OpenGrantFile implements [netengine.Opener].
func (h *Host) OpenGrantFile() (int, error) {
	g, err := h.conn.Grants()
	if err != nil {
		return -1, err
	}
	return g.HandOver(), nil
}

// OpenPageFile implements [netengine.Opener].
func (h *Host) OpenPageFile() (int, error) {
	p, err := h.conn.Pages()
	if err != nil {
		return -1, err
	}
	return p.HandOver(), nil
}

// OpenEventFiles implements [netengine.Opener].
func (h *Host) OpenEventFiles(domid xen.Domid) ([]int, error) {
	e, err := h.conn.Events()
	if err == nil {
		e, err = host.Restrict(e, domid)
	}
	if err != nil {
		return nil, err
	}
	fds := e.HandOver()
	return fds[:], nil
}

// Adopter makes devices of the files that a Host has opened in another process.
type Adopter struct{}

// Calls returns the calls by which a file of the embedded Xen is closed, which waits until
// everything is released.
func (Adopter) Calls() []uintptr { return []uintptr{unix.SYS_SHUTDOWN} }

// Traced returns true.
func (Adopter) Traced() bool { return true }

// Grants implements [netengine.Adopter].
func (Adopter) Grants(fd int) (netengine.GrantDevice, error) { return simclient.AdoptGrants(fd) }

// Events implements [netengine.Adopter].
func (Adopter) Events(fds []int) netengine.Events { return simclient.AdoptEvents([2]int(fds)) }

// Pages implements [netengine.Adopter].
func (Adopter) Pages(fd int) host.PageDevice { return simclient.AdoptPages(fd) }

// DialStore connects to xenstore.
func (h *Host) DialStore(context.Context) (*xenstore.Client, error) { return h.conn.Xenstore() }

// Close leaves the embedded Xen.
func (h *Host) Close() error { return errors.Join(h.grants.Close(), h.conn.Close()) }

var (
	_ netengine.Host    = (*Host)(nil)
	_ netengine.Opener  = (*Host)(nil)
	_ netengine.Adopter = Adopter{}
)

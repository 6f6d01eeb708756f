// SPDX-License-Identifier: Apache-2.0

// Package simblkhost opens an embedded Xen for a block back end in domain 0, as package
// blkhost opens a real Xen.
package simblkhost

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Socket is the name of a file in the directory of every running embedded Xen.
const Socket = wire.HypercallSocket

// Host is domain 0's access to an embedded Xen.
type Host struct{ conn *simclient.Conn }

// Open joins the embedded Xen whose sockets are in dir.
func Open(dir string) (*Host, error) {
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		return nil, err
	}
	return &Host{c}, nil
}

// Real reports that the kernel serves no vbds of an embedded Xen.
func (h *Host) Real() bool { return false }

// Guest returns what opens the devices for one domain.
func (h *Host) Guest(domid xen.Domid) blkplane.Host { return guest{h.conn, domid} }

// DialStore connects to xenstore.
func (h *Host) DialStore(context.Context) (*xenstore.Client, error) { return h.conn.Xenstore() }

// Close leaves the embedded Xen.
func (h *Host) Close() error { return h.conn.Close() }

// EventFiles implements [blkengine.Opener]: a connection and a pipe.
func (h *Host) EventFiles() int { return 2 }

// OpenGrantFile implements [blkengine.Opener].
func (h *Host) OpenGrantFile() (int, error) {
	g, err := h.conn.Grants()
	if err != nil {
		return -1, err
	}
	return g.HandOver(), nil
}

// OpenEventFiles implements [blkengine.Opener].
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

// Grants implements [blkengine.Adopter].
func (Adopter) Grants(fd int) (blkplane.Grants, error) {
	g, err := simclient.AdoptGrants(fd)
	if err != nil {
		return nil, err // without the nil pointer
	}
	return g, nil
}

// Events implements [blkengine.Adopter].
func (Adopter) Events(fds []int) blkplane.Events { return simclient.AdoptEvents([2]int(fds)) }

var (
	_ blkengine.Opener  = (*Host)(nil)
	_ blkengine.Adopter = Adopter{}
)

type guest struct {
	conn  *simclient.Conn
	domid xen.Domid
}

// OpenGrants opens the grant device.
func (g guest) OpenGrants() (blkplane.Grants, error) {
	d, err := g.conn.Grants()
	if err != nil {
		return nil, err // without the nil pointer
	}
	return d, nil
}

// OpenEvents opens the event channel device for the channels of the domain.
func (g guest) OpenEvents() (blkplane.Events, error) {
	e, err := g.conn.Events()
	if err != nil {
		return nil, err
	}
	r, err := host.Restrict(e, g.domid)
	if err != nil {
		return nil, err
	}
	return r, nil
}

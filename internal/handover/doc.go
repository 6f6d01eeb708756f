// SPDX-License-Identifier: Apache-2.0

// Package handover moves a vif between the kernel's xen-netback and netbackd, in either
// direction, while its guest uses it.
//
// Both back ends release a guest's rings the same way: every request that was consumed is
// answered. Both can continue with rings that were used before. So the guest sees at most a
// change of the state node, and packets from the guest wait in its rings meanwhile. Packets
// to the guest find no interface in that time and are lost; [Report] counts them.
//
// The package runs in a command of root, not in the daemon, which may not write to sysfs or
// run scripts. It knows the order of the steps. It must not know the kernel's interface to
// its driver, or the daemon's inside.
package handover

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Kernel is the kernel's driver. *xennetback.Driver is one.
type Kernel interface {
	Loaded() bool
	Serves(id xenbus.VifID) bool
	Interface(id xenbus.VifID) (string, error)
	MaxQueues() (int, error)
	Unbind(id xenbus.VifID) error
	Bind(id xenbus.VifID) error
}

// Daemon is the running netbackd. *netcontrol.Client is one. An error for an unknown vif is
// control.ErrNotFound.
type Daemon interface {
	Vif(ctx context.Context, name string, after uint64) (vif.Status, error)
	// Await waits until a daemon listens, or until ctx ends.
	Await(ctx context.Context) error
	CanAdopt(ctx context.Context, name string) error
	Adopt(ctx context.Context, name string) error
	Release(ctx context.Context, name string) (lost int, err error)
}

// Store is the part of xenstore that a Mover uses; see [NewStore].
type Store interface {
	Read(ctx context.Context, path string) (string, error)
	Write(ctx context.Context, path, value string) error
	Watch(ctx context.Context, path string) (Watch, error)
}

// Watch sends an event at its start, and one after each change of a node.
type Watch interface {
	C() <-chan xenstore.Event
	Close()
}

// NewStore makes a Store of a connection to xenstore.
func NewStore(c *xenstore.Client) Store { return client{c} }

type client struct{ *xenstore.Client }

func (c client) Watch(ctx context.Context, path string) (Watch, error) {
	return c.Client.Watch(ctx, path)
}

// Mover moves vifs.
type Mover struct {
	Kernel Kernel
	Daemon Daemon
	Store  Store
	// Script runs a hotplug script, as the toolstack would; nil: [RunScript].
	Script func(ctx context.Context, path string, env []string) error
}

// ParseID parses a name such as vif1.0, or a path that ends in vif/1/0, as the toolstack
// passes it to scripts.
func ParseID(s string) (xenbus.VifID, error) {
	if strings.Contains(s, "/") {
		return xenbus.ParseVifPath(s)
	}
	return xenbus.ParseVifID(s)
}

// Report tells the cost of moving a vif.
type Report struct {
	// Gap is the time in which no back end served the vif.
	Gap time.Duration
	// Script: the hotplug script set up the new interface. Otherwise the settings of the
	// old one were copied.
	Script bool
	// Lost counts packets to the guest that came in that time and did not reach it. It is
	// -1 if they could not be counted, because the interface is no port of a Linux bridge.
	// Packets from the host itself are not counted while the bridge has no other port that
	// is up. AtLeast is set if the count is incomplete.
	Lost    int
	AtLeast bool
}

var (
	// ErrServed is returned by Adopt for a vif that netbackd serves.
	ErrServed = errors.New("netbackd serves it already")
	// ErrKernelServes is returned by Release for a vif that the kernel serves.
	ErrKernelServes = errors.New("the kernel's xen-netback serves it already")
	// ErrNoVif is returned for a vif that netbackd does not serve. It is a control.ErrNotFound.
	ErrNoVif = control.NotFound("netbackd serves no such vif")
	// ErrKernelNotLoaded is returned when there is no driver to adopt a vif from or to
	// release it to.
	ErrKernelNotLoaded = errors.New("the kernel's xen-netback is not loaded")
)

// SafeLoad is the command that loads the kernel's driver while netbackd serves vifs. It
// turns automatic probing off. Otherwise the driver would probe each of these vifs, fail
// because the interface's name is taken, and close the vif: the guest would be cut off.
const SafeLoad = "echo 0 >/sys/bus/xen-backend/drivers_autoprobe; modprobe -i xen-netback; echo 1 >/sys/bus/xen-backend/drivers_autoprobe"

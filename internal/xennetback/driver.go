// SPDX-License-Identifier: Apache-2.0

// Package xennetback controls the kernel's own network back end: the driver "vif" of package
// xendriver, of the module xen-netback. When it is unbound from a vif it also removes its
// interface and the node hotplug-status.
//
// The package knows sysfs files and their meaning. It must not know other back ends.
package xennetback

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/netbackd/netbackd/internal/xendriver"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Module is the name of the module for modprobe.
var Module = xendriver.Netback.Module

// Alias is the module alias that udev passes to modprobe when a vif appears.
var Alias = xendriver.Netback.Alias()

// ErrNotLoaded is returned while the driver is not loaded.
var ErrNotLoaded = xendriver.ErrNotLoaded

// Driver is the driver of one machine.
type Driver struct{ d *xendriver.Driver }

// New returns the Driver below the mount point of sysfs, usually /sys. It opens no files.
func New(sysfs string) *Driver { return &Driver{xendriver.New(sysfs, xendriver.Netback)} }

// Loaded reports whether the driver is there, as a module or built in.
func (d *Driver) Loaded() bool { return d.d.Loaded() }

// BuiltIn reports whether the driver is there and is no module.
func (d *Driver) BuiltIn() bool { return d.d.BuiltIn() }

// Serves reports whether the driver is bound to this vif: from before its probe starts
// until its remove has ended.
func (d *Driver) Serves(id xenbus.VifID) bool { return d.d.Serves(id.Device()) }

// Vifs returns the names of the vifs that the driver is bound to, such as vif1.0.
func (d *Driver) Vifs() (names []string, err error) {
	ids, err := d.d.Devices()
	for _, id := range ids {
		names = append(names, id.String())
	}
	return names, err
}

// Interface returns the present name of the driver's interface for a vif.
func (d *Driver) Interface(id xenbus.VifID) (string, error) {
	entries, err := os.ReadDir(filepath.Join(d.d.Device(id.Device()), "net"))
	if err != nil {
		return "", fmt.Errorf("interface of %v: %w", id, err)
	}
	if len(entries) != 1 {
		return "", fmt.Errorf("%v has %d interfaces", id, len(entries))
	}
	return entries[0].Name(), nil
}

// MaxQueues returns the number of queues that the driver allows a guest.
func (d *Driver) MaxQueues() (int, error) {
	v, err := d.d.Parameter("max_queues")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(v)
}

// Unbind unbinds the driver from a vif. It returns when the guest's rings are unmapped and
// the interface is gone, in a fraction of a second.
func (d *Driver) Unbind(id xenbus.VifID) error { return d.d.Unbind(id.Device()) }

// Bind binds the driver to a vif. If another back end has the interface name
// vif<domid>.<devid> at that time, Bind fails, and the driver writes Closing into the state
// node: the guest then closes the vif.
func (d *Driver) Bind(id xenbus.VifID) error { return d.d.Bind(id.Device()) }

// SPDX-License-Identifier: Apache-2.0

// Package xennetback controls the kernel's own network back end through sysfs: the driver
// "vif" on the bus xen-backend, of the module xen-netback.
//
// The bus has a device vif-<domid>-<devid> for every vif in xenstore, also for those of
// other back ends. The driver takes each new device at once, and when it is loaded all
// devices that are not bound. It cannot be told to skip some. But it can be unbound from
// one device. Then it answers all requests that it has consumed, unmaps the rings of the
// guest, removes its interface and the node hotplug-status, and leaves the state nodes as
// they are (since Linux 5.6). When it is bound again it continues with the rings from
// their present indices.
//
// The package knows sysfs files and their meaning. It must not know other back ends.
package xennetback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Module is the name of the module for modprobe.
const Module = "xen-netback"

// Alias is the module alias that udev passes to modprobe when a vif appears.
const Alias = "xen-backend:vif"

// Driver is the driver of one machine.
type Driver struct {
	bus    string // /sys/bus/xen-backend
	module string // /sys/module/xen_netback
}

// New returns the Driver below the mount point of sysfs, usually /sys. It opens no files.
func New(sysfs string) *Driver {
	return &Driver{
		bus:    filepath.Join(sysfs, "bus/xen-backend"),
		module: filepath.Join(sysfs, "module/xen_netback"),
	}
}

// ErrNotLoaded is returned while the driver is not loaded.
var ErrNotLoaded = errors.New("the kernel's " + Module + " is not loaded")

// Loaded reports whether the driver is there, as a module or built in.
func (d *Driver) Loaded() bool { return exists(d.driver()) }

// BuiltIn reports whether the driver is there and is no module.
func (d *Driver) BuiltIn() bool {
	return d.Loaded() && !exists(filepath.Join(d.module, "initstate"))
}

// Serves reports whether the driver is bound to this vif: from before its probe starts
// until its remove has ended.
func (d *Driver) Serves(id xenbus.VifID) bool {
	to, err := os.Readlink(filepath.Join(d.device(id), "driver"))
	return err == nil && filepath.Base(to) == "vif"
}

// Vifs returns the names of the vifs that the driver is bound to, such as vif1.0.
func (d *Driver) Vifs() (names []string, err error) {
	entries, err := os.ReadDir(d.driver())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		id, err := xenbus.ParseVifPath(strings.ReplaceAll(e.Name(), "-", "/"))
		if err == nil {
			names = append(names, id.String())
		}
	}
	return names, err
}

// Interface returns the present name of the driver's interface for a vif.
func (d *Driver) Interface(id xenbus.VifID) (string, error) {
	entries, err := os.ReadDir(filepath.Join(d.device(id), "net"))
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
	b, err := os.ReadFile(filepath.Join(d.module, "parameters/max_queues"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Unbind unbinds the driver from a vif. It returns when the guest's rings are unmapped and
// the interface is gone, in a fraction of a second.
func (d *Driver) Unbind(id xenbus.VifID) error {
	return d.tell("unbind", id)
}

// Bind binds the driver to a vif. If another back end has the interface name
// vif<domid>.<devid> at that time, Bind fails, and the driver writes Closing into the state
// node: the guest then closes the vif.
func (d *Driver) Bind(id xenbus.VifID) error {
	return d.tell("bind", id)
}

func (d *Driver) tell(what string, id xenbus.VifID) error {
	f, err := os.OpenFile(filepath.Join(d.driver(), what), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotLoaded
	}
	if err == nil {
		_, err = fmt.Fprint(f, deviceName(id))
		err = errors.Join(err, f.Close())
	}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s %v: %w; run this as root, outside of the daemon's sandbox", what, id, err)
	case err != nil:
		return fmt.Errorf("%s %v: %w", what, id, err)
	}
	return nil
}

func (d *Driver) driver() string { return filepath.Join(d.bus, "drivers/vif") }

func (d *Driver) device(id xenbus.VifID) string {
	return filepath.Join(d.bus, "devices", deviceName(id))
}

// deviceName returns the name of a vif in sysfs, such as vif-1-0.
func deviceName(id xenbus.VifID) string { return fmt.Sprintf("vif-%d-%d", id.Domid, id.Devid) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// SPDX-License-Identifier: Apache-2.0

// Package xendriver controls the kernel's own back ends through sysfs: the drivers of the bus
// xen-backend.
//
// The bus has a device such as vif-<domid>-<devid> for every device directory of a back end
// in xenstore, also for those of other back ends. A driver takes each new device of its class
// at once, and when it is loaded all devices that are not bound. It cannot be told to skip
// some. But it can be unbound from one device. Then it answers all requests that it has
// consumed, unmaps the rings of the guest, and leaves the state nodes as they are (since
// Linux 5.6). When it is bound again it continues with the rings from their present indices.
//
// The package knows sysfs files and their meaning. It must not know other back ends.
package xendriver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Kind is one of the drivers.
type Kind struct {
	Class  xenbus.Class // of the devices, and the name of the driver
	Module string       // for modprobe
}

// Drivers of Linux.
var (
	Netback = Kind{xenbus.VIF, "xen-netback"}
	Blkback = Kind{xenbus.VBD, "xen-blkback"}
)

// Alias returns the module alias that udev passes to modprobe when a device appears.
func (k Kind) Alias() string { return "xen-backend:" + string(k.Class) }

// Driver is the driver of one machine.
type Driver struct {
	Kind
	bus    string // /sys/bus/xen-backend
	module string // /sys/module/xen_netback
}

// New returns a Driver below the mount point of sysfs, usually /sys. It opens no files.
func New(sysfs string, k Kind) *Driver {
	return &Driver{
		Kind:   k,
		bus:    filepath.Join(sysfs, "bus/xen-backend"),
		module: filepath.Join(sysfs, "module", strings.ReplaceAll(k.Module, "-", "_")),
	}
}

// ErrNotLoaded is returned while the driver is not loaded.
var ErrNotLoaded = errors.New("the kernel's driver is not loaded")

// notLoaded is ErrNotLoaded with the name of the driver.
type notLoaded string

func (e notLoaded) Error() string { return "the kernel's " + string(e) + " is not loaded" }
func (e notLoaded) Unwrap() error { return ErrNotLoaded }

// Loaded reports whether the driver is there, as a module or built in.
func (d *Driver) Loaded() bool { return exists(d.driver()) }

// Takes reports whether the driver is loaded and takes devices of a class.
func (d *Driver) Takes(c xenbus.Class) bool { return c == d.Class && d.Loaded() }

// BuiltIn reports whether the driver is there and is no module.
func (d *Driver) BuiltIn() bool {
	return d.Loaded() && !exists(filepath.Join(d.module, "initstate"))
}

// Serves reports whether the driver is bound to this device: from before its probe starts
// until its remove has ended.
func (d *Driver) Serves(id xenbus.DeviceID) bool {
	to, err := os.Readlink(filepath.Join(d.Device(id), "driver"))
	return err == nil && filepath.Base(to) == string(d.Class)
}

// Devices returns the devices that the driver is bound to.
func (d *Driver) Devices() (ids []xenbus.DeviceID, err error) {
	entries, err := os.ReadDir(d.driver())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		id, err := xenbus.ParseDevicePath(strings.ReplaceAll(e.Name(), "-", "/"))
		if err == nil && id.Class == d.Class {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// Parameter returns the value of a parameter of the module.
func (d *Driver) Parameter(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.module, "parameters", name))
	return strings.TrimSpace(string(b)), err
}

// Unbind unbinds the driver from a device. It returns when the guest's rings are unmapped.
func (d *Driver) Unbind(id xenbus.DeviceID) error { return d.tell("unbind", id) }

// Bind binds the driver to a device. If that fails, the driver writes Closing into the state
// node: the guest then closes the device.
func (d *Driver) Bind(id xenbus.DeviceID) error { return d.tell("bind", id) }

func (d *Driver) tell(what string, id xenbus.DeviceID) error {
	f, err := os.OpenFile(filepath.Join(d.driver(), what), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return notLoaded(d.Module)
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

func (d *Driver) driver() string { return filepath.Join(d.bus, "drivers", string(d.Class)) }

// Device returns the directory of a device in sysfs.
func (d *Driver) Device(id xenbus.DeviceID) string {
	return filepath.Join(d.bus, "devices", deviceName(id))
}

// deviceName returns the name of a device in sysfs, such as vif-1-0.
func deviceName(id xenbus.DeviceID) string {
	return fmt.Sprintf("%s-%d-%d", id.Class, id.Domid, id.Devid)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Class names the directories of a kind of device below backend/.
type Class string

// The classes of devices that this package can name. The devices of VBD and VBD3 are disks
// with the same protocol. A toolstack uses VBD3 for disks that the kernel must not serve.
const (
	VIF  Class = "vif"
	VBD  Class = "vbd"
	VBD3 Class = "vbd3"
)

// frontend returns the name of the class in the frontend's directory.
func (c Class) frontend() string {
	if c == VBD3 {
		return string(VBD)
	}
	return string(c)
}

// maxDevid returns the largest number of a device of the class. That of a disk is an int in
// toolstacks.
func (c Class) maxDevid() (n uint64, ok bool) {
	switch c {
	case VIF:
		return 1<<16 - 1, true
	case VBD, VBD3:
		return 1<<31 - 1, true
	}
	return 0, false
}

// DeviceID identifies a device of any class: its frontend's domain, and its number among the
// devices of that class and domain.
type DeviceID struct {
	Class Class
	Domid xen.Domid
	Devid int
}

// String returns the name of a device. A vif has the name of its interface, such as vif3.0.
// Other devices have the name that Linux gives them in /sys/bus/xen-backend/devices, such
// as vbd-3-51712.
func (id DeviceID) String() string {
	if id.Class == VIF {
		return fmt.Sprintf("vif%d.%d", id.Domid, id.Devid)
	}
	return fmt.Sprintf("%s-%d-%d", id.Class, id.Domid, id.Devid)
}

// Compare orders devices by domain, then by number, then by class, for slices.SortFunc.
func (id DeviceID) Compare(other DeviceID) int {
	return cmp.Or(cmp.Compare(id.Domid, other.Domid), cmp.Compare(id.Devid, other.Devid), cmp.Compare(id.Class, other.Class))
}

// BackendPath returns the directory of the device's back end, which runs in the domain
// backend: /local/domain/0/backend/vbd/3/51712.
func (id DeviceID) BackendPath(backend xen.Domid) string {
	return fmt.Sprintf("/local/domain/%d/backend/%s/%d/%d", backend, id.Class, id.Domid, id.Devid)
}

// FrontendPath returns the directory of the device's frontend where toolstacks make it:
// /local/domain/3/device/vbd/51712, also for the class VBD3. The node "frontend" of the back
// end's directory is authoritative.
func (id DeviceID) FrontendPath() string {
	return fmt.Sprintf("/local/domain/%d/device/%s/%d", id.Domid, id.Class.frontend(), id.Devid)
}

// ErrorPath returns the node to which the device's back end, in the domain backend, writes
// errors for the toolstack: /local/domain/0/error/backend/vbd/3/51712/error.
func (id DeviceID) ErrorPath(backend xen.Domid) string {
	return fmt.Sprintf("/local/domain/%d/error/backend/%s/%d/%d/error", backend, id.Class, id.Domid, id.Devid)
}

// ParseDeviceID parses the name of a device, as String returns it.
func ParseDeviceID(name string) (DeviceID, error) {
	if class, rest, ok := strings.Cut(name, "-"); ok && Class(class) != VIF {
		domid, devid, ok := strings.Cut(rest, "-")
		if id, valid := parseDevice(class, domid, devid); ok && valid {
			return id, nil
		}
	} else if rest, ok := strings.CutPrefix(name, string(VIF)); ok {
		domid, devid, ok := strings.Cut(rest, ".")
		if id, valid := parseDevice(string(VIF), domid, devid); ok && valid {
			return id, nil
		}
	}
	return DeviceID{}, fmt.Errorf("%q is not the name of a device, such as vif1.0 or vbd-1-51712", Clip(name))
}

// ParseDevicePath parses the end of a back end's directory, vbd/3/51712. The path may be
// absolute or start anywhere before the class, as in the XENBUS_PATH of hotplug scripts.
func ParseDevicePath(path string) (DeviceID, error) {
	dir, devid := cutLast(path)
	dir, domid := cutLast(dir)
	_, class := cutLast(dir)
	id, ok := parseDevice(class, domid, devid)
	if !ok {
		return DeviceID{}, fmt.Errorf("%q is not the path of a device, such as backend/vbd/1/51712", Clip(path))
	}
	return id, nil
}

// cutLast cuts a path at its last slash.
func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// parseDevice parses the class and the two numbers of a device. The numbers must be written
// as a toolstack writes them: decimal, without a sign or leading zeros.
func parseDevice(class, domid, devid string) (DeviceID, bool) {
	most, ok := Class(class).maxDevid()
	d, err := strconv.ParseUint(domid, 10, 16)
	if !ok || err != nil || d >= uint64(xen.FirstReservedDomid) || strconv.FormatUint(d, 10) != domid {
		return DeviceID{}, false
	}
	n, err := strconv.ParseUint(devid, 10, 32)
	if err != nil || n > most || strconv.FormatUint(n, 10) != devid {
		return DeviceID{}, false
	}
	return DeviceID{Class(class), xen.Domid(d), int(n)}, true
}

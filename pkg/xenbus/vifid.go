// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/xen"
)

// VifID identifies a vif: its frontend's domain, and its number among the vifs of
// that domain. It is a DeviceID whose class is VIF.
type VifID struct {
	Domid xen.Domid
	Devid int
}

// Device returns the same id for packages that know devices of any class.
func (id VifID) Device() DeviceID { return DeviceID{VIF, id.Domid, id.Devid} }

// Vif returns the id of a vif. The class of id must be VIF.
func (id DeviceID) Vif() VifID { return VifID{id.Domid, id.Devid} }

// String returns the name that a vif has on the host, such as "vif3.0".
func (id VifID) String() string { return id.Device().String() }

// Compare orders vifs by domain, then by number, for slices.SortFunc.
func (id VifID) Compare(other VifID) int { return id.Device().Compare(other.Device()) }

// BackendPath returns the directory of the vif's back end, which runs in the domain
// backend: /local/domain/0/backend/vif/3/0.
func (id VifID) BackendPath(backend xen.Domid) string { return id.Device().BackendPath(backend) }

// FrontendPath returns the directory of the vif's frontend where toolstacks make it:
// /local/domain/3/device/vif/0. The node "frontend" of the back end's directory is
// authoritative.
func (id VifID) FrontendPath() string { return id.Device().FrontendPath() }

// ErrorPath returns the node to which the vif's back end, in the domain backend,
// writes errors for the toolstack: /local/domain/0/error/backend/vif/3/0/error.
func (id VifID) ErrorPath(backend xen.Domid) string { return id.Device().ErrorPath(backend) }

// ParseVifID parses the name of a vif, as String returns it.
func ParseVifID(name string) (VifID, error) {
	id, err := ParseDeviceID(name)
	if err != nil || id.Class != VIF {
		return VifID{}, fmt.Errorf("%q is not the name of a vif, such as vif1.0", Clip(name))
	}
	return id.Vif(), nil
}

// ParseVifPath parses the end of a back end's directory, vif/3/0. The path may be
// absolute or start anywhere before "vif", as in the XENBUS_PATH of hotplug scripts.
func ParseVifPath(path string) (VifID, error) {
	id, err := ParseDevicePath(path)
	if err != nil || id.Class != VIF {
		return VifID{}, fmt.Errorf("%q is not the path of a vif, such as backend/vif/1/0", Clip(path))
	}
	return id.Vif(), nil
}

// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// VifID identifies a vif: its frontend's domain, and its number among the vifs of
// that domain.
type VifID struct {
	Domid xen.Domid
	Devid int
}

// String returns the name that a vif has on the host, such as "vif3.0".
func (id VifID) String() string { return fmt.Sprintf("vif%d.%d", id.Domid, id.Devid) }

// Compare orders vifs by domain, then by number, for slices.SortFunc.
func (id VifID) Compare(other VifID) int {
	return cmp.Or(cmp.Compare(id.Domid, other.Domid), cmp.Compare(id.Devid, other.Devid))
}

// BackendPath returns the directory of the vif's back end, which runs in the domain
// backend: /local/domain/0/backend/vif/3/0.
func (id VifID) BackendPath(backend xen.Domid) string {
	return fmt.Sprintf("/local/domain/%d/backend/vif/%d/%d", backend, id.Domid, id.Devid)
}

// FrontendPath returns the directory of the vif's frontend where toolstacks make it:
// /local/domain/3/device/vif/0. The node "frontend" of the back end's directory is
// authoritative.
func (id VifID) FrontendPath() string {
	return fmt.Sprintf("/local/domain/%d/device/vif/%d", id.Domid, id.Devid)
}

// ErrorPath returns the node to which the vif's back end, in the domain backend,
// writes errors for the toolstack: /local/domain/0/error/backend/vif/3/0/error.
func (id VifID) ErrorPath(backend xen.Domid) string {
	return fmt.Sprintf("/local/domain/%d/error/backend/vif/%d/%d/error", backend, id.Domid, id.Devid)
}

// ParseVifID parses the name of a vif, as String returns it.
func ParseVifID(name string) (VifID, error) {
	rest, ok := strings.CutPrefix(name, "vif")
	domid, devid, dot := strings.Cut(rest, ".")
	id, valid := parseVif(domid, devid)
	if !ok || !dot || !valid {
		return VifID{}, fmt.Errorf("%q is not the name of a vif, such as vif1.0", Clip(name))
	}
	return id, nil
}

// ParseVifPath parses the end of a back end's directory, vif/3/0. The path may be
// absolute or start anywhere before "vif", as in the XENBUS_PATH of hotplug scripts.
func ParseVifPath(path string) (VifID, error) {
	dir, devid := cutLast(path)
	dir, domid := cutLast(dir)
	_, class := cutLast(dir)
	id, ok := parseVif(domid, devid)
	if class != "vif" || !ok {
		return VifID{}, fmt.Errorf("%q is not the path of a vif, such as backend/vif/1/0", Clip(path))
	}
	return id, nil
}

// cutLast cuts a path at its last slash.
func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// parseVif parses the two numbers of a vif. They must be written as a toolstack
// writes them: decimal, without a sign or leading zeros.
func parseVif(domid, devid string) (VifID, bool) {
	d, err := strconv.ParseUint(domid, 10, 16)
	if err != nil || d >= uint64(xen.FirstReservedDomid) || strconv.FormatUint(d, 10) != domid {
		return VifID{}, false
	}
	n, err := strconv.ParseUint(devid, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != devid {
		return VifID{}, false
	}
	return VifID{xen.Domid(d), int(n)}, true
}

// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Numbers of virtual disks: xvda, and the distance to the next one.
const (
	XVDA     = 202 << 8
	XVDAStep = 16
)

// Vbd is one entry of disk=[...] in an xl configuration file. Zero values stand for
// xl's defaults.
type Vbd struct {
	Devid   int       // number of the virtual disk: XVDA is xvda
	Backend xen.Domid // backend=, the domain id
	Target  string    // target=, passed on as params
	Script  string    // script=; a name in /etc/xen/scripts or a path, else block
	// Tap makes a vbd of backendtype=tap as libxl 4.19 and newer do: below vbd3, with the
	// format before the target.
	Tap          bool
	ReadOnly     bool // access=ro
	CDROM        bool // devtype=cdrom
	Removable    bool // removable
	NoDiscard    bool // no-discard
	DirectIOSafe bool // direct-io-safe
	Untrusted    bool // untrusted

	Edit Edit // of tests
}

// Devname returns the name of the disk in the guest, such as xvdb. A number beyond
// those of xvda to xvdz has no name; it is returned in hexadecimal, which libxl takes as
// well.
func (v Vbd) Devname() string {
	n := v.Devid - XVDA
	if n < 0 || n >= 26*XVDAStep {
		return fmt.Sprintf("0x%x", v.Devid)
	}
	name := "xvd" + string(rune('a'+n/XVDAStep))
	if part := n % XVDAStep; part > 0 {
		name += strconv.Itoa(part)
	}
	return name
}

func (v Vbd) withDefaults() Vbd {
	if v.Devid == 0 {
		v.Devid = XVDA
	}
	if v.Script == "" {
		v.Script = "block"
	}
	if v.Script[0] != '/' {
		v.Script = scriptDir + v.Script
	}
	return v
}

func (v Vbd) device(domid xen.Domid) device {
	d := device{classVbd, classVbd, domid, v.Devid, v.Backend}
	if v.Tap {
		d.back = classVbd3
	}
	return d
}

// nodes returns the nodes that libxl writes for a vbd, in its order: the backend's, and
// the frontend's. libxl writes the protocol for PV guests only, which the domains here
// are.
func (v Vbd) nodes(domid xen.Domid) (back, front []pair) {
	mode, kind := "w", "disk"
	if v.ReadOnly {
		mode = "r"
	}
	if v.CDROM {
		kind = "cdrom"
	}
	params := v.Target
	if v.Tap {
		params = "aio:" + params
	}
	back = []pair{
		{"params", params},
		{"script", v.Script},
		{"frontend-id", strconv.Itoa(int(domid))},
		{"online", "1"},
		{"removable", flag(v.Removable)},
		{"bootable", "1"},
		{"state", xenbus.Initialising.Value()},
		{"dev", v.Devname()},
		{"type", "phy"},
		{"mode", mode},
		{"device-type", kind},
	}
	if v.DirectIOSafe {
		back = append(back, pair{"direct-io-safe", "1"})
	}
	// The default of discard is the opposite of access=ro.
	back = append(back, pair{"discard-enable", flag(!v.NoDiscard && !v.ReadOnly)}, pair{"specification", "xen"})
	front = []pair{
		{"backend-id", strconv.Itoa(int(v.Backend))},
		{"state", xenbus.Initialising.Value()},
		{"virtual-device", strconv.Itoa(v.Devid)},
		{"device-type", kind},
		{"trusted", flag(!v.Untrusted)},
		{"protocol", "x86_64-abi"},
	}
	return back, front
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// AttachVbd implements `xl block-attach`. It does not wait until the vbd is connected. If
// it fails, the nodes stay, as with xl; DetachVbd removes them.
func (t *Toolstack) AttachVbd(ctx context.Context, domid xen.Domid, v Vbd) (Waits, error) {
	v = v.withDefaults()
	back, front := v.nodes(domid)
	return t.attach(ctx, v.device(domid), back, front, nil, v.Edit)
}

// DetachVbd implements `xl block-detach`.
func (t *Toolstack) DetachVbd(ctx context.Context, domid xen.Domid, devid int) (Waits, error) {
	return t.detach(ctx, Vbd{Devid: devid}.device(domid))
}

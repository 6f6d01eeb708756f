// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// NextDevid as Vif.Devid takes the number after the highest one.
const NextDevid = -1

// Vif is one entry of vif=[...] in an xl configuration file. Zero values stand
// for xl's defaults.
type Vif struct {
	Devid      int       // or NextDevid
	Backend    xen.Domid // backend=, the domain id
	MAC        string    // mac=, else a random one of Xen's
	Bridge     string    // bridge=, else xenbr0
	Script     string    // script=, else vif-bridge; a name in /etc/xen/scripts or a path
	Name       string    // vifname=
	IP         string    // ip=
	GatewayDev string    // gatewaydev=
	Rate       string    // rate=, as libxl stores it: "bytes per interval,microseconds"
	VLAN       string    // vlan=
	MTU        int       // mtu=, else 1500
	Untrusted  bool      // untrusted

	Edit Edit // of tests
}

// Edit changes the nodes of a device before others see them, for tests of nodes that libxl
// does not write. It is called at the end of the transaction that makes them, with the
// directories of backend and frontend.
type Edit func(tx *xenstore.Tx, back, front string) error

const (
	scriptDir  = "/etc/xen/scripts/"
	defaultMTU = 1500
)

func (v Vif) withDefaults() Vif {
	if v.MAC == "" {
		// Xen's OUI; the rest as libxl draws it.
		v.MAC = fmt.Sprintf("00:16:3e:%02x:%02x:%02x", rand.N(128), rand.N(256), rand.N(256))
	}
	if v.Bridge == "" {
		v.Bridge = "xenbr0"
	}
	if v.Script == "" {
		v.Script = "vif-bridge"
	}
	if v.Script[0] != '/' {
		v.Script = scriptDir + v.Script
	}
	if v.MTU == 0 {
		v.MTU = defaultMTU
	}
	return v
}

// nodes returns the nodes that libxl writes for a vif, in its order: the backend's, the
// frontend's, and those that the frontend may only read.
func (v Vif) nodes(domid xen.Domid) (back, front, readOnly []pair) {
	trusted := "1"
	if v.Untrusted {
		trusted = "0"
	}
	devid := strconv.Itoa(v.Devid)
	back = []pair{
		{"frontend-id", strconv.Itoa(int(domid))},
		{"online", "1"},
		{"state", xenbus.Initialising.Value()},
		{"script", v.Script},
	}
	back = append(appendSet(back, pair{"vifname", v.Name}), pair{"mac", v.MAC})
	for _, p := range []pair{{"ip", v.IP}, {"gatewaydev", v.GatewayDev}, {"rate", v.Rate}} {
		back = appendSet(back, p)
	}
	if v.MTU != defaultMTU {
		back = append(back, pair{"mtu", strconv.Itoa(v.MTU)})
	}
	back = appendSet(back, pair{"vlan", v.VLAN})
	back = append(back,
		pair{"bridge", v.Bridge},
		pair{"handle", devid},
		pair{"type", "vif"},
		// Empty, so that the backend waits for the script.
		pair{"hotplug-status", ""})
	front = []pair{
		{"backend-id", strconv.Itoa(int(v.Backend))},
		{"state", xenbus.Initialising.Value()},
		{"handle", devid},
		{"mac", v.MAC},
		{"trusted", trusted},
	}
	return back, front, []pair{{"mtu", strconv.Itoa(v.MTU)}}
}

func appendSet(pairs []pair, p pair) []pair {
	if p.value == "" {
		return pairs
	}
	return append(pairs, p)
}

// AttachVif implements `xl network-attach`. It returns the number of the vif, and does not
// wait until the vif is connected. If it fails, the nodes stay, as with xl; DetachVif
// removes them.
func (t *Toolstack) AttachVif(ctx context.Context, domid xen.Domid, v Vif) (devid int, w Waits, err error) {
	v = v.withDefaults()
	if v.Devid == NextDevid {
		v.Devid = 0
		if used := t.devids(ctx, domid, classVif); len(used) > 0 {
			v.Devid = used[len(used)-1] + 1
		}
	}
	d := newVif(domid, v.Devid, v.Backend)
	back, front, readOnly := v.nodes(domid)
	w, err = t.attach(ctx, d, back, front, readOnly, v.Edit)
	return v.Devid, w, err
}

// attach makes the nodes of a device, waits for its backend and runs its script.
func (t *Toolstack) attach(ctx context.Context, d device, back, front, readOnly []pair, edit Edit) (w Waits, err error) {
	if err := t.add(ctx, d, back, front, readOnly, edit); err != nil {
		return w, fmt.Errorf("%v: %w", d, err)
	}
	w.State, err = t.waitState(ctx, d, xenbus.InitWait, t.timeouts.Init)
	if err == nil {
		w.Script, err = t.hotplug(ctx, d, true)
	}
	if err != nil {
		return w, fmt.Errorf("%v: unable to add device with path %s: %w", d, d.backendPath(), err)
	}
	return w, nil
}

// add implements libxl__device_generic_add.
func (t *Toolstack) add(ctx context.Context, d device, back, front, readOnly []pair, edit Edit) error {
	fe, be, lib := d.frontendPath(), d.backendPath(), d.libxlPath()
	return t.xs.Transaction(ctx, func(tx *xenstore.Tx) error {
		if exists, err := tx.Exists(ctx, lib); err != nil {
			return err
		} else if exists {
			return ErrExists
		}
		b := batch{ctx: ctx, tx: tx}
		b.remove(lib)
		b.write(lib+"/frontend", fe)
		b.write(lib+"/backend", be)

		b.remove(fe)
		perms := readable(d.domid, d.backend)
		b.mkdir(fe, perms)
		b.write(fe+"/backend", be)
		b.writev(fe, front, perms)
		b.writev(fe, readOnly, readable(d.backend, d.domid))

		b.remove(be)
		b.mkdir(be, readable(d.backend, d.domid))
		b.write(be+"/frontend", fe)
		b.writev(be, back, nil)

		b.writev(lib, back, nil)
		if edit != nil {
			b.do(func() error { return edit(tx, be, fe) })
		}
		return b.err
	})
}

// DetachVif implements `xl network-detach`.
func (t *Toolstack) DetachVif(ctx context.Context, domid xen.Domid, devid int) (Waits, error) {
	return t.detach(ctx, newVif(domid, devid, xen.Dom0))
}

// detach removes a device with its backend's consent, or without it after the timeouts.
func (t *Toolstack) detach(ctx context.Context, d device) (Waits, error) {
	d, err := t.device(ctx, d)
	if err != nil {
		return Waits{}, err
	}
	w, err := t.remove(ctx, d, forceAuto)
	if err != nil {
		return w, fmt.Errorf("%v: unable to remove device with path %s: %w", d, d.backendPath(), err)
	}
	return w, nil
}

// force is libxl's choice between a removal with and without the backend's consent.
type force uint8

const (
	forceAuto force = iota // with consent, or without after the timeout
	forceOn                // without consent
)

// remove implements libxl__initiate_device_generic_remove and its callbacks.
func (t *Toolstack) remove(ctx context.Context, d device, f force) (w Waits, err error) {
	gone, err := t.close(ctx, d, f == forceOn)
	if err == nil && !gone {
		w.State, err = t.waitState(ctx, d, xenbus.Closed, t.timeouts.Destroy)
		if errors.Is(err, ErrTimeout) && f == forceAuto {
			f = forceOn
			if gone, err = t.close(ctx, d, true); err == nil && !gone {
				w.Forced, err = t.waitState(ctx, d, xenbus.Closed, t.timeouts.Destroy)
			}
		}
		if err == nil && !gone {
			// The failure of a script does not stop the removal.
			w.Script, _ = t.hotplug(ctx, d, false)
		}
	}
	if err == nil || f == forceOn {
		err = errors.Join(err, t.removeNodes(ctx, d))
	}
	return w, err
}

// close tells the backend to close. It reports whether there is no backend to tell.
func (t *Toolstack) close(ctx context.Context, d device, removeFrontend bool) (gone bool, err error) {
	be := d.backendPath()
	err = t.xs.Transaction(ctx, func(tx *xenstore.Tx) error {
		b := batch{ctx: ctx, tx: tx}
		if removeFrontend {
			b.cleanup(d.frontendPath())
		}
		b.do(func() error {
			state, err := tx.Read(ctx, be+"/state")
			if gone = errors.Is(err, xenstore.ErrNotExist); gone {
				return errNothing
			}
			if err != nil {
				return err
			}
			b.write(be+"/online", "0")
			if atoi(state) != int(xenbus.Closed) {
				b.write(be+"/state", xenbus.Closing.Value())
			}
			return b.err
		})
		return b.err
	})
	if gone {
		return true, nil
	}
	return false, err
}

// errNothing ends a transaction without a commit. It stands for no failure.
var errNothing = errors.New("nothing to do")

// removeNodes implements libxl__device_destroy.
func (t *Toolstack) removeNodes(ctx context.Context, d device) error {
	return t.xs.Transaction(ctx, func(tx *xenstore.Tx) error {
		b := batch{ctx: ctx, tx: tx}
		b.cleanup(d.frontendPath())
		b.cleanup(d.libxlPath())
		b.cleanup(d.backendPath())
		return b.err
	})
}

// hotplug runs the script of a device, after its backend has appeared or before it is
// removed.
func (t *Toolstack) hotplug(ctx context.Context, d device, added bool) (time.Duration, error) {
	script, action := t.script, Offline
	switch {
	case d.class == classVbd && added:
		script, action = t.block, Add
	case d.class == classVbd:
		script, action = t.block, Remove
	case added:
		action = Online
	}
	if script == nil {
		return 0, nil
	}
	path, err := t.xs.Read(ctx, d.backendPath()+"/script")
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.timeouts.Script, ErrTimeout)
	defer cancel()
	start := time.Now()
	err = script(ctx, Call{Action: action, Path: path, Class: d.back, Domid: d.domid, Devid: d.devid, Backend: d.backendPath(), Store: t.xs})
	took := time.Since(start)
	if err == nil {
		return took, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if reason, rerr := t.xs.Read(ctx, d.backendPath()+"/hotplug-error"); rerr == nil && reason != err.Error() {
		err = fmt.Errorf("%s: %w", reason, err)
	}
	return took, fmt.Errorf("%w: %s %v: %w", ErrScript, path, action, err)
}

// SPDX-License-Identifier: Apache-2.0

// Package handover moves a vif between the kernel's xen-netback and netbackd, in
// either direction, and while its guest uses it.
//
// It lives from what both have in common: each leaves a guest's rings as a
// successor needs them, having answered all it took, and goes on with rings that
// were used before. So the guest sees the state node change at most, and what it
// sends waits in the ring meanwhile. What comes for it in that time finds no
// interface and is lost; [Report] says how much that was.
//
// The package runs in the command that root gives, not in the daemon, which may
// not write to sysfs or run scripts. It knows in which order things are done. How
// the kernel's driver is told, and what the daemon does with a vif, it must not
// know.
package handover

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Kernel is the kernel's driver. *xennetback.Driver is one.
type Kernel interface {
	Loaded() bool
	Serves(domid xen.Domid, devid int) bool
	Interface(domid xen.Domid, devid int) (string, error)
	MaxQueues() (int, error)
	Unbind(domid xen.Domid, devid int) error
	Bind(domid xen.Domid, devid int) error
}

// Daemon is the running netbackd. *control.Client is one.
type Daemon interface {
	Vifs(ctx context.Context) ([]vif.Status, error)
	CanClaim(ctx context.Context, name string) error
	Claim(ctx context.Context, name string) error
	Release(ctx context.Context, name string) (lost int, err error)
}

// Store is what is needed of xenstore. *xenstore.Client is one.
type Store interface {
	Read(path string) (string, error)
	Write(path, value string) error
}

// Mover moves vifs.
type Mover struct {
	Kernel Kernel
	Daemon Daemon
	Store  Store
	// Script runs a hotplug script, as the toolstack would; nil: [RunScript].
	Script func(ctx context.Context, path string, env []string) error
}

// ID names a vif.
type ID struct {
	Domid xen.Domid
	Devid int
}

// Name is the name of its interface before a script changed it.
func (id ID) Name() string { return fmt.Sprintf("vif%d.%d", id.Domid, id.Devid) }

// ParseID reads vif1.0, or a path that ends in vif/1/0, as the toolstack tells it
// to scripts.
func ParseID(s string) (id ID, err error) {
	dom, dev, ok := strings.Cut(strings.TrimPrefix(s, "vif"), ".")
	if i := strings.LastIndex(s, "vif/"); i >= 0 {
		dom, dev, ok = strings.Cut(s[i+len("vif/"):], "/")
	}
	d, err1 := strconv.ParseUint(dom, 10, 16)
	n, err2 := strconv.ParseUint(dev, 10, 16)
	if !ok || err1 != nil || err2 != nil {
		return id, fmt.Errorf("%q is no vif; they have names like vif1.0", s)
	}
	return ID{xen.Domid(d), int(n)}, nil
}

// Report is what moving a live vif took.
type Report struct {
	// Gap is how long nobody served the vif.
	Gap time.Duration
	// Script is whether its place on the host was made by the hotplug script;
	// otherwise it was copied from one interface to the other.
	Script bool
	// Lost is how many packets for the guest came in that time and did not reach
	// it; -1 if they could not be counted, because the interface is no port of a
	// Linux bridge. Those of the host itself are not seen while the bridge has no
	// other port that is up. AtLeast: there were more than could be counted.
	Lost    int
	AtLeast bool
}

var (
	// ErrOurs: there is nothing to adopt.
	ErrOurs = errors.New("netbackd serves it already")
	// ErrKernels: there is nothing to release.
	ErrKernels = errors.New("the kernel's xen-netback serves it already")
	// ErrNoVif: netbackd serves no vif of that name.
	ErrNoVif = errors.New("netbackd serves no such vif")
	// ErrNoDriver: there is no driver to take a vif from or to give it to.
	ErrNoDriver = errors.New("the kernel's xen-netback is not loaded")
)

// SafeLoad is how to load the kernel's driver while netbackd serves vifs. Just to
// load it would have it probe each of these, fail for want of the interface's
// name, and close them: their guests would be cut off.
const SafeLoad = "echo 0 >/sys/bus/xen-backend/drivers_autoprobe; modprobe -i xen-netback; echo 1 >/sys/bus/xen-backend/drivers_autoprobe"

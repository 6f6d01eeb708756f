// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/toolstack"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// VifConfig is a vif in a guest's configuration.
type VifConfig struct {
	Devid  int
	MAC    string
	Bridge string
	// Name is the key vifname: the script renames the interface.
	Name string
	// Rate is the key rate as libxl writes it: bytes,microseconds.
	Rate string
	MTU  int
	// Script plays the hotplug script; nil means one like vif-bridge.
	Script Script
	// Back and Front have further nodes, or other values for the usual ones.
	Back, Front map[string]string
}

// Absent as a value in [VifConfig] removes a node.
const Absent = "\x00absent"

// Hotplug holds the arguments of a hotplug script.
type Hotplug struct {
	Back, Front string // directories
	Vif         string // name of the interface
	Online      bool
}

// Script plays a hotplug script.
type Script func(ctx context.Context, s *xenstore.Client, h Hotplug) error

// NoScript exits at once and writes no node.
func NoScript(context.Context, *xenstore.Client, Hotplug) error { return nil }

// xl is the toolstack, with a hotplug script for each vif.
type xl struct {
	*toolstack.Toolstack
	nl     *netlink.Handle
	bridge toolstack.Script

	mu      sync.Mutex
	scripts map[string]Script // by vif, for those that have their own; guarded by mu
}

func newXL(dom0 *simclient.Conn) (*xl, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	x := &xl{nl: nl, bridge: toolstack.BridgeScript(nl), scripts: map[string]Script{}}
	x.Toolstack, err = toolstack.New(dom0, toolstack.Options{Script: x.hotplug})
	if err != nil {
		nl.Close()
		return nil, err
	}
	return x, nil
}

func (x *xl) close() error {
	x.nl.Close()
	return x.Close()
}

// hotplug runs the script of a vif.
func (x *xl) hotplug(ctx context.Context, c toolstack.Call) error {
	x.mu.Lock()
	own := x.scripts[c.Vif()]
	x.mu.Unlock()
	if own == nil {
		return x.bridge(ctx, c)
	}
	return own(ctx, c.Store, Hotplug{
		Back: c.Backend, Front: frontPath(c.Domid, c.Devid),
		Vif: c.Vif(), Online: c.Action == toolstack.Online,
	})
}

// vif makes the toolstack's config of a vif.
func (x *xl) vif(ctx context.Context, domid xen.Domid, v VifConfig) toolstack.Vif {
	x.mu.Lock()
	x.scripts[xenbus.VifID{Domid: domid, Devid: v.Devid}.String()] = v.Script
	x.mu.Unlock()
	return toolstack.Vif{
		Devid: v.Devid, MAC: v.MAC, Bridge: v.Bridge, Name: v.Name, Rate: v.Rate, MTU: v.MTU,
		Edit: func(tx *xenstore.Tx, back, front string) error {
			return errors.Join(edit(ctx, tx, back, v.Back), edit(ctx, tx, front, v.Front))
		},
	}
}

// edit changes the nodes of a directory.
func edit(ctx context.Context, tx *xenstore.Tx, dir string, nodes map[string]string) error {
	for k, value := range nodes {
		var err error
		if value == Absent {
			err = tx.Remove(ctx, dir+"/"+k)
		} else {
			err = tx.Write(ctx, dir+"/"+k, value)
		}
		if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
	}
	return nil
}

// CreateDomain makes a running domain without devices.
func (l *Lab) CreateDomain(ctx context.Context, name string, cfg simclient.DomainConfig) (xen.Domid, error) {
	domid, _, err := l.xl.Create(ctx, toolstack.Config{Name: name, Domain: cfg})
	if err != nil {
		return 0, err
	}
	return domid, l.xl.Unpause(domid)
}

// Attach gives a domain a vif as `xl network-attach` does: when it returns, the
// hotplug script has run.
func (l *Lab) Attach(ctx context.Context, domid xen.Domid, v VifConfig) error {
	_, _, err := l.xl.AttachVif(ctx, domid, l.xl.vif(ctx, domid, v))
	return err
}

// Detach removes a vif as `xl network-detach` does, and returns the time that the backend
// took to close it.
func (l *Lab) Detach(ctx context.Context, domid xen.Domid, devid int) (time.Duration, error) {
	w, err := l.xl.DetachVif(ctx, domid, devid)
	return w.State + w.Forced, err
}

// Destroy ends a domain as `xl destroy` does: the domain stops, then its devices are
// removed, then the domain. It returns the time that the slowest backend took to close a
// device. [Lab.Hypervisor] ends a domain without these steps.
func (l *Lab) Destroy(ctx context.Context, domid xen.Domid) (took time.Duration, err error) {
	waits, err := l.xl.Toolstack.Destroy(ctx, domid)
	for _, w := range waits {
		took = max(took, w.State+w.Forced)
	}
	return took, err
}

// BackPath returns the backend directory of a vif.
func (l *Lab) BackPath(domid xen.Domid, devid int) string {
	return xenbus.VifID{Domid: domid, Devid: devid}.BackendPath(xen.Dom0)
}

// FrontPath returns the frontend directory of a vif.
func (l *Lab) FrontPath(domid xen.Domid, devid int) string { return frontPath(domid, devid) }

func frontPath(domid xen.Domid, devid int) string {
	return xenbus.VifID{Domid: domid, Devid: devid}.FrontendPath()
}

// BackState waits until the backend of a vif is in one of the states.
func (l *Lab) BackState(ctx context.Context, domid xen.Domid, devid int, states ...xenbus.State) error {
	path := l.BackPath(domid, devid) + "/state"
	w, err := l.Store().Watch(ctx, path)
	if err != nil {
		return err
	}
	defer w.Close()
	last := ""
	for {
		select {
		case _, open := <-w.C():
			if !open {
				return l.Store().Err()
			}
		case <-ctx.Done():
			return fmt.Errorf("%s is %q, waited for %v: %w", path, last, states, ctx.Err())
		}
		last, err = l.Store().Read(ctx, path)
		if err != nil && !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
		if slices.ContainsFunc(states, func(s xenbus.State) bool { return last == s.Value() }) {
			return nil
		}
	}
}

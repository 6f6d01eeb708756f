// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Script is a hotplug script. An error stands for an exit status other than 0.
// It runs once the backend has reached state 2, and again when the backend has closed.
type Script func(ctx context.Context, c Call) error

// Action is the first argument of a script.
type Action string

// The actions, of vifs and of vbds.
const (
	Online  Action = "online"
	Offline Action = "offline"
	Add     Action = "add"
	Remove  Action = "remove"
)

// Call is one call of a script: the data that libxl passes in arguments and environment.
type Call struct {
	Action  Action
	Path    string // of the script, from the backend's node
	Class   string // directory of the backend: vif, vbd or vbd3
	Domid   xen.Domid
	Devid   int
	Backend string           // the backend's directory, absolute
	Store   *xenstore.Client // dom0's xenstore
}

// Vif returns the name of the network device, $vif.
func (c Call) Vif() string { return newVif(c.Domid, c.Devid, 0).String() }

// Args returns the arguments of a real script.
func (c Call) Args() []string {
	if c.Class != classVif {
		return []string{string(c.Action)}
	}
	return []string{string(c.Action), "type_if=vif"}
}

// Env returns the environment of a real script. XENBUS_PATH is relative to the
// backend domain's home.
func (c Call) Env(ctx context.Context) []string {
	home, path, _ := strings.Cut(c.Backend, "/backend/")
	if c.Class != classVif {
		return []string{"script=" + c.Path, "XENBUS_TYPE=" + c.Class, "XENBUS_PATH=backend/" + path, "XENBUS_BASE_PATH=backend"}
	}
	gateway, _ := c.Store.Read(ctx, home+"/backend/"+path+"/gatewaydev") // empty if there is none
	return []string{
		"script=" + c.Path,
		"XENBUS_TYPE=vif",
		"XENBUS_PATH=backend/" + path,
		"XENBUS_BASE_PATH=backend",
		"netdev=" + gateway,
		"vif=" + c.Vif(),
	}
}

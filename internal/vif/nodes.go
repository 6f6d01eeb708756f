// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// groupKey is a key of the backend directory. The toolstack writes there which vifs share a
// packet process, if the daemon groups them so.
const groupKey = "isolate"

// nodes holds the contents of the backend directory.
type nodes struct {
	present        bool         // there is a state, and so a device
	state          xenbus.State // Unknown if the node holds no state
	reconfiguredIn xenbus.State // see reconfiguredInKey; Unknown if the key is missing
	frontendDir    string
	online         bool
	hotplug        string
	hasHotplug     bool
	scriptErr      string // error text of the hotplug script, if it has failed
	rate           string
	weight         string
	mac            string
	bridge         string
	script         string
	mtu            string
	control        string // control ring protocols to offer, chosen by the toolstack
	group          string // of vifs that share a packet process, chosen by the toolstack
	claimed        bool   // see ClaimedKey
	offered        backendOffer
}

// plugged reports whether the host's side is set up: the hotplug script is done, or there
// is no hotplug-status and so no script.
func (n *nodes) plugged() bool { return !n.hasHotplug || n.hotplug == "connected" }

// readNodes reads the backend directory.
func readNodes(ctx context.Context, r xenbus.Store, path string) (n nodes, err error) {
	if err := n.readState(ctx, r, path); err != nil || !n.present {
		return n, err
	}
	return n, n.readRest(ctx, r, path)
}

// readState reads the state. A directory without one has been removed.
func (n *nodes) readState(ctx context.Context, r xenbus.Store, path string) error {
	k := xenbus.NewReader(ctx, r, path)
	state, ok := k.Text("state")
	if n.present = ok; !ok {
		return k.Err()
	}
	var err error
	if n.state, err = xenbus.ParseState(state); err != nil {
		n.state = xenbus.Unknown
	}
	return nil
}

// readRest reads everything except the state.
func (n *nodes) readRest(ctx context.Context, r xenbus.Store, path string) error {
	k := xenbus.NewReader(ctx, r, path)
	text := func(key string) (v string) { v, _ = k.Text(key); return v }
	if n.state == xenbus.Reconfigured {
		n.reconfiguredIn, _ = xenbus.ParseState(text(reconfiguredInKey))
	}
	n.frontendDir = text("frontend")
	n.online = text("online") != "0"
	n.hotplug, n.hasHotplug = k.Text("hotplug-status")
	n.scriptErr = ""
	if n.hotplug == "error" {
		n.scriptErr = text("hotplug-error")
	}
	n.rate = text("rate")
	n.weight = text("weight")
	n.mac = text("mac")
	n.bridge = text("bridge")
	n.script = text("script")
	n.mtu = text("mtu")
	n.control = text(controlKey)
	n.group = xenbus.Clip(text(groupKey))
	n.claimed = text(ClaimedKey) == "1"
	n.offered.readBack(text)
	return k.Err()
}

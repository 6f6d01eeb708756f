// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// gist holds the fields of a vif whose changes make a new revision.
type gist struct {
	own, node, front   xenbus.State
	online             bool
	hotplug            string
	errorText, blocked string
	tap                *tap.Device
	conn               *connection
	carrier            carrier
}

func (v *Vif) gist() gist {
	g := gist{
		own: v.own, node: v.lastNode, front: v.guest.state, online: v.nodes.online, hotplug: v.nodes.hotplug,
		errorText: v.errorNode.Text(), blocked: v.block.reason, tap: v.tap, conn: v.conn,
	}
	if v.conn != nil {
		g.carrier = v.conn.carrier
	}
	return g
}

// AwaitChange waits until the status has another revision than from, until ctx ends, or
// until the vif ends.
func (v *Vif) AwaitChange(ctx context.Context, from uint64) { v.revision.Await(ctx, from, v.mail.Done) }

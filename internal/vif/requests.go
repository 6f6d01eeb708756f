// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"strings"
)

// reconcileInTurn reconciles with the toolstack's nodes, and with the guest's nodes if a
// look is due. It reports whether the vif has ended.
func (v *Vif) reconcileInTurn(ctx context.Context) (gone bool) {
	v.work.Look(func(due bool) {
		if due {
			v.unread |= unreadFront
		}
		v.inTurn(ctx, func() { gone = v.reconcile(ctx) })
	})
	return gone
}

// unread is a set of parts of xenstore that may have changed since they were last read. An
// observation reads these parts, and always the state in the backend directory.
type unread uint32

const (
	unreadNodes  unread = 1 << iota // the backend directory, except for its state
	unreadFront                     // the frontend's state and, if its state needs them, its keys
	unreadDomain                    // the existence of the frontend's domain
	unreadAll    = unreadNodes | unreadFront | unreadDomain
)

// Changed tells the vif that the node at key below the backend directory has changed;
// an empty key is the directory itself. It never blocks. It ignores nodes that only this
// package writes.
func (v *Vif) Changed(key string) {
	key, _, _ = strings.Cut(key, "/")
	switch {
	case key == "":
		v.mail.Wake(uint32(unreadAll))
	case key == "state":
		v.mail.Wake(0)
	case key == reconfiguredInKey, isOffered(key):
	default:
		v.mail.Wake(uint32(unreadNodes))
	}
}

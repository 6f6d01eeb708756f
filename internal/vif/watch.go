// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// watch watches one path at most.
type watch struct {
	w    *xenstore.Watch
	path string
}

// follow watches path instead of the old path.
func (w *watch) follow(ctx context.Context, v *Vif, path string) error {
	if w.w != nil && w.path == path {
		return nil
	}
	w.close(v)
	x, err := v.cfg.Store.Watch(ctx, path)
	if err != nil {
		return err
	}
	*w = watch{x, path}
	return nil
}

func (w *watch) events() <-chan xenstore.Event {
	if w.w == nil {
		return nil
	}
	return w.w.C()
}

// received is called after an event, with ok false if the channel was closed: the watch
// was lost with the connection to xenstore.
func (w *watch) received(ok bool) {
	if !ok {
		*w = watch{}
	}
}

func (w *watch) close(v *Vif) {
	if w.w != nil {
		v.countRequests(1)
		w.w.Close()
	}
	*w = watch{}
}

// watchFrontend watches the frontend's state and, while the vif is connected, the multicast
// request. It watches single nodes and never a directory, which the guest could fill. A
// driver domain may run out of watches. Then the vif reconciles once per retryAfter, and
// still gets events for the toolstack's nodes.
func (v *Vif) watchFrontend(ctx context.Context) error {
	err := v.frontWatch.follow(ctx, v, v.nodes.frontendDir+"/state")
	if err == nil && v.conn != nil {
		err = v.mcastWatch.follow(ctx, v, v.nodes.frontendDir+"/"+mcastKey)
	}
	if err != nil && !unanswered(err) {
		v.reportError(ctx, "watch failed", err)
		v.wakeIn(retryAfter)
		return nil
	}
	return err
}

// unwatch removes all watches.
func (v *Vif) unwatch() {
	v.frontWatch.close(v)
	v.mcastWatch.close(v)
	v.headroomWatch.close(v)
}

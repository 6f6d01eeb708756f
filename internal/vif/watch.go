// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"github.com/netbackd/netbackd/internal/device"
)

// watchFrontend watches the frontend's state and, while the vif is connected, the multicast
// request. It watches single nodes and never a directory, which the guest could fill. A
// driver domain may run out of watches. Then the vif reconciles once per retryAfter, and
// still gets events for the toolstack's nodes.
func (v *Vif) watchFrontend(ctx context.Context) error {
	err := v.frontWatch.Follow(ctx, v.work, v.nodes.frontendDir+"/state")
	if err == nil && v.conn != nil {
		err = v.mcastWatch.Follow(ctx, v.work, v.nodes.frontendDir+"/"+mcastKey)
	}
	if err != nil && !device.Unanswered(err) {
		v.reportError(ctx, "watch failed", err)
		v.alarm.In(retryAfter)
		return nil
	}
	return err
}

// unwatch removes all watches.
func (v *Vif) unwatch() {
	v.frontWatch.Close(v.work)
	v.mcastWatch.Close(v.work)
	v.headroomWatch.Close(v.work)
}

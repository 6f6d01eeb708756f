// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"cmp"
	"context"
	"fmt"

	"go.uber.org/zap"
)

// mcastKey is the frontend's key that turns the multicast filter on. It may change while
// the frontend is connected, since the backend publishes
// feature-dynamic-multicast-control.
const mcastKey = "request-multicast-control"

// applyRate applies the toolstack's key "rate". A wrong value changes nothing.
func (v *Vif) applyRate(ctx context.Context) {
	r, err := parseRate(v.nodes.rate)
	if err != nil {
		v.reportError(ctx, "bad key", err)
		return
	}
	if r != v.rate {
		v.rate = r
		v.link.SetRate(r.Bytes, r.Interval)
		v.log.Info("rate changed", zap.Stringer("limit", r))
	}
}

// applyWeight applies the toolstack's key "weight". A wrong value changes nothing.
func (v *Vif) applyWeight(ctx context.Context) {
	n, err := parseWeight(v.nodes.weight)
	if err != nil {
		v.reportError(ctx, "bad key", err)
		return
	}
	if n != v.weight {
		v.weight = n
		v.link.SetWeight(n)
		v.log.Info("weight changed", zap.Int("weight", n))
	}
}

// applyMulticast turns the multicast filter on or off, as the frontend requests. It
// reports an error in the frontend's keys, since these were read again for that.
func (v *Vif) applyMulticast(ctx context.Context) {
	if v.conn == nil {
		return
	}
	if v.guest.offer.err != nil {
		v.reportError(ctx, "bad frontend key", v.guest.offer.err)
		return
	}
	now := v.conn.frontend
	if f := v.guest.offer.frontend; f.sameRings(now) && f.features.mcast != now.features.mcast {
		now.features.mcast = f.features.mcast
		v.link.SetMcast(f.features.mcast)
		v.log.Info("multicast filter changed", zap.Bool("on", f.features.mcast))
	}
}

// reportScriptError reports a hotplug script that has failed. The script does not run again
// until an administrator has intervened, and the vif waits for it.
func (v *Vif) reportScriptError(ctx context.Context) {
	if v.nodes.hotplug == "error" {
		v.reportError(ctx, "hotplug script failed", fmt.Errorf("the hotplug script failed: %s", cmp.Or(v.nodes.scriptErr, "it wrote no reason")))
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"cmp"
	"fmt"

	"go.uber.org/zap"
)

// mcastKey is the frontend's key that may change while it is connected, since we
// say feature-dynamic-multicast-control.
const mcastKey = "request-multicast-control"

// followRate follows the key "rate". One that makes no sense changes nothing.
func (v *Vif) followRate() {
	r, err := parseRate(v.nodes.rate)
	if err != nil {
		v.fail(err)
		return
	}
	if r != v.rate {
		v.rate = r
		v.limiter.Set(r.Bytes, r.Interval)
		v.log.Info("rate", zap.Stringer("limit", r))
	}
}

// followMcast follows the frontend's wish for a multicast filter.
func (v *Vif) followMcast() {
	if v.link == nil {
		return
	}
	if v.offer.err != nil {
		v.fail(v.offer.err)
		return
	}
	if f := v.offer.rings; f.sameRings(v.link.front) && f.features.mcast != v.link.front.features.mcast {
		v.link.front.features.mcast = f.features.mcast
		v.mcast.SetFilter(f.features.mcast)
		v.log.Info("multicast filter", zap.Bool("on", f.features.mcast))
	}
}

// followHotplug makes known that the hotplug script has failed: the vif waits for
// what will not come before somebody has seen to it.
func (v *Vif) followHotplug() {
	if v.nodes.hotplug == "error" {
		v.fail(fmt.Errorf("the hotplug script failed: %s", cmp.Or(v.nodes.scriptErr, "it does not say why")))
	}
}

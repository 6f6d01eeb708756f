// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"fmt"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// splitChannels decides whether the frontend is offered an event channel for each ring of a
// queue. That helps a guest that handles the two events on different vcpus. With one queue
// on one vcpu it does not, and one channel costs both sides less: an event is one interrupt,
// and one port to unmask.
//
// The answer counts for the next connection. A frontend that is connected keeps what it has.
func (v *Vif) splitChannels(ctx context.Context) (bool, error) {
	if v.maxQueues() > 1 {
		one, err := v.hasOneVCPU(ctx)
		if !one || err != nil {
			return true, err
		}
	}
	// Linux does not remove the keys of an earlier connection. Beside a new event-channel
	// they would name channels that are gone.
	return v.hasKeys(ctx, v.nodes.frontendDir+"/event-channel-tx", v.nodes.frontendDir+"/event-channel-rx")
}

// hasOneVCPU reports whether the guest has a single vcpu, of which its number of queues
// depends: Linux takes one for each. The toolstack lists those that the guest may have, and
// the guest cannot add any. A driver domain may not be allowed to read the list.
func (v *Vif) hasOneVCPU(ctx context.Context) (bool, error) {
	cpus := fmt.Sprintf("/local/domain/%d/cpu/", v.cfg.ID.Domid)
	if first, err := v.hasKeys(ctx, cpus+"0/availability"); !first || err != nil {
		return false, err
	}
	second, err := v.hasKeys(ctx, cpus+"1/availability")
	return !second, err
}

// hasKeys reports whether one of the keys exists. One that may not be read does not.
func (v *Vif) hasKeys(ctx context.Context, paths ...string) (bool, error) {
	for _, path := range paths {
		switch _, err := xenbus.GuestStore(v.cfg.Store).Read(ctx, path); {
		case err == nil:
			return true, nil
		case device.Unanswered(err):
			return false, err
		}
	}
	return false, nil
}

// SPDX-License-Identifier: Apache-2.0

package vif

// blockedRingsRenewed reports whether a quarantined frontend has reconnected: it has
// initialised its rings again, under the same keys.
func (v *Vif) blockedRingsRenewed() bool {
	f := v.guest.offer.frontend
	if v.block.stamp.IsZero() || f == nil {
		return false
	}
	stamp, err := v.link.RingStamp(f.queues[0].txGref)
	return err == nil && stamp != v.block.stamp
}

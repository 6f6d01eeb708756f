// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// vrxPlan makes the vnet header at the start of packet fit the guest. A packet that the
// guest takes as it is stays as it is; the checksum of another one is completed, or plan
// says that it has to be cut into segments. It reports whether that is possible.
func (w *worker) vrxPlan(q *Queue, packet []byte, plan *offload.RxPlan) bool {
	v := q.virt
	hdr, frame := packet[:vrxHead], packet[vrxHead:]
	var asked tap.VnetHdr
	asked.Decode(hdr)
	if !offload.NeedsParse(asked.Flags, asked.GSOType) {
		v.finished(hdr, asked.Flags&tap.VnetDataValid != 0)
		return true
	}
	if v.takes.passes(&asked) {
		return true
	}
	// q.guest has no offloads, so all of them are done here.
	if !w.planOffload(q, asked, frame, plan) {
		return false
	}
	v.finished(hdr, plan.DataValidated)
	return true
}

// finished writes the vnet header of a packet without open offloads. valid says that its
// checksum was verified.
func (v *virtPair) finished(hdr []byte, valid bool) {
	clear(hdr[:vrxHead])
	if valid && v.takes.csum {
		hdr[0] = tap.VnetDataValid
	}
}

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
	h, _ := offload.Parse(frame, len(frame))
	p, err := offload.PlanRx(asked, h, len(frame), offload.Guest{})
	if err != nil {
		return false
	}
	if p.WritePseudo {
		offload.WritePseudo(frame, h, len(frame))
	}
	switch p.Action {
	case offload.ActComplete:
		err = offload.Complete(p.CsumStart, p.CsumOffset, frame)
		w.tally[CsumCompleted]++
	case offload.ActCompleteSCTP:
		err = offload.CompleteSCTP(p.CsumStart, frame)
		w.tally[CsumCompleted]++
	}
	v.finished(hdr, p.DataValidated)
	*plan = p
	return err == nil
}

// finished writes the vnet header of a packet without open offloads. valid says that its
// checksum was verified.
func (v *virtPair) finished(hdr []byte, valid bool) {
	clear(hdr[:vrxHead])
	if valid && v.takes.csum {
		hdr[0] = tap.VnetDataValid
	}
}

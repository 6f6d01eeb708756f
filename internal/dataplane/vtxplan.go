// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// vtxPlan checks the vnet header of a packet, which is in private memory with the packet's
// headers. It returns the one for the TAP and the most segments that the packet can have, or
// the reason to drop it: it asks for what the guest has not accepted, or what is not
// possible.
//
// A partial checksum is passed on where the guest says. For segmentation the headers are
// parsed, as those of a vif's packet: what the guest says must not make the host cut a
// packet elsewhere.
func (w *worker) vtxPlan(q *Queue, p *txPacket) (v tap.VnetHdr, segs int, drop Counter) {
	var asked tap.VnetHdr
	asked.Decode(w.txMem.mem[int(p.at)-q.virt.hdrLen:]) // without num_buffers it is not used
	features := q.virt.features
	if asked.GSOType == tap.VnetGSONone {
		v, drop = checkCsum(features, &asked, p.total)
		p.flags |= netif.TxCsumBlank
		return v, 1, drop
	}
	if drop = checkVirtGSO(features, &asked, p.total); drop == notDropped {
		v, drop = w.vtxPlanGSO(p, &asked)
	}
	return v, segmentsOf(p.total, max(asked.GSOSize, 1)), drop
}

// checkCsum checks a partial checksum, and returns the vnet header for the TAP.
func checkCsum(features uint64, asked *tap.VnetHdr, total uint32) (tap.VnetHdr, Counter) {
	if features&virtCsum == 0 || uint32(asked.CsumStart)+uint32(asked.CsumOffset)+2 > total {
		return tap.VnetHdr{}, DropTxCsum
	}
	return tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: asked.CsumStart, CsumOffset: asked.CsumOffset}, notDropped
}

// checkVirtGSO checks whether a guest may ask for this segmentation. It returns the reason to
// drop the packet, or notDropped.
func checkVirtGSO(features uint64, asked *tap.VnetHdr, total uint32) Counter {
	needs := uint64(virtCsum)
	switch asked.GSOType &^ tap.VnetGSOECN {
	case tap.VnetGSOTCPv4:
		needs |= virtHostTSO4
	case tap.VnetGSOTCPv6:
		needs |= virtHostTSO6
	case tap.VnetGSOUDP:
		needs |= virtHostUSO
	default:
		return DropTxGSO
	}
	if asked.GSOType&tap.VnetGSOECN != 0 {
		needs |= virtHostECN
	}
	switch {
	case features&needs != needs || asked.Flags&tap.VnetNeedsCsum == 0 || asked.GSOSize == 0:
		return DropTxGSO
	case asked.GSOSize < offload.MinGSOSize:
		return DropTxGSOSmall
	case segmentsOf(total, asked.GSOSize) > maxSegments:
		return DropTxSegments
	}
	return notDropped
}

// vtxPlanGSO plans the segmentation of a packet.
func (w *worker) vtxPlanGSO(p *txPacket, asked *tap.VnetHdr) (v tap.VnetHdr, drop Counter) {
	h, err := offload.Parse(w.txMem.mem[p.at:p.at+p.linear], int(p.total))
	if err != nil {
		return v, DropTxGSO
	}
	m := offload.TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: asked.GSOSize}
	switch asked.GSOType &^ tap.VnetGSOECN {
	case tap.VnetGSOUDP:
		if v, err = offload.PlanUSO(h, int(p.total), asked.GSOSize); err != nil {
			return v, DropTxGSO
		}
		return v, notDropped
	case tap.VnetGSOTCPv6:
		m.GSOType = netif.GSOTCPv6
	}
	plan, err := offload.PlanTx(m, h, int(p.total))
	if err != nil {
		return v, DropTxGSO
	}
	p.flags, p.gso = netif.TxCsumBlank, netif.GSOInfo{Type: m.GSOType, Size: m.GSOSize}
	return plan.Header, notDropped
}

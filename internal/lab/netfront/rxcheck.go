// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"encoding/binary"

	"github.com/netbackd/netbackd/pkg/netif"
)

// checkFlags checks the flags of one slot against netif.h.
func (q *Queue) checkFlags(f netif.RxFlags, first bool, i netif.Index) {
	const known = netif.RxDataValidated | netif.RxCsumBlank | netif.RxMoreData | netif.RxExtraInfo
	switch {
	case f&^known != 0:
		q.violate(RuleRxFlags, "rx", i, "flags %#x", uint16(f))
	case !first && f&^netif.RxMoreData != 0:
		q.violate(RuleRxFlags, "rx", i, "flags %#x in a later slot", uint16(f))
	case f&netif.RxCsumBlank != 0 && f&netif.RxDataValidated == 0:
		// Frontends in the field verify the checksum of a packet with csum_blank alone.
		q.violate(RuleRxFlags, "rx", i, "csum_blank without data_validated")
	}
}

// tooMany checks that Linux's netfront accepts the number of data slots.
func (q *Queue) tooMany(p *Packet, slots int) bool {
	most := netif.MinSlots
	if p.n > 0 && p.frags[0].len <= smallFirst {
		most++
	}
	if slots > most {
		q.violate(RuleRxSlots, "rx", p.start, "%d data slots", slots)
		return true
	}
	return false
}

// checkGSO checks a GSO extra against the frontend's features.
func (q *Queue) checkGSO(g netif.GSOInfo, e netif.ExtraInfo, i netif.Index) {
	f := q.rules.features
	switch {
	case g.Type == netif.GSOTCPv4 && !f.GSOTCPv4, g.Type == netif.GSOTCPv6 && !f.GSOTCPv6:
		q.violate(RuleGSO, "rx", i, "%v was not asked for", g.Type)
	case g.Type != netif.GSOTCPv4 && g.Type != netif.GSOTCPv6:
		q.violate(RuleGSO, "rx", i, "type %v", g.Type)
	case g.Size == 0:
		q.violate(RuleGSO, "rx", i, "segments of 0 bytes")
	case g.Features != 0 || e.Body[3] != 0:
		q.violate(RuleGSO, "rx", i, "pad %#x, features %#x", e.Body[3], g.Features)
	}
}

// checkHash checks a hash extra against netif.h.
func (q *Queue) checkHash(h netif.HashInfo, i netif.Index) {
	switch {
	case !q.rules.hash:
		q.violate(RuleExtra, "rx", i, "a hash was not asked for")
	case h.Type > netif.HashIPv6TCP || h.Algorithm != netif.HashAlgorithmToeplitz:
		q.violate(RuleExtra, "rx", i, "hash type %d, algorithm %d", h.Type, h.Algorithm)
	}
}

// checkCanary looks for bytes that the backend wrote beside its data, in strict
// mode.
func (q *Queue) checkCanary(page, offset, length uint16, i netif.Index) {
	if !q.rules.strict {
		return
	}
	b := q.rx.page(page)
	end := int(offset) + int(length)
	if !bytes.Equal(b[:offset], canary[:offset]) || !bytes.Equal(b[end:], canary[end:]) {
		q.violate(RuleOutsideWrite, "rx", i, "data is at %d, %d bytes", offset, length)
	}
}

// checkPacket checks a whole packet against the negotiated features.
func (q *Queue) checkPacket(p *Packet) {
	head := q.headOf(p)
	p.hdr = findHeaders(head)
	f := q.rules.features
	m := &p.Meta
	gso := m.GSOType != netif.GSONone

	if p.n > 1 && !f.SG {
		q.violate(RuleRxSG, "rx", p.start, "%d slots", p.n)
	}
	switch {
	case p.size < ethHeader || p.size > netif.MaxTxSize:
		q.violate(RuleRxLength, "rx", p.start, "%d bytes", p.size)
		return
	case !gso && q.rules.mtu > 0 && p.size > q.rules.mtu+frameOverhead:
		q.violate(RuleRxLength, "rx", p.start, "%d bytes, MTU %d", p.size, q.rules.mtu)
	}
	if gso {
		if !m.CsumBlank || !m.DataValidated {
			q.violate(RuleGSO, "rx", p.start, "without csum_blank and data_validated")
		}
		h := &p.hdr
		if h.proto != protoTCP || h.l4 == 0 || h.tagged || h.v4 != (m.GSOType == netif.GSOTCPv4) {
			q.violate(RuleGSO, "rx", p.start, "%v for a packet that is not", m.GSOType)
		}
	}
	q.checkPacketHash(p, head)
	q.checkHeadroom(p)
	if m.CsumBlank {
		q.checkBlank(p, head)
	} else if m.DataValidated && q.rules.strict {
		q.checkValidated(p, head)
	}
}

// checkBlank checks that a guest can complete a packet's blank checksum. A guest that
// receives the packet itself does not verify the sum, so a wrong one would show only two
// hops later.
func (q *Queue) checkBlank(p *Packet, head []byte) {
	h, f := &p.hdr, q.rules.features
	at := h.csumField()
	switch {
	case at == 0 || at+2 > len(head) || h.tagged:
		q.violate(RuleCsumBlank, "rx", p.start, "neither TCP nor UDP in an untagged, whole IP packet")
		return
	case h.v4 && f.NoCsumOffload:
		q.violate(RuleCsumBlank, "rx", p.start, "IPv4, but feature-no-csum-offload is set")
	case h.v6 && !f.IPv6CsumOffload:
		q.violate(RuleCsumBlank, "rx", p.start, "IPv6, but feature-ipv6-csum-offload is not set")
	}
	if q.rules.strict {
		if got, want := checksum(head, at), fold(h.pseudo(head, h.l4Len(head))); got != want {
			q.violate(RuleCsum, "rx", p.start, "pseudo-header sum %#04x, want %#04x", got, want)
		}
	}
}

// l4Len returns the length of the transport header and payload by the IP header. A padded
// frame is longer.
func (h *headers) l4Len(b []byte) int {
	if h.v4 {
		return int(binary.BigEndian.Uint16(b[h.l3+2:])) - (h.l4 - h.l3)
	}
	return int(binary.BigEndian.Uint16(b[h.l3+4:])) + 40 - (h.l4 - h.l3)
}

// checkValidated verifies a checksum that the backend marked as valid.
func (q *Queue) checkValidated(p *Packet, head []byte) {
	h := &p.hdr
	at := h.csumField()
	if at == 0 || at+2 > len(head) {
		return
	}
	if h.proto == protoUDP && h.v4 && checksum(head, at) == 0 {
		return // not used
	}
	n := h.l4Len(head)
	if n <= 0 || h.l4+n != p.size {
		return // padded or cut: cannot be verified
	}
	if s := fold(h.pseudo(head, n) + p.sumFrom(h.l4)); s != 0xffff {
		q.violate(RuleCsum, "rx", p.start, "data_validated, but the sum is %#04x", s)
	}
}

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Guest lists the offloads that a frontend takes.
type Guest struct {
	CsumIPv4 bool // partial checksums: unless feature-no-csum-offload
	CsumIPv6 bool // feature-ipv6-csum-offload
	GSOTCPv4 bool // feature-gso-tcpv4, together with feature-sg
	GSOTCPv6 bool // feature-gso-tcpv6, together with feature-sg
}

// Action names the work to do on a frame before it is delivered to the guest.
type Action uint8

// Actions.
const (
	ActPass         Action = iota // nothing
	ActComplete                   // [Complete] it at CsumStart and CsumOffset
	ActCompleteSCTP               // [CompleteSCTP] it at CsumStart
	ActSegment                    // deliver the output of a [Segmenter] instead
)

// RxPlan describes how to deliver a frame from the TAP to the guest.
type RxPlan struct {
	Action Action
	// WritePseudo asks for a call of [WritePseudo] before anything else.
	WritePseudo bool

	// Flags and GSO type of the rx slots; with ActSegment, of each segment.
	CsumBlank     bool // XEN_NETRXF_csum_blank
	DataValidated bool // XEN_NETRXF_data_validated
	GSOType       netif.GSOType

	// GSOSize is the payload per segment, for the GSO extra or for
	// [Segmenter.Init], in bytes; 8 or more, so a frame has up to 8192 segments.
	GSOSize uint16

	CsumStart  uint16
	CsumOffset uint16
}

// NeedsParse reports whether [PlanRx] needs the headers of a frame with these
// fields of a [tap.VnetHdr].
func NeedsParse(flags, gsoType uint8) bool {
	return flags&tap.VnetNeedsCsum != 0 || gsoType != tap.VnetGSONone
}

// PlanRx plans the delivery of a frame of total bytes that was read from the TAP
// with the header v. h is the result of [Parse]; an error of Parse does not matter,
// since a checksum can be completed in a packet of any protocol.
//
// A frontend finds a partial checksum by itself, and only in TCP or UDP right above
// an untagged IP header. All others are completed on the host, with any set of
// features: VLAN tagged frames (Linux netfront drops them), tunnels, SCTP,
// fragments. A frame with VIRTIO_NET_HDR_GSO_ECN is segmented on the host, because
// netif cannot express that flag.
func PlanRx(v tap.VnetHdr, h Headers, total int, g Guest) (RxPlan, error) {
	partial := v.Flags&tap.VnetNeedsCsum != 0
	if v.GSOType != tap.VnetGSONone {
		t := netif.GSONone
		switch v.GSOType &^ tap.VnetGSOECN {
		case tap.VnetGSOTCPv4:
			t = netif.GSOTCPv4
		case tap.VnetGSOTCPv6:
			t = netif.GSOTCPv6
		}
		if err := checkGSO(&h, t, v.GSOSize); err != nil {
			return RxPlan{}, err
		}
		if partial && !h.csumAt(v) {
			return RxPlan{}, ErrGSOMismatch
		}
		if total < int(h.End) {
			return RxPlan{}, ErrTruncated
		}
		size := max(v.GSOSize, MinGSOSize)
		if total-int(h.End) > int(size) {
			p := RxPlan{
				WritePseudo:   !partial,
				DataValidated: true,
				GSOSize:       size,
			}
			if v.GSOType&tap.VnetGSOECN == 0 && g.takesGSO(&h) {
				// A Windows frontend insists on both flags with GSO.
				p.CsumBlank = true
				p.GSOType = t
			} else {
				p.Action = ActSegment
			}
			return p, nil
		}
		// The payload fits one segment: not a GSO packet.
	}
	if !partial {
		return RxPlan{DataValidated: v.Flags&tap.VnetDataValid != 0}, nil
	}

	plain := h.transport() && h.csumAt(v)
	if plain && g.takesCsum(&h) {
		return RxPlan{CsumBlank: true, DataValidated: true}, nil
	}
	p := RxPlan{
		Action: ActComplete,
		// The flag is about the outermost checksum. In a tunnel the one that
		// is completed here is an inner one.
		DataValidated: plain,
		CsumStart:     v.CsumStart,
		CsumOffset:    v.CsumOffset,
	}
	need := int(v.CsumStart) + int(v.CsumOffset) + 2
	if h.Proto == protoSCTP && h.L4 == v.CsumStart && v.CsumOffset == sctpCheck {
		p.Action = ActCompleteSCTP
		need += 2
	}
	if need > total {
		return RxPlan{}, ErrCsumRange
	}
	return p, nil
}

// csumAt reports whether v's checksum is the one of h's transport header.
func (h *Headers) csumAt(v tap.VnetHdr) bool {
	return v.CsumStart == h.L4 && v.CsumOffset == h.csumOffset()
}

// takesCsum reports whether the guest can complete the checksum of a TCP or UDP
// packet.
func (g Guest) takesCsum(h *Headers) bool {
	if h.VLANs != 0 || h.Atomic || h.Auth {
		return false
	}
	if h.IPv == 4 {
		return g.CsumIPv4
	}
	return g.CsumIPv6
}

// takesGSO reports whether the guest takes a TCP packet unsegmented, which
// always has a partial checksum.
func (g Guest) takesGSO(h *Headers) bool {
	if !g.takesCsum(h) {
		return false
	}
	if h.IPv == 4 {
		return g.GSOTCPv4
	}
	return g.GSOTCPv6
}

// SPDX-License-Identifier: Apache-2.0

package offload

// Guest is what a frontend has agreed to receive.
type Guest struct {
	CsumIPv4 bool // partial checksums: unless feature-no-csum-offload
	CsumIPv6 bool // feature-ipv6-csum-offload
	GSOTCPv4 bool // feature-gso-tcpv4, together with feature-sg
	GSOTCPv6 bool // feature-gso-tcpv6, together with feature-sg
}

// Action is what has to happen to a frame before its guest can have it.
type Action uint8

// Actions.
const (
	ActPass         Action = iota // nothing
	ActComplete                   // [Complete] it at CsumStart and CsumOffset
	ActCompleteSCTP               // [CompleteSCTP] it at CsumStart
	ActSegment                    // give its guest the output of a [Segmenter]
)

// RxPlan says how a frame from the TAP goes to the guest.
type RxPlan struct {
	Action Action
	// WritePseudo: the checksum field has to get the sum of the
	// pseudo-header first, with [WritePseudo].
	WritePseudo bool

	// What to tell the guest: of each segment, if there are to be segments.
	CsumBlank     bool // XEN_NETRXF_csum_blank
	DataValidated bool // XEN_NETRXF_data_validated
	GSOType       GSOType

	// GSOSize is the payload per segment, for the GSO extra or for
	// [Segmenter.Init]; 8 octets or more, so a frame has up to 8192 segments.
	GSOSize uint16

	CsumStart  uint16
	CsumOffset uint16
}

// NeedsParse reports whether [PlanRx] looks at the headers of a packet that
// comes with v.
func (v VnetHeader) NeedsParse() bool {
	return v.Flags&VnetNeedsCsum != 0 || v.GSOType != VnetGSONone
}

// PlanRx decides how a frame of total octets that was read from the TAP with
// the header v is given to a guest. h is what [Parse] made of it; that Parse
// failed is no reason to stop, since a checksum can be finished in a packet of
// any kind.
//
// A frontend has to find the open checksum by itself. It looks for TCP or UDP
// right above an untagged IP header, so anything else is finished here: VLAN
// tagged frames (which Linux netfront would drop), tunnels, SCTP, fragments,
// whatever the guest's features are. So is a frame with VIRTIO_NET_HDR_GSO_ECN,
// for which netif has no word.
func PlanRx(v VnetHeader, h Headers, total int, g Guest) (RxPlan, error) {
	partial := v.Flags&VnetNeedsCsum != 0
	if v.GSOType != VnetGSONone {
		t := GSONone
		switch v.GSOType &^ VnetGSOECN {
		case VnetGSOTCPv4:
			t = GSOTCPv4
		case VnetGSOTCPv6:
			t = GSOTCPv6
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
			if v.GSOType&VnetGSOECN == 0 && g.takesGSO(&h) {
				// A Windows frontend insists on both flags with GSO.
				p.CsumBlank = true
				p.GSOType = t
			} else {
				p.Action = ActSegment
			}
			return p, nil
		}
		// One segment's worth is no GSO packet.
	}
	if !partial {
		return RxPlan{DataValidated: v.Flags&VnetDataValid != 0}, nil
	}

	plain := h.transport() && h.csumAt(v)
	if plain && g.takesCsum(&h) {
		return RxPlan{CsumBlank: true, DataValidated: true}, nil
	}
	p := RxPlan{
		Action: ActComplete,
		// The sender and this host vouch for the data, but only as far as
		// this checksum reaches: in a tunnel that is not the outermost one,
		// which is the one the flag speaks of.
		DataValidated: plain,
		CsumStart:     v.CsumStart,
		CsumOffset:    v.CsumOffset,
	}
	need := int(v.CsumStart) + int(v.CsumOffset) + 2
	if h.Proto == ProtoSCTP && h.L4 == v.CsumStart && v.CsumOffset == sctpCheck {
		p.Action = ActCompleteSCTP
		need += 2
	}
	if need > total {
		return RxPlan{}, ErrCsumRange
	}
	return p, nil
}

// csumAt reports whether v's checksum is the one of h's transport header.
func (h *Headers) csumAt(v VnetHeader) bool {
	return v.CsumStart == h.L4 && v.CsumOffset == h.csumOffset()
}

// takesCsum reports whether the guest can finish the checksum of a TCP or UDP
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

// takesGSO reports whether the guest can take a TCP packet unsegmented, which
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

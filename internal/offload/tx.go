// SPDX-License-Identifier: Apache-2.0

package offload

// TxMeta is what a guest says about a packet it sends.
type TxMeta struct {
	CsumBlank bool // XEN_NETTXF_csum_blank: the checksum is partial
	GSOType   GSOType
	GSOSize   uint16 // payload octets per segment
}

// Plain reports whether the guest asks for nothing, so that its packet needs no
// [Parse] and has the zero [VnetHeader]. That a guest calls its checksum
// verified (XEN_NETTXF_data_validated alone) has no equivalent: the kernel
// ignores VIRTIO_NET_HDR_F_DATA_VALID on what is written to a TAP.
func (m TxMeta) Plain() bool { return !m.CsumBlank && m.GSOType == GSONone }

// TxPlan says how a packet of a guest goes into the TAP.
type TxPlan struct {
	Header VnetHeader
	// WritePseudo: the checksum field has to get the sum of the
	// pseudo-header first, with [WritePseudo].
	WritePseudo bool
}

// MinGSOSize is the least payload of a segment, in bytes, that a guest may ask
// for. No known stack goes below it. Linux never sends segments with an MSS of
// less than 48 (TCP_MIN_SND_MSS, net.ipv4.tcp_min_snd_mss, include/net/tcp.h),
// whatever MSS the peer or the route has, and 40 bytes of options at most are taken
// from that, which makes 8 (TCP_MIN_GSO_SIZE there). A peer with a small window
// does not bring it lower either: tcp_bound_to_half_wnd stops at 68 bytes less the
// TCP header. FreeBSD and NetBSD stop at an MSS of 216 (TCP_MINMSS). Higher limits, such
// as the MSS of 536 that every IPv4 host takes (RFC 9293, 3.7.1), would break
// connections to peers that do ask for less.
//
// A TAP takes any size: with 1, the host would cut one packet of 64 KiB into as many
// as it has bytes.
const MinGSOSize = 8

// PlanTx decides how a packet of total octets that a guest sends is offered to
// the TAP. h is what [Parse] made of it.
//
// Like Linux netback, it lets only TCP and UDP have a partial checksum; unlike
// it, also behind VLAN tags. A packet whose payload fits one segment is not a
// GSO packet, whatever its extra says. A segment size below [MinGSOSize] is
// [ErrGSOSize].
func PlanTx(m TxMeta, h Headers, total int) (TxPlan, error) {
	var p TxPlan
	if m.Plain() {
		return p, nil
	}
	if m.GSOType != GSONone {
		if err := checkGSO(&h, m.GSOType, m.GSOSize); err != nil {
			return p, err
		}
		if m.GSOSize < MinGSOSize {
			return p, ErrGSOSize
		}
	}
	switch {
	case h.Fragment:
		return p, ErrFragment
	case !h.transport():
		return p, ErrNotTCPUDP
	case total < int(h.End):
		return p, ErrTruncated
	}
	p.WritePseudo = !m.CsumBlank
	p.Header = VnetHeader{
		Flags:      VnetNeedsCsum,
		HdrLen:     h.End,
		CsumStart:  h.L4,
		CsumOffset: h.csumOffset(),
	}
	if m.GSOType == GSONone || total-int(h.End) <= int(m.GSOSize) {
		return p, nil
	}
	p.Header.GSOSize = m.GSOSize
	p.Header.GSOType = VnetGSOTCPv4
	if m.GSOType == GSOTCPv6 {
		p.Header.GSOType = VnetGSOTCPv6
	}
	if h.TCPFlags&flagCWR != 0 {
		// netif cannot say it, but a device that does not know would repeat
		// the flag in every segment, each one a new signal to the receiver.
		p.Header.GSOType |= VnetGSOECN
	}
	return p, nil
}

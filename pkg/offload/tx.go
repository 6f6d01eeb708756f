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

// minGSOSize is the least that a segment of a planned packet carries. Linux has
// the same for its own TCP (TCP_MIN_GSO_SIZE: an MSS of 48 less 40 octets of
// options), but a TAP takes any size: with 1, one packet of a guest could make
// the host cut 64 KiB into as many packets.
const minGSOSize = 8

// PlanTx decides how a packet of total octets that a guest sends is offered to
// the TAP. h is what [Parse] made of it.
//
// Like Linux netback, it lets only TCP and UDP have a partial checksum; unlike
// it, also behind VLAN tags. A packet whose payload fits one segment is not a
// GSO packet, whatever its extra says, and a segment size below 8 octets is
// raised to that.
func PlanTx(m TxMeta, h Headers, total int) (TxPlan, error) {
	var p TxPlan
	if m.Plain() {
		return p, nil
	}
	if m.GSOType != GSONone {
		if err := checkGSO(&h, m.GSOType, m.GSOSize); err != nil {
			return p, err
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
	size := max(m.GSOSize, minGSOSize)
	if m.GSOType == GSONone || total-int(h.End) <= int(size) {
		return p, nil
	}
	p.Header.GSOSize = size
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

// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// TxMeta holds the offloads that a guest requests for a packet it sends.
type TxMeta struct {
	CsumBlank bool // XEN_NETTXF_csum_blank: the checksum is partial
	GSOType   netif.GSOType
	GSOSize   uint16 // payload bytes per segment
}

// Plain reports whether the guest requests nothing, so that its packet needs no
// [Parse] and has the zero [tap.VnetHdr]. XEN_NETTXF_data_validated alone has no
// equivalent there: the kernel ignores VIRTIO_NET_HDR_F_DATA_VALID on writes to a
// TAP.
func (m TxMeta) Plain() bool { return !m.CsumBlank && m.GSOType == netif.GSONone }

// TxPlan describes how to write a guest's packet to the TAP.
type TxPlan struct {
	Header tap.VnetHdr
	// WritePseudo asks for a call of [WritePseudo] before the write.
	WritePseudo bool
}

// MinGSOSize is the least payload of a segment, in bytes, that a guest may request.
// No known stack goes below it. Linux never uses an MSS below 48, even if the peer or
// the route requests it (TCP_MIN_SND_MSS, net.ipv4.tcp_min_snd_mss,
// include/net/tcp.h); 40 bytes of options leave 8 (TCP_MIN_GSO_SIZE there). A small
// window of the peer does not lower it: tcp_bound_to_half_wnd stops at 68 bytes less
// the TCP header. FreeBSD and NetBSD stop at an MSS of 216 (TCP_MINMSS). A higher
// limit, such as the MSS of 536 that every IPv4 host takes (RFC 9293, 3.7.1), would
// break connections to peers that announce less.
//
// A TAP takes any size: with 1, the host would cut a packet of 64 KiB into one
// segment per byte.
const MinGSOSize = 8

// PlanTx plans the write of a guest's packet of total bytes to the TAP. h is the
// result of [Parse].
//
// As in Linux netback, only TCP and UDP may have a partial checksum; unlike there,
// also behind VLAN tags. A packet whose payload fits one segment is not a GSO
// packet, even with a GSO extra. A segment size below [MinGSOSize] is [ErrGSOSize].
func PlanTx(m TxMeta, h Headers, total int) (TxPlan, error) {
	var p TxPlan
	if m.Plain() {
		return p, nil
	}
	if m.GSOType != netif.GSONone {
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
	p.Header = tap.VnetHdr{
		Flags:      tap.VnetNeedsCsum,
		HdrLen:     h.End,
		CsumStart:  h.L4,
		CsumOffset: h.csumOffset(),
	}
	if m.GSOType == netif.GSONone || total-int(h.End) <= int(m.GSOSize) {
		return p, nil
	}
	p.Header.GSOSize = m.GSOSize
	p.Header.GSOType = tap.VnetGSOTCPv4
	if m.GSOType == netif.GSOTCPv6 {
		p.Header.GSOType = tap.VnetGSOTCPv6
	}
	if h.TCPFlags&flagCWR != 0 {
		// netif cannot express it. Without this flag a device would repeat
		// CWR in every segment, and each is a signal to the receiver.
		p.Header.GSOType |= tap.VnetGSOECN
	}
	return p, nil
}

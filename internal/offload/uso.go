// SPDX-License-Identifier: Apache-2.0

package offload

import "github.com/netbackd/netbackd/pkg/tap"

// PlanUSO plans the write of a guest's packet of total bytes to the TAP that is to be cut
// into datagrams with size bytes of payload each (VIRTIO_NET_HDR_GSO_UDP_L4). h is the
// result of [Parse]. The checksum of the packet must be partial. A packet whose payload
// fits one datagram is none of these.
func PlanUSO(h Headers, total int, size uint16) (v tap.VnetHdr, err error) {
	switch {
	case h.Fragment || h.Atomic:
		return v, ErrFragment
	case h.Proto != protoUDP || h.L4 == 0 || h.Auth:
		return v, ErrGSOMismatch
	case total < int(h.End):
		return v, ErrTruncated
	case size < MinGSOSize || size == gsoByFrags:
		return v, ErrGSOSize
	}
	v = tap.VnetHdr{Flags: tap.VnetNeedsCsum, HdrLen: h.End, CsumStart: h.L4, CsumOffset: udpCheck}
	if total-int(h.End) > int(size) {
		v.GSOType, v.GSOSize = tap.VnetGSOUDP, size
	}
	return v, nil
}

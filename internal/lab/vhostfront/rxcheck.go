// SPDX-License-Identifier: Apache-2.0

package vhostfront

import "github.com/netbackd/netbackd/pkg/tap"

// check checks a packet against the accepted features, and counts it.
func (x *rxSide) check() {
	h, n := &x.vnet, x.bytes()
	x.stats.RxPackets++
	x.stats.RxBytes += uint64(max(n, 0))
	x.stats.RxChains += uint64(len(x.parts))
	if len(x.parts) > 1 {
		x.stats.RxMulti++
	}
	if n < 14 {
		x.fault("ring %d: a frame of %d bytes", x.index, n)
		return
	}
	if h.Flags&^(tap.VnetNeedsCsum|tap.VnetDataValid) != 0 {
		x.fault("ring %d: flags %#x of a vnet header", x.index, h.Flags)
	}
	if h.Flags != 0 && !x.rules.has(featGuestCsum) {
		x.fault("ring %d: flags %#x of a vnet header, but the guest takes no checksums", x.index, h.Flags)
	}
	if h.Flags&tap.VnetNeedsCsum != 0 {
		x.stats.RxCsum++
		if int(h.CsumStart)+int(h.CsumOffset)+2 > n || h.CsumStart < 14 {
			x.fault("ring %d: checksum at %d+%d of a frame of %d bytes", x.index, h.CsumStart, h.CsumOffset, n)
		}
	}
	x.checkGSO(n)
}

// checkGSO checks the fields for the segmentation of a packet.
func (x *rxSide) checkGSO(n int) {
	h := &x.vnet
	need := uint64(0)
	switch h.GSOType &^ tap.VnetGSOECN {
	case tap.VnetGSONone:
		if h.GSOType != tap.VnetGSONone {
			x.fault("ring %d: ECN in a packet that is not to be segmented", x.index)
		}
		if x.rules.mtu > 0 && n > x.rules.mtu+frameOverhead {
			x.fault("ring %d: a frame of %d bytes, MTU %d", x.index, n, x.rules.mtu)
		}
		return
	case tap.VnetGSOTCPv4:
		need = featGuestTSO4
	case tap.VnetGSOTCPv6:
		need = featGuestTSO6
	}
	x.stats.RxGSO++
	if h.GSOType&tap.VnetGSOECN != 0 {
		need |= featGuestECN
	}
	if need == 0 || x.rules.features&need != need {
		x.fault("ring %d: segments of type %#x were not agreed on", x.index, h.GSOType)
	}
	if h.GSOSize == 0 || h.Flags&tap.VnetNeedsCsum == 0 {
		x.fault("ring %d: segments of %d bytes, flags %#x", x.index, h.GSOSize, h.Flags)
	}
}

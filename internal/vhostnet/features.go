// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// featureLogAll switches the log of dirty pages.
const featureLogAll = 1 << 26

// layer is the part that carries a feature out.
type layer uint8

const (
	dataPath layer = iota // the data path, which says whether it has it
	session               // pkg/vhostuser
	frontEnd              // the front end has the control queue and the configuration; a back end only agrees
	grants                // the memory: addresses are grants, which the guest's DMA layer makes
)

// Feature is a feature of virtio that a device may offer.
type Feature struct {
	Bit  uint8
	Name string
	by   layer
	Why  string
}

// Features are all features that a device may offer, by their bits. RSS (60) and
// HASH_REPORT (57) are not among them: no message brings their key, types and table to a
// back end, and with HASH_REPORT the driver expects another header.
var Features = []Feature{
	{0, "csum", dataPath, "the TAP takes partial checksums"},
	{1, "guest_csum", dataPath, "the TAP gives partial checksums to a guest that takes them"},
	{3, "mtu", frontEnd, "the front end tells the guest the MTU, and the back end by NET_SET_MTU"},
	{7, "guest_tso4", dataPath, "the TAP gives large packets to a guest that takes them"},
	{8, "guest_tso6", dataPath, "the same for IPv6"},
	{9, "guest_ecn", dataPath, "large packets may have CWR set"},
	{11, "host_tso4", dataPath, "the TAP takes large packets"},
	{12, "host_tso6", dataPath, "the same for IPv6"},
	{13, "host_ecn", dataPath, "large packets may have CWR set"},
	{15, "mrg_rxbuf", dataPath, "a large packet takes several small buffers"},
	{16, "status", frontEnd, "the front end tells the guest the state of the link"},
	{17, "ctrl_vq", frontEnd, "the control queue is served by the front end"},
	{21, "guest_announce", frontEnd, "a guest that has migrated announces itself"},
	{22, "mq", frontEnd, "several pairs of queues, which the guest enables by the control queue"},
	{26, "log_all", session, "live migration: a log of the pages that the back end writes"},
	{28, "indirect_desc", dataPath, "tables of descriptors outside of the ring"},
	{29, "event_idx", dataPath, "fewer kicks and calls"},
	{32, "version_1", dataPath, "virtio 1"},
	{33, "access_platform", grants, "addresses of grants; without grants it would demand IOTLB messages"},
	{34, "ring_packed", dataPath, "packed rings"},
	{35, "in_order", dataPath, "buffers are used in order"},
	{54, "guest_uso4", dataPath, "the TAP gives large UDP packets to a guest that takes them"},
	{55, "guest_uso6", dataPath, "the same for IPv6"},
	{56, "host_uso", dataPath, "the TAP takes large UDP packets"},
}

// Xen says what a device offers to the front ends of Xen's guests.
type Xen uint8

const (
	// XenOff: memory is shared by files alone.
	XenOff Xen = iota
	// XenForeign offers VHOST_USER_PROTOCOL_F_XEN_MMAP.
	XenForeign
	// XenGrant offers VIRTIO_F_ACCESS_PLATFORM as well, without which Linux makes no
	// grants. QEMU refuses a back end that offers it and has no IOTLB.
	XenGrant
)

// offer returns the features of virtio, and of the protocol, that a device offers. vnetHdr
// says that its TAP has vnet headers, uso that it takes UDP segmentation.
func offer(vnetHdr, uso bool, xen Xen) (features, protocol uint64) {
	moved := dataplane.VirtFeatures(vnetHdr, uso)
	for _, f := range Features {
		bit := uint64(1) << f.Bit
		if f.by == dataPath && moved&bit == 0 || f.by == grants && xen != XenGrant {
			continue
		}
		features |= bit
	}
	protocol = vhostuser.ProtocolNet
	if xen != XenOff {
		protocol |= vhostuser.ProtocolXenMmap
	}
	return features, protocol
}

// featureNames lists the features in a set.
func featureNames(set uint64) []string {
	names := []string{}
	for _, f := range Features {
		if set&(1<<f.Bit) != 0 {
			names = append(names, f.Name)
		}
	}
	return names
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"strconv"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// features holds the features that a frontend requests or supports.
type features struct {
	rxCopy   bool          // grant copy on the rx ring, which is required
	rxNotify bool          // sends an event when it posts rx slots
	sg       bool          // takes packets of several slots
	mcast    bool          // wants only the multicast addresses in its list
	guest    offload.Guest // offloads that it takes
}

// backendOffer holds the settings that the backend offers to one frontend.
type backendOffer struct {
	maxQueues int
	offload   bool // the TAP has vnet headers; not read back
	split     bool // an event channel for each ring; not read back
	control   ctrlserver.Protocols
}

// feature is one thing that back end and frontend can agree on.
type feature struct {
	// read is the frontend's key, name is the feature's name in the status, and in
	// returns its field in features. read is empty if the frontend has no such key. If
	// inverted, the value 1 turns the feature off.
	read, name string
	in         func(*features) *bool
	inverted   bool

	// offer is the backend's key, value returns its value, and readBack parses the
	// value that a predecessor has written. offer is empty if the backend has no such
	// key, and readBack is nil if the old value does not matter.
	offer    string
	value    func(backendOffer) string
	readBack func(o *backendOffer, value string)
}

// featureTable lists everything that back end and frontend can agree on. All code that
// offers, reads, reads back or shows features uses it.
//
// Without vnet headers on the TAP the host cannot take partial checksums or packets to
// segment, so the backend does not offer these. It also writes the keys of features that
// it does not have, since another backend may have left them in the directory.
var featureTable = [...]feature{
	{read: "request-rx-copy", name: "rx-copy", in: func(f *features) *bool { return &f.rxCopy },
		offer: "feature-rx-copy", value: yes},
	{read: "feature-rx-notify", name: "rx-notify", in: func(f *features) *bool { return &f.rxNotify }},
	{read: "feature-sg", name: "sg", in: func(f *features) *bool { return &f.sg },
		offer: "feature-sg", value: yes},
	{read: "feature-gso-tcpv4", name: "gso-tcpv4", in: func(f *features) *bool { return &f.guest.GSOTCPv4 },
		offer: "feature-gso-tcpv4", value: ifOffload},
	{read: "feature-gso-tcpv6", name: "gso-tcpv6", in: func(f *features) *bool { return &f.guest.GSOTCPv6 },
		offer: "feature-gso-tcpv6", value: ifOffload},
	{read: "feature-no-csum-offload", name: "csum-ipv4", in: func(f *features) *bool { return &f.guest.CsumIPv4 }, inverted: true,
		offer: "feature-no-csum-offload", value: func(o backendOffer) string { return bit(!o.offload) }},
	{read: "feature-ipv6-csum-offload", name: "csum-ipv6", in: func(f *features) *bool { return &f.guest.CsumIPv6 },
		offer: "feature-ipv6-csum-offload", value: ifOffload},
	{read: mcastKey, name: "multicast-control", in: func(f *features) *bool { return &f.mcast },
		offer: "feature-multicast-control", value: yes},
	{offer: "feature-dynamic-multicast-control", value: yes},
	{offer: "feature-rx-flip", value: func(backendOffer) string { return bit(false) }},
	{offer: "feature-split-event-channels", value: func(o backendOffer) string { return bit(o.split) }},
	{offer: "feature-xdp-headroom", value: yes},
	{offer: "multi-queue-max-queues", value: func(o backendOffer) string { return strconv.Itoa(o.maxQueues) },
		readBack: func(o *backendOffer, v string) {
			n, _ := xenbus.ParseUint("", v, 1, tap.MaxQueues)
			o.maxQueues = int(n)
		}},
	offeredRing("feature-ctrl-ring", ctrlserver.Slot),
	offeredRing("feature-control-ring", ctrlserver.Stream),
}

func bit(v bool) string {
	if v {
		return "1"
	}
	return "0"
}

func yes(backendOffer) string { return bit(true) }

func ifOffload(o backendOffer) string { return bit(o.offload) }

// offeredRing returns the row of a control ring protocol.
func offeredRing(key string, p ctrlserver.Protocols) feature {
	return feature{
		offer: key, value: func(o backendOffer) string { return bit(o.control&p != 0) },
		readBack: func(o *backendOffer, v string) {
			o.control &^= p
			if v == "1" {
				o.control |= p
			}
		},
	}
}

// names lists the features that are on, in the order of the table.
func (f features) names() []string {
	names := []string{}
	for i := range featureTable {
		if ft := &featureTable[i]; ft.read != "" && *ft.in(&f) {
			names = append(names, ft.name)
		}
	}
	return names
}

// read reads the frontend's published features.
func (f *features) read(k *xenbus.Reader) {
	for i := range featureTable {
		if ft := &featureTable[i]; ft.read != "" {
			*ft.in(f) = k.Bool(ft.read) != ft.inverted
		}
	}
}

// node is a key of the backend directory.
type node struct{ key, value string }

// nodes returns the nodes that the backend publishes.
func (o backendOffer) nodes() (list []node) {
	for i := range featureTable {
		if ft := &featureTable[i]; ft.offer != "" {
			list = append(list, node{ft.offer, ft.value(o)})
		}
	}
	return list
}

// readBack reads the features that this backend or a predecessor has published.
func (o *backendOffer) readBack(text func(key string) string) {
	for i := range featureTable {
		if ft := &featureTable[i]; ft.readBack != nil {
			ft.readBack(o, text(ft.offer))
		}
	}
}

// isOffered reports whether the backend publishes a key.
func isOffered(key string) bool {
	for i := range featureTable {
		if ft := &featureTable[i]; ft.offer != "" && ft.offer == key {
			return true
		}
	}
	return false
}

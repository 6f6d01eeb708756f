// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"strconv"

	"github.com/netbackd/netbackd/internal/ctrlserver"
)

// features is what a frontend asked for or can take.
type features struct {
	rxCopy   bool // must be
	rxNotify bool // sends an event when it posts rx slots
	sg       bool // takes packets of several slots
	gsoTCPv4 bool
	gsoTCPv6 bool
	csumIPv4 bool // takes partial checksums
	csumIPv6 bool
	mcast    bool // wants only the multicast it lists
}

// feature is one thing backend and frontend can agree on.
type feature struct {
	key  string // the frontend's key
	name string // as it is shown
	in   func(*features) *bool
	// inverted: 1 takes the feature away.
	inverted bool
}

// featureTable is the only place that lists what a frontend may say: what is
// read, agreed and shown comes from it.
var featureTable = [...]feature{
	{key: "request-rx-copy", name: "rx-copy", in: func(f *features) *bool { return &f.rxCopy }},
	{key: "feature-rx-notify", name: "rx-notify", in: func(f *features) *bool { return &f.rxNotify }},
	{key: "feature-sg", name: "sg", in: func(f *features) *bool { return &f.sg }},
	{key: "feature-gso-tcpv4", name: "gso-tcpv4", in: func(f *features) *bool { return &f.gsoTCPv4 }},
	{key: "feature-gso-tcpv6", name: "gso-tcpv6", in: func(f *features) *bool { return &f.gsoTCPv6 }},
	{key: "feature-no-csum-offload", name: "csum-ipv4", in: func(f *features) *bool { return &f.csumIPv4 }, inverted: true},
	{key: "feature-ipv6-csum-offload", name: "csum-ipv6", in: func(f *features) *bool { return &f.csumIPv6 }},
	{key: "request-multicast-control", name: "multicast-control", in: func(f *features) *bool { return &f.mcast }},
}

// names lists the features that are on, in the order of the table.
func (f features) names() []string {
	names := []string{}
	for i := range featureTable {
		if *featureTable[i].in(&f) {
			names = append(names, featureTable[i].name)
		}
	}
	return names
}

// published is a key of the backend's directory.
type published struct{ key, value string }

// offers is what the backend publishes. Without vnet headers on the TAP nothing
// on the host could take a partial checksum or a packet to segment, so then none
// is asked for. What it does not do is said as well, since another backend may
// have served the directory before and left its keys.
func offers(maxQueues int, offload bool, control ctrlserver.Protocols) []published {
	bit := func(v bool) string {
		if v {
			return "1"
		}
		return "0"
	}
	return []published{
		{"feature-sg", "1"},
		{"feature-gso-tcpv4", bit(offload)},
		{"feature-gso-tcpv6", bit(offload)},
		{"feature-no-csum-offload", bit(!offload)},
		{"feature-ipv6-csum-offload", bit(offload)},
		{"feature-rx-copy", "1"},
		{"feature-rx-flip", "0"},
		{"feature-multicast-control", "1"},
		{"feature-dynamic-multicast-control", "1"},
		{"feature-split-event-channels", "1"},
		{"multi-queue-max-queues", strconv.Itoa(maxQueues)},
		{"feature-ctrl-ring", bit(control&ctrlserver.Slot != 0)},
		{"feature-control-ring", bit(control&ctrlserver.Stream != 0)},
		{"feature-xdp-headroom", "1"},
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import "strconv"

// feature is one thing backend and frontend can agree on. The table below is the
// only place that lists them: what is published, read, agreed and shown comes
// from it.
type feature struct {
	key  string // the frontend's key
	name string // as it is shown
	// set records the frontend's answer.
	set func(f *FrontFeatures, v bool)
	get func(f *FrontFeatures) bool
	// inverted: 1 takes the feature away.
	inverted bool
}

// FrontFeatures is what a frontend asked for or can take.
type FrontFeatures struct {
	RxCopy   bool // request-rx-copy: must be
	RxNotify bool // feature-rx-notify: sends an event when it posts rx slots
	SG       bool // feature-sg: takes packets of several slots
	GSOTCPv4 bool // feature-gso-tcpv4
	GSOTCPv6 bool // feature-gso-tcpv6
	CsumIPv4 bool // unless feature-no-csum-offload: takes partial checksums
	CsumIPv6 bool // feature-ipv6-csum-offload
	Mcast    bool // request-multicast-control: wants only the multicast it lists
}

var frontFeatures = []feature{
	{key: "request-rx-copy", name: "rx-copy",
		set: func(f *FrontFeatures, v bool) { f.RxCopy = v }, get: func(f *FrontFeatures) bool { return f.RxCopy }},
	{key: "feature-rx-notify", name: "rx-notify",
		set: func(f *FrontFeatures, v bool) { f.RxNotify = v }, get: func(f *FrontFeatures) bool { return f.RxNotify }},
	{key: "feature-sg", name: "sg",
		set: func(f *FrontFeatures, v bool) { f.SG = v }, get: func(f *FrontFeatures) bool { return f.SG }},
	{key: "feature-gso-tcpv4", name: "gso-tcpv4",
		set: func(f *FrontFeatures, v bool) { f.GSOTCPv4 = v }, get: func(f *FrontFeatures) bool { return f.GSOTCPv4 }},
	{key: "feature-gso-tcpv6", name: "gso-tcpv6",
		set: func(f *FrontFeatures, v bool) { f.GSOTCPv6 = v }, get: func(f *FrontFeatures) bool { return f.GSOTCPv6 }},
	{key: "feature-no-csum-offload", name: "csum-ipv4", inverted: true,
		set: func(f *FrontFeatures, v bool) { f.CsumIPv4 = v }, get: func(f *FrontFeatures) bool { return f.CsumIPv4 }},
	{key: "feature-ipv6-csum-offload", name: "csum-ipv6",
		set: func(f *FrontFeatures, v bool) { f.CsumIPv6 = v }, get: func(f *FrontFeatures) bool { return f.CsumIPv6 }},
	{key: "request-multicast-control", name: "multicast-control",
		set: func(f *FrontFeatures, v bool) { f.Mcast = v }, get: func(f *FrontFeatures) bool { return f.Mcast }},
}

// Names lists the features that are on, in the order of the table.
func (f FrontFeatures) Names() []string {
	var names []string
	for i := range frontFeatures {
		if frontFeatures[i].get(&f) {
			names = append(names, frontFeatures[i].name)
		}
	}
	return names
}

// published is a key of the backend's directory.
type published struct{ key, value string }

// backFeatures is what the backend publishes. Without vnet headers on the TAP
// nothing on the host could take a partial checksum or a packet to segment, so
// then none is asked for.
func backFeatures(maxQueues int, offload bool) []published {
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
	}
}

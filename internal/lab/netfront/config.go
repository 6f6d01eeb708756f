// SPDX-License-Identifier: Apache-2.0

package netfront

import "github.com/netbackd/netbackd/pkg/netif"

// DefaultDir is the frontend directory of a guest's first vif. Relative paths are those of
// the caller's own domain.
const DefaultDir = "device/vif/0"

// MaxQueues bounds the queues of one vif.
const MaxQueues = 64

// Features are the keys with which a frontend announces its features. All default to off,
// as an absent key does.
type Features struct {
	RxCopy           bool `json:"rx_copy,omitempty"`           // request-rx-copy: backends refuse a frontend without it
	RxNotify         bool `json:"rx_notify,omitempty"`         // feature-rx-notify: we send an event when we post buffers
	SG               bool `json:"sg,omitempty"`                // feature-sg: packets of several slots
	GSOTCPv4         bool `json:"gso_tcpv4,omitempty"`         // feature-gso-tcpv4
	GSOTCPv6         bool `json:"gso_tcpv6,omitempty"`         // feature-gso-tcpv6
	NoCsumOffload    bool `json:"no_csum_offload,omitempty"`   // feature-no-csum-offload: every IPv4 checksum must be finished
	IPv6CsumOffload  bool `json:"ipv6_csum_offload,omitempty"` // feature-ipv6-csum-offload: IPv6 checksums may be blank
	MulticastControl bool `json:"multicast_control,omitempty"` // request-multicast-control: only the multicast groups that we ask for
}

// AllFeatures returns the features that Linux's netfront asks for, without multicast control.
func AllFeatures() Features {
	return Features{RxCopy: true, RxNotify: true, SG: true, GSOTCPv4: true, GSOTCPv6: true, IPv6CsumOffload: true}
}

// keys lists the features by the names of their nodes.
func (f Features) keys() []featureKey {
	return []featureKey{
		{"request-rx-copy", f.RxCopy},
		{"feature-rx-notify", f.RxNotify},
		{"feature-sg", f.SG},
		{"feature-gso-tcpv4", f.GSOTCPv4},
		{"feature-gso-tcpv6", f.GSOTCPv6},
		{"feature-no-csum-offload", f.NoCsumOffload},
		{"feature-ipv6-csum-offload", f.IPv6CsumOffload},
		{"request-multicast-control", f.MulticastControl},
	}
}

type featureKey struct {
	name string
	on   bool
}

// Config is the configuration of a frontend.
type Config struct {
	// Dir is the frontend's directory in xenstore; empty means [DefaultDir].
	Dir string `json:"dir,omitempty"`

	// Queues is the number of queues to ask for, 0 meaning 1. The backend may allow
	// fewer.
	Queues int `json:"queues,omitempty"`

	// SplitEvents asks for an event channel for each ring instead of one for
	// each queue, if the backend can do that.
	SplitEvents bool `json:"split_events,omitempty"`

	Features Features `json:"features,omitzero"`

	// Control asks for a control ring, if the backend can do that.
	Control bool `json:"control,omitempty"`

	// XDPHeadroom asks for this many bytes before each packet, if the backend can do
	// that.
	XDPHeadroom uint16 `json:"xdp_headroom,omitempty"`

	// Stream makes the control ring one of byte streams, the protocol that was
	// proposed before the ring of slots.
	Stream bool `json:"stream,omitempty"`

	// Keys are further nodes to write below Dir when connecting, after all
	// others, so that a test can say anything about a device. An empty value
	// removes the node.
	Keys map[string]string `json:"keys,omitempty"`

	// TxPages and RxPages are the buffers of each queue. 0 means as many as its
	// ring has slots, but fewer where that would be too many for a domain whose
	// gntalloc has its default limit of 1024 pages.
	TxPages int `json:"tx_pages,omitempty"`
	RxPages int `json:"rx_pages,omitempty"`

	// MTU is the largest IP packet, in bytes, that the guest accepts without
	// segmentation offload. 0 means no check.
	MTU int `json:"mtu,omitempty"`

	// IDSalt is mixed into every request id, so that a backend cannot take the
	// number of a slot for the id of its request.
	IDSalt uint16 `json:"id_salt,omitempty"`

	// Strict makes the queues check every byte: checksums must match the flags,
	// and the backend may write no byte outside the data of a response. It costs
	// a pass over each page.
	Strict bool `json:"strict,omitempty"`
}

// withDefaults completes the config and bounds it.
func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	c.Queues = min(max(c.Queues, 1), MaxQueues)
	// 1000 leaves room for control ring and lists; two of each queue's pages
	// are rings.
	fair := (1000/c.Queues - 2) / 2
	c.TxPages = pages(c.TxPages, fair, netif.TxRingSize)
	c.RxPages = pages(c.RxPages, fair, netif.RxRingSize)
	return c
}

// pages returns the number of buffers for a ring: enough for one packet of the
// largest size, and no more than it has slots.
func pages(n, fair, slots int) int {
	if n <= 0 {
		n = fair
	}
	return min(max(n, maxSlots), slots)
}

// Offers holds the features that a backend has published.
type Offers struct {
	RxCopy          bool `json:"rx_copy,omitempty"`           // feature-rx-copy
	SG              bool `json:"sg,omitempty"`                // feature-sg
	GSOTCPv4        bool `json:"gso_tcpv4,omitempty"`         // feature-gso-tcpv4
	GSOTCPv6        bool `json:"gso_tcpv6,omitempty"`         // feature-gso-tcpv6
	NoCsumOffload   bool `json:"no_csum_offload,omitempty"`   // feature-no-csum-offload
	IPv6CsumOffload bool `json:"ipv6_csum_offload,omitempty"` // feature-ipv6-csum-offload
	Multicast       bool `json:"multicast,omitempty"`         // feature-multicast-control
	SplitEvents     bool `json:"split_events,omitempty"`      // feature-split-event-channels
	Control         bool `json:"control,omitempty"`           // feature-ctrl-ring
	Stream          bool `json:"stream,omitempty"`            // feature-control-ring
	XDPHeadroom     bool `json:"xdp_headroom,omitempty"`      // feature-xdp-headroom
	MaxQueues       int  `json:"max_queues,omitempty"`        // multi-queue-max-queues, 1 if absent
}

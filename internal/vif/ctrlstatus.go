// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/hex"
	"slices"

	"github.com/netbackd/netbackd/pkg/netif"
)

// ControlStatus is the control ring of a connected vif, and what its frontend has
// asked for.
type ControlStatus struct {
	Protocol  string   `json:"protocol,omitempty"` // slot or stream
	Error     string   `json:"error,omitempty"`    // why it is out of use
	Messages  uint64   `json:"messages"`           // since this daemon connected
	Refused   uint64   `json:"refused"`            // of those
	Algorithm string   `json:"hash_algorithm"`     // none or toeplitz
	Types     []string `json:"hash_types"`
	KeyOctets int      `json:"hash_key_octets"`
	Key       string   `json:"hash_key,omitempty"` // in hex
	Steering  string   `json:"steering"`           // what chooses the queue: hash, or host, and why
	Mapping   []uint16 `json:"hash_mapping"`       // queue by hash modulo length; empty: hash modulo queues
}

// show publishes what people may see.
func (c *control) show() {
	s := ControlStatus{
		Messages: c.stats.messages, Refused: c.stats.refused,
		Algorithm: "none", Types: typeNames(c.hash.now.types),
		KeyOctets: len(c.hash.now.key), Key: hex.EncodeToString(c.hash.now.key),
		Mapping:  c.hash.now.mapping.Table(),
		Steering: c.steer.by(),
	}
	if c.hash.now.algorithm == netif.HashAlgorithmToeplitz {
		s.Algorithm = "toeplitz"
	}
	if s.Mapping == nil {
		s.Mapping = []uint16{}
	}
	if c.protocol != 0 {
		s.Protocol = c.protocol.String()
	}
	if c.failed != nil {
		s.Error = c.failed.Error()
	}
	if was := c.shown.Load(); was == nil || !was.same(&s) {
		c.shown.Store(&s)
	}
}

func (s *ControlStatus) same(o *ControlStatus) bool {
	return s.Protocol == o.Protocol && s.Error == o.Error && s.Messages == o.Messages && s.Refused == o.Refused &&
		s.Algorithm == o.Algorithm && s.Steering == o.Steering && s.Key == o.Key &&
		slices.Equal(s.Types, o.Types) && slices.Equal(s.Mapping, o.Mapping)
}

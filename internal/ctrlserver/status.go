// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"encoding/hex"
	"slices"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Status describes the control ring of a connected vif, and its frontend's settings.
type Status struct {
	Protocol  string   `json:"protocol,omitempty"` // slot or stream
	Error     string   `json:"error,omitempty"`    // reason for which the ring is not served
	Messages  uint64   `json:"messages"`           // messages since this daemon connected
	Refused   uint64   `json:"refused"`            // messages among them that were refused
	Algorithm string   `json:"hash_algorithm"`     // none or toeplitz
	Types     []string `json:"hash_types"`
	KeyBytes  int      `json:"hash_key_octets"`
	Key       string   `json:"hash_key,omitempty"` // in hex
	Steering  string   `json:"steering"`           // see steering.by
	Mapping   []uint16 `json:"hash_mapping"`       // queue by hash modulo length; empty: hash modulo queues
}

// Status returns the status as of the last message. Any goroutine may call it.
func (s *Server) Status() *Status { return s.status.Load() }

// publishStatus updates the status that Status returns.
func (s *Server) publishStatus() {
	h := &s.hash.now
	now := Status{
		Messages: s.messages, Refused: s.refused,
		Algorithm: "none", Types: typeNames(uint32(h.config.Types)),
		KeyBytes: len(h.key), Key: hex.EncodeToString(h.key),
		Mapping:  h.config.Mapping.Table(),
		Steering: s.steer.by(),
	}
	if h.algorithm == netif.HashAlgorithmToeplitz {
		now.Algorithm = "toeplitz"
	}
	if now.Mapping == nil {
		now.Mapping = []uint16{}
	}
	if s.protocol != 0 {
		now.Protocol = s.protocol.String()
	}
	if s.failed != nil {
		now.Error = s.failed.Error()
	}
	if was := s.status.Load(); was == nil || !was.equal(&now) {
		s.status.Store(&now)
	}
}

func (s *Status) equal(o *Status) bool {
	return s.Protocol == o.Protocol && s.Error == o.Error && s.Messages == o.Messages && s.Refused == o.Refused &&
		s.Algorithm == o.Algorithm && s.Steering == o.Steering && s.Key == o.Key &&
		slices.Equal(s.Types, o.Types) && slices.Equal(s.Mapping, o.Mapping)
}

// typeNames returns the names of the hash types in a mask.
func typeNames(types uint32) []string {
	names := []string{}
	for i, name := range [...]string{"ipv4", "ipv4-tcp", "ipv6", "ipv6-tcp"} {
		if types&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// Hash is what a guest wants to know of the packets it is sent: the Toeplitz
// hash of those that are of one of its types. It does not change; a nil Hash
// hashes nothing.
type Hash struct {
	Hasher *toeplitz.Hasher
	Types  toeplitz.Types
}

// of is the hash of a frame, if it has one.
func (h *Hash) of(frame []byte) (info netif.HashInfo, ok bool) {
	if h == nil {
		return info, false
	}
	var t toeplitz.Tuple
	if !t.Extract(frame, h.Types) {
		return info, false
	}
	return netif.HashInfo{
		Type: uint8(t.Type()), Algorithm: netif.HashAlgorithmToeplitz,
		Value: h.Hasher.Hash(t.Input()),
	}, true
}

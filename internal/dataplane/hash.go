// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// hashOf returns the hash that a guest is told of a frame, and reports whether there is
// one: c is not nil, and the frame is of one of its types. The mapping of c does not matter.
func hashOf(c *steer.Config, frame []byte) (info netif.HashInfo, ok bool) {
	if c == nil {
		return info, false
	}
	var t toeplitz.Tuple
	if !t.Extract(frame, c.Types) {
		return info, false
	}
	return netif.HashInfo{
		Type: uint8(t.Type()), Algorithm: netif.HashAlgorithmToeplitz,
		Value: c.Hasher.Hash(t.Input()),
	}, true
}

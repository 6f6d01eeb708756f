// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// hashOf returns the hash of a frame for the guest's hash extra. ok is false if c is nil
// or the frame has none of the types of c. The mapping of c does not matter.
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

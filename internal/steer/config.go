// SPDX-License-Identifier: Apache-2.0

package steer

import "github.com/netbackd/netbackd/pkg/toeplitz"

// Config chooses a queue for each frame. It must not change while it is in use. Its
// zero value has one queue.
type Config struct {
	// Types are the enabled hash types. Without any, as after a guest turned
	// hashing off, no frame has a hash.
	Types toeplitz.Types
	// Hasher has the key; nil is the empty key, with which each hash is 0.
	Hasher *toeplitz.Hasher
	// Mapping maps hashes to queues. A frame without a hash goes to the queue of
	// hash 0.
	Mapping toeplitz.Mapping
}

// Choice is the queue chosen for a frame, and its hash.
type Choice struct {
	// Queue is less than Mapping.Queues.
	Queue int
	// Hash is the frame's hash, of type Type, if Hashed is set; otherwise both
	// are 0.
	Hash   uint32
	Type   toeplitz.Type
	Hashed bool
}

// Choose returns the choice for an Ethernet frame, as it is read from a TAP but without
// its vnet header. It chooses the same queue as [Program] does in the kernel, and serves
// where the kernel has no program. It does not allocate.
func (c *Config) Choose(frame []byte) (choice Choice) {
	var tuple toeplitz.Tuple
	if tuple.Extract(frame, c.Types) {
		choice.Hashed, choice.Type = true, tuple.Type()
		if c.Hasher != nil {
			choice.Hash = c.Hasher.Hash(tuple.Input())
		}
	}
	choice.Queue = c.Mapping.Queue(choice.Hash)
	return choice
}

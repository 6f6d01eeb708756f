// SPDX-License-Identifier: Apache-2.0

package steer

import "github.com/netbackd/netbackd/pkg/toeplitz"

// Config says which queue each frame goes to. It does not change while it is in
// use; whoever wants another makes another. Its zero value has one queue.
type Config struct {
	// Types are the enabled hash types. Without any, as after a guest has
	// turned hashing off, all frames go where those without a hash go.
	Types toeplitz.Types
	// Hasher has the key; nil is the empty key, with which each hash is 0.
	Hasher *toeplitz.Hasher
	// Mapping turns hashes into queues. Frames without a hash go where hash 0
	// goes.
	Mapping toeplitz.Mapping
}

// Choice is what there is to know of a frame on its way to a guest.
type Choice struct {
	// Queue is the queue, less than Mapping.Queues.
	Queue int
	// Hash is the frame's hash, of type Type, if it has one; else both are 0.
	Hash   uint32
	Type   toeplitz.Type
	Hashed bool
}

// Choose is the choice for an Ethernet frame, as it is read from a TAP but without
// its vnet header. The queue is that of [Program], whose twin this is: it serves
// where there is no program, and where a guest wants to be told the hash, which a
// program cannot hand on. It allocates nothing.
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

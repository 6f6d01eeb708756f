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
func (c *Config) Choose(frame []byte) Choice {
	var tuple toeplitz.Tuple
	hashed := tuple.Extract(frame, c.Types)
	return c.choose(&tuple, hashed)
}

// ChooseBatch is Choose for each of a batch of frames. choices has room for all.
func (c *Config) ChooseBatch(frames [][]byte, choices []Choice) {
	choices = choices[:len(frames)]
	// First all headers, then all hashes: a hash that reads what has just been
	// written octet by octet waits for that.
	var tuples [16]toeplitz.Tuple
	for len(frames) > 0 {
		n := min(len(frames), len(tuples))
		for i, frame := range frames[:n] {
			choices[i].Hashed = tuples[i].Extract(frame, c.Types)
		}
		for i := range frames[:n] {
			choices[i] = c.choose(&tuples[i], choices[i].Hashed)
		}
		frames, choices = frames[n:], choices[n:]
	}
}

func (c *Config) choose(tuple *toeplitz.Tuple, hashed bool) (choice Choice) {
	if hashed {
		choice.Hashed, choice.Type = true, tuple.Type()
		if c.Hasher != nil {
			choice.Hash = c.Hasher.Hash(tuple.Input())
		}
	}
	choice.Queue = c.Mapping.Queue(choice.Hash)
	return choice
}

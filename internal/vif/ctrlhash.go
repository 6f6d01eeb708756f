// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"slices"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// hashing is how a frontend wants packets hashed and spread. Its zero value, with
// a mapping of as many queues as there are, is where every connection begins.
type hashing struct {
	algorithm uint32
	types     uint32
	key       []byte // as set, without the zeros that make it whole
	mapping   toeplitz.Mapping
}

// on is whether packets are hashed at all.
func (h *hashing) on() bool {
	return h.algorithm == netif.HashAlgorithmToeplitz && h.types != 0
}

// hashHandler carries out what a frontend wants of hashing. Each change is made
// on a copy, which takes the place of what was in force once the data path has
// taken it: what fails changes nothing.
type hashHandler struct {
	now hashing

	// install makes the data path follow. Packets that are delivered after it
	// has returned follow what it was given.
	install func(next *hashing) error
}

var _ ctrlring.HashHandler = (*hashHandler)(nil)

// change makes a change, unless f refuses it.
func (h *hashHandler) change(f func(next *hashing) bool) netif.CtrlStatus {
	next := h.now
	if !f(&next) || h.install(&next) != nil {
		return netif.CtrlInvalidParameter
	}
	h.now = next
	return netif.CtrlSuccess
}

// GetHashFlags implements [ctrlring.HashHandler].
func (h *hashHandler) GetHashFlags() (uint32, netif.CtrlStatus) {
	if h.now.algorithm == netif.HashAlgorithmNone {
		return 0, netif.CtrlNotSupported
	}
	return uint32(toeplitz.AllTypes), netif.CtrlSuccess
}

// SetHashFlags implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashFlags(types uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool {
		next.types = types
		return next.algorithm != netif.HashAlgorithmNone && types&^uint32(toeplitz.AllTypes) == 0
	})
}

// SetHashKey implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashKey(key []byte) netif.CtrlStatus {
	if len(key) > toeplitz.MaxKey {
		return netif.CtrlBufferOverflow
	}
	return h.change(func(next *hashing) bool { next.key = slices.Clone(key); return true })
}

// GetHashMappingSize implements [ctrlring.HashHandler].
func (h *hashHandler) GetHashMappingSize() (uint32, netif.CtrlStatus) {
	return toeplitz.MaxMapping, netif.CtrlSuccess
}

// SetHashMappingSize implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashMappingSize(entries uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool { return next.mapping.SetSize(entries) == nil })
}

// SetHashMapping implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashMapping(offset uint32, queues []uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool { return next.mapping.Set(offset, queues) == nil })
}

// ReplaceHashMapping implements [ctrlring.HashHandler].
func (h *hashHandler) ReplaceHashMapping(queues []uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool {
		return next.mapping.SetSize(uint32(len(queues))) == nil && next.mapping.Set(0, queues) == nil
	})
}

// SetHashAlgorithm implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashAlgorithm(algorithm uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool {
		next.algorithm = algorithm
		return algorithm == netif.HashAlgorithmNone || algorithm == netif.HashAlgorithmToeplitz
	})
}

// forPackets is what packets to the guest carry. Only the slot ring's protocol
// says how a hash is told.
func (h *hashing) forPackets(p ctrlring.Protocol) (*dataplane.Hash, error) {
	if p != ctrlring.Slot || !h.on() {
		return nil, nil
	}
	hasher, err := toeplitz.New(h.key)
	if err != nil {
		return nil, err
	}
	return &dataplane.Hash{Hasher: hasher, Types: toeplitz.Types(h.types)}, nil
}

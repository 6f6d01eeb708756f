// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"bytes"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// hashing holds a frontend's settings for hashing packets and for mapping hashes to queues.
type hashing struct {
	algorithm uint32
	key       []byte       // as set, without padding zeros
	config    steer.Config // types, key and mapping, in the form of the data path
}

// newHashing returns the settings at the start of a connection.
func newHashing(queues int) hashing {
	hasher, _ := toeplitz.New(nil) // no key is too long
	return hashing{config: steer.Config{Hasher: hasher, Mapping: toeplitz.NewMapping(queues)}}
}

// on reports whether packets are hashed.
func (h *hashing) on() bool {
	return h.algorithm == netif.HashAlgorithmToeplitz && h.config.Types != 0
}

// samePackets reports whether packets carry the same hash with both settings.
func (h *hashing) samePackets(o *hashing) bool {
	return h.algorithm == o.algorithm && h.config.Types == o.config.Types && h.config.Hasher == o.config.Hasher
}

// packetHash returns the configuration of the hash that packets to the guest carry, or nil
// if they carry none. Only the protocol of the slot ring defines a hash extra.
func (h *hashing) packetHash(p ctrlring.Protocol) *steer.Config {
	if p != ctrlring.Slot {
		return nil
	}
	return h.steering()
}

// steering returns the configuration for steering packets, or nil if the host chooses their
// queues.
func (h *hashing) steering() *steer.Config {
	if !h.on() {
		return nil
	}
	c := h.config
	return &c
}

// setKey sets a key, which has at most toeplitz.MaxKey bytes. If the key is the same, it
// keeps the hasher.
func (h *hashing) setKey(key []byte) error {
	if bytes.Equal(key, h.key) {
		return nil
	}
	hasher, err := toeplitz.New(key)
	if err != nil {
		return err
	}
	h.key, h.config.Hasher = bytes.Clone(key), hasher
	return nil
}

// setTable replaces the mapping table.
func (h *hashing) setTable(queues []uint32) error {
	if err := h.config.Mapping.SetSize(uint32(len(queues))); err != nil {
		return err
	}
	return h.config.Mapping.Set(0, queues)
}

// record returns a record of the settings.
func (h *hashing) record() *record {
	r := &record{algorithm: h.algorithm, types: uint32(h.config.Types), key: h.key}
	for _, q := range h.config.Mapping.Table() {
		r.table = append(r.table, uint32(q))
	}
	return r
}

// restore takes the settings from a record.
func (h *hashing) restore(r *record) error {
	h.algorithm, h.config.Types = r.algorithm, toeplitz.Types(r.types)&toeplitz.AllTypes
	if err := h.setKey(r.key); err != nil {
		return err
	}
	return h.setTable(r.table)
}

// hashHandler carries out the messages about hashing. It makes each change on a copy of the
// settings, which replaces them once the data path has accepted it. So a failed change has
// no effect.
type hashHandler struct {
	now     hashing
	install func(was, next *hashing) error // makes the data path follow next
}

var _ ctrlring.HashHandler = (*hashHandler)(nil)

func newHashHandler(queues int) hashHandler {
	return hashHandler{now: newHashing(queues), install: func(_, _ *hashing) error { return nil }}
}

// change changes the settings, unless edit returns false or the data path fails.
func (h *hashHandler) change(edit func(next *hashing) bool) netif.CtrlStatus {
	next := h.now
	if !edit(&next) || h.install(&h.now, &next) != nil {
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
		next.config.Types = toeplitz.Types(types)
		return next.algorithm != netif.HashAlgorithmNone && next.config.Types&^toeplitz.AllTypes == 0
	})
}

// SetHashKey implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashKey(key []byte) netif.CtrlStatus {
	if len(key) > toeplitz.MaxKey {
		return netif.CtrlBufferOverflow
	}
	return h.change(func(next *hashing) bool { return next.setKey(key) == nil })
}

// GetHashMappingSize implements [ctrlring.HashHandler].
func (h *hashHandler) GetHashMappingSize() (uint32, netif.CtrlStatus) {
	return toeplitz.MaxMapping, netif.CtrlSuccess
}

// SetHashMappingSize implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashMappingSize(entries uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool { return next.config.Mapping.SetSize(entries) == nil })
}

// SetHashMapping implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashMapping(offset uint32, queues []uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool { return next.config.Mapping.Set(offset, queues) == nil })
}

// ReplaceHashMapping implements [ctrlring.HashHandler].
func (h *hashHandler) ReplaceHashMapping(queues []uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool { return next.setTable(queues) == nil })
}

// SetHashAlgorithm implements [ctrlring.HashHandler].
func (h *hashHandler) SetHashAlgorithm(algorithm uint32) netif.CtrlStatus {
	return h.change(func(next *hashing) bool {
		next.algorithm = algorithm
		return algorithm == netif.HashAlgorithmNone || algorithm == netif.HashAlgorithmToeplitz
	})
}

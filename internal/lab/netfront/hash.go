// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/binary"
	"slices"

	"github.com/netbackd/netbackd/pkg/netif"
)

// expected is the hashing that a backend has confirmed, against which a queue checks
// packets.
type expected struct {
	hash   Hash
	queues int
	from   netif.Index // the first response that must follow
	known  bool
}

// ExpectHash checks hashes against h from the next packet on. It checks none if h is nil:
// during a change, and before hashing is configured. queues is the device's number of
// queues. Packets that are published already may have an earlier hash.
func (q *Queue) ExpectHash(h *Hash, queues int) {
	q.expected = expected{}
	if h == nil {
		return
	}
	q.expected = expected{
		hash:   Hash{h.Types, slices.Clone(h.Key), slices.Clone(h.Mapping)},
		queues: queues,
		from:   q.rx.ring.State().RspProd,
		known:  true,
	}
}

// checkPacketHash checks a packet's hash. A packet on another queue than its hash selects
// is only counted: the host may have steered it before the guest's last change.
func (q *Queue) checkPacketHash(p *Packet, head []byte) {
	x := &q.expected
	if !x.known || int32(p.start-x.from) < 0 || p.hdr.tagged {
		return // netif.h does not define the hash of a tagged frame
	}
	typ, hash, ok := x.hash.of(&p.hdr, head)
	got := p.Meta.Hash
	switch {
	case p.Meta.Hashed != ok:
		q.violate(RuleHash, "rx", p.start, "hashed: %t, want %t", p.Meta.Hashed, ok)
	case ok && (got.Type != typ || got.Value != hash):
		q.violate(RuleHash, "rx", p.start, "type %d, %#08x, want type %d, %#08x", got.Type, got.Value, typ, hash)
	}
	if x.hash.Types != 0 && x.hash.queue(hash, x.queues) != q.index {
		q.stats.RxAstray++
	}
}

// queue returns the queue that a hash selects. A packet without a hash has hash 0.
func (h *Hash) queue(hash uint32, queues int) int {
	if n := len(h.Mapping); n > 0 {
		return int(h.Mapping[hash%uint32(n)])
	}
	return int(hash % uint32(queues))
}

// of returns the hash of a packet, of the most specific type that the guest enabled.
func (h *Hash) of(hd *headers, b []byte) (typ uint8, hash uint32, ok bool) {
	var from, to int
	switch {
	case hd.v4:
		typ, from, to = netif.HashIPv4, hd.l3+12, hd.l3+20
	case hd.v6:
		typ, from, to = netif.HashIPv6, hd.l3+8, hd.l3+40
	default:
		return 0, 0, false
	}
	var tuple [36]byte
	input := append(tuple[:0], b[from:to]...)
	ports := hd.proto == protoTCP && !hd.frag && hd.l4 > 0 && hd.l4+4 <= len(b)
	switch {
	case ports && h.Types&(1<<(typ+1)) != 0:
		typ++
		input = append(input, b[hd.l4:hd.l4+4]...)
	case h.Types&(1<<typ) == 0:
		return 0, 0, false
	}
	return typ, toeplitz(h.Key, input), true
}

// toeplitz computes the hash as netif.h describes it: the XOR of the 32 key bits at each
// set bit of the input. It does not use the backend's code, so that both cannot share an
// error.
func toeplitz(key, input []byte) (hash uint32) {
	var k [36 + 8]byte
	copy(k[:], key)
	window := binary.BigEndian.Uint64(k[:]) // the upper half is used, the lower half follows
	for i, b := range input {
		for bit := range 8 {
			if b<<bit&0x80 != 0 {
				hash ^= uint32(window >> 32)
			}
			window <<= 1
		}
		window |= uint64(k[i+8])
	}
	return hash
}

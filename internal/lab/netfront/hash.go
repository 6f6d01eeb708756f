// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"encoding/binary"
	"slices"

	"github.com/netbackd/netbackd/pkg/netif"
)

// expected is the hashing that a backend has confirmed, for a queue to hold it to.
type expected struct {
	hash   Hash
	queues int
	from   netif.Index // the first response that must follow
	known  bool
}

// ExpectHash holds the backend to h from the next packet on, or to nothing if h is
// nil: while a change is under way, and as long as nothing was asked for. queues is
// how many the device has. What is published already may be of an earlier hash.
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

// judgeHash holds a packet's hash to the packet. Its queue is counted only: a
// packet that the host has sent on its way before the guest's last change arrives
// where that was.
func (q *Queue) judgeHash(p *Packet, head []byte) {
	x := &q.expected
	if !x.known || int32(p.start-x.from) < 0 || p.hdr.tagged {
		return // netif.h does not say what the hash of a tagged frame is
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

// of returns the hash of a packet, of the most specific type there is.
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

// toeplitz returns the hash as netif.h words it: for each bit of the input that is set,
// the 32 bits of the key from there on. The backend's is another one: a judge must
// not share its errors.
func toeplitz(key, input []byte) (hash uint32) {
	var k [36 + 8]byte
	copy(k[:], key)
	window := binary.BigEndian.Uint64(k[:]) // of which the upper half counts, the other follows
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

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// A guest without segmentation offload sends the data of a connection in many packets of
// the size of its MTU. Each of them costs the host a pass through its stack. So packets of
// one flow in a batch are merged to one GSO packet for the TAP, as Linux's GRO does with
// packets that a device receives; [offload.Merger] has the rules. The host
// segments it again if its way goes on to an interface that takes no GSO packets.
//
// A merged packet takes the place of its first one. So the packets of a flow stay in order,
// and those of different flows may change places within a batch, as with GRO. Nothing waits
// for a later batch.
//
// Each packet stays one of its own for the rest of the pass: for the rate limit, the
// segments of a turn, the counters and the responses.
const (
	// A flow whose packets could not be merged for gateMisses times in a row is let pass
	// without a look at its headers, gatePause times. Flows share the entries of a table by
	// a hash.
	gateBits   = 6
	gateMisses = 3
	gatePause  = 120

	// After vainBatches batches in a row in which nothing was merged, all but one of
	// vainBatches are not looked at.
	vainBatches = 8

	// The owner of a connection is told that packets are merged, or that this is paused, at
	// most this often.
	coalescingEvery = time.Second
	pausedEvery     = 5 * time.Second

	// flowBytes is the length of a packet up to which flowKey looks at it.
	flowBytes = 14 + 2*4 + 40 + 4
)

// Coalesce says which packets from the guest are merged for the TAP.
type Coalesce uint8

// Values of Coalesce. The host takes datagrams since Linux 6.2.
const (
	CoalesceOff Coalesce = iota
	CoalesceTCP
	CoalesceAll // TCP and UDP
)

func (c Coalesce) String() string {
	switch c {
	case CoalesceOff:
		return "off"
	case CoalesceTCP:
		return "TCP"
	}
	return "TCP and UDP"
}

// CoalesceIf returns the value for a host that takes datagrams for segmentation, or not.
func CoalesceIf(on, uso bool) Coalesce {
	switch {
	case !on:
		return CoalesceOff
	case uso:
		return CoalesceAll
	}
	return CoalesceTCP
}

// coalescer is the part of a queue that merges its packets. It belongs to the worker.
type coalescer struct {
	what   Coalesce
	paused bool
	told   time.Time // time of the last notice

	vain uint8 // number of batches in a row in which nothing was merged, up to vainBatches
	skip uint8 // number of batches that are not looked at
	gate [1 << gateBits]gate
}

// looks reports whether a batch is worth a look.
func (c *coalescer) looks() bool {
	if c.skip > 0 {
		c.skip--
		return false
	}
	return true
}

// looked notes the number of packets of a batch that were merged with others.
func (c *coalescer) looked(merged int) {
	switch {
	case merged > 0:
		c.vain = 0
	case c.vain < vainBatches:
		c.vain++
	default:
		c.skip = vainBatches - 1
	}
}

// gate counts what was tried in vain with the flows of one hash, up to gateMisses, and then
// what passed without a try.
type gate uint8

// open reports whether the headers of a flow's packets are worth a look.
func (g *gate) open() bool {
	if *g < gateMisses {
		return true
	}
	if *g++; *g < gateMisses+gatePause {
		return false
	}
	*g = gateMisses - 1 // another miss closes it again
	return true
}

// missed notes a packet that could not be merged with the next one.
func (g *gate) missed() { *g++ }

// mergeFlows is the number of entries for flows whose packets are merged at the same time.
// A guest's scheduler of packets (fq_codel) sends those of busy flows in turn.
const mergeFlows = 16

// merges holds the packets of a batch that others may be merged with: for each hash of
// flows the last one, or what it was merged to. It belongs to a worker.
type merges struct {
	keys [mergeFlows]uint64 // 0: free
	open [mergeFlows]openMerge
}

// openMerge is a packet of a batch, and what was merged with it.
type openMerge struct {
	first, last uint8 // in txBatch.pkts
	pieces      int   // of all of it, for writev
	merger      offload.Merger
}

// flowHash returns gateBits bits of a flow's key.
func flowHash(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 >> (64 - gateBits) }

// coalesce merges packets of a batch whose headers are in the tx arena, and returns the
// number of packets that are left to be written. The first packet of several has their
// number less one in txPacket.more, the next one in txPacket.next, and its vnet header in
// front of it; the others have the drop reason coalesced. w.pullAt is set.
func (w *worker) coalesce(q *Queue, b *txBatch) (writes int) {
	writes = b.nPkts
	if q.coalescer.what == CoalesceOff || q.vnetLen == 0 || writes < 2 || !q.coalescer.looks() {
		return writes
	}
	if q.coalescer.paused {
		w.tellCoalescing(q, pausedEvery)
		return writes
	}
	t := &w.merges
	t.keys = [mergeFlows]uint64{} // a pass that panicked may have left some
	for i := range b.pkts[:b.nPkts] {
		p := &b.pkts[i]
		if p.at == inPlace && p.drop == notDropped && p.gso.Type == netif.GSONone {
			w.pullUp(q, b, p)
		}
		key := w.flowKey(q, p)
		if key == 0 {
			w.endMerges(b) // it may be of any flow, and must not be overtaken
			continue
		}
		hash := flowHash(key)
		k := hash % mergeFlows
		o := &t.open[k]
		if t.keys[k] == key && w.tryMerge(q, b, o, i, &q.coalescer.gate[hash]) {
			writes--
			continue
		}
		if t.keys[k] != 0 {
			w.endMerge(b, o)
		}
		t.keys[k], o.first, o.last, o.pieces = key, uint8(i), uint8(i), w.piecesOf(q, p)
	}
	w.endMerges(b)
	q.coalescer.looked(b.nPkts - writes)
	if writes < b.nPkts {
		w.tellCoalescing(q, coalescingEvery)
	}
	return writes
}

// tellCoalescing notifies the owner of the connection, unless it was notified within the
// time every.
func (w *worker) tellCoalescing(q *Queue, every time.Duration) {
	if now := w.time(); now.Sub(q.coalescer.told) >= every {
		q.coalescer.told = now
		q.conn.cfg.Notice(Notice{Kind: Coalescing, Queue: q.index})
	}
}

// tryMerge merges packet i of a batch with o, of the same flow, if that is possible.
func (w *worker) tryMerge(q *Queue, b *txBatch, o *openMerge, i int, g *gate) bool {
	first, p := &b.pkts[o.first], &b.pkts[i]
	pieces := o.pieces + w.piecesOf(q, p)
	if p.total > first.total || pieces > mergedPieces {
		return false
	}
	if first.more == 0 {
		if !g.open() {
			return false
		}
		if !o.merger.Start(w.head(first), int(first.total), w.csumOf(q, first)) || o.merger.UDP() && q.coalescer.what != CoalesceAll ||
			!o.merger.Add(w.head(p), int(p.total), w.csumOf(q, p)) {
			g.missed()
			return false
		}
		*g = 0
	} else if !o.merger.Add(w.head(p), int(p.total), w.csumOf(q, p)) {
		return false
	}
	first.more++
	b.pkts[o.last].next = uint8(i)
	o.last, o.pieces = uint8(i), pieces
	p.drop = coalesced
	return true
}

// endMerge makes the headers of packets that were merged.
func (w *worker) endMerge(b *txBatch, o *openMerge) {
	p := &b.pkts[o.first]
	if p.more == 0 {
		return
	}
	p.headers = uint8(o.merger.Header())
	hdr := o.merger.Finish()
	hdr.Encode(w.txMem.mem[int(p.at)-tap.VnetHdrLen : p.at])
}

// endMerges does so for all that are open.
func (w *worker) endMerges(b *txBatch) {
	t := &w.merges
	for k := range t.keys {
		if t.keys[k] != 0 {
			w.endMerge(b, &t.open[k])
			t.keys[k] = 0
		}
	}
}

// flowKey returns a number that packets of one flow have in common and packets of other
// flows hardly ever, without a look at anything else of the headers. It is 0 if the packet
// cannot be merged in any case.
func (w *worker) flowKey(q *Queue, p *txPacket) uint64 {
	if p.drop != notDropped || p.gso.Type != netif.GSONone || p.at == inPlace {
		return 0
	}
	f := w.txMem.mem[p.at : p.at+flowBytes] // what is behind a shorter packet is checked later
	if q.virt != nil {
		if flags, gso := tap.VnetKind(w.txMem.mem[int(p.at)-q.virt.hdrLen:]); gso != tap.VnetGSONone || flags&tap.VnetNeedsCsum != 0 && q.virt.features&virtCsum == 0 {
			return 0
		}
	}
	typ := binary.LittleEndian.Uint16(f[12:])
	if typ == etherIPv4 { // as most are
		return binary.LittleEndian.Uint64(f[30:]) // destination and ports
	}
	off := 0
	for off < 2*4 && (typ == etherVLAN || typ == etherProviderVLAN) {
		off += 4
		typ = binary.LittleEndian.Uint16(f[12+off:])
	}
	switch typ {
	case etherIPv4:
		return binary.LittleEndian.Uint64(f[30+off:])
	case etherIPv6:
		return binary.LittleEndian.Uint64(f[46+off:]) ^ uint64(binary.LittleEndian.Uint32(f[54+off:]))<<16
	}
	return 0
}

// Ethernet types as a little-endian load reads them.
const (
	etherIPv4         = 0x0008
	etherIPv6         = 0xdd86
	etherVLAN         = 0x0081
	etherProviderVLAN = 0xa888
)

// head returns the first bytes of a packet, which are in the tx arena: all of them, if it is
// there in one piece.
func (w *worker) head(p *txPacket) []byte { return w.txMem.mem[p.at : p.at+p.linear] }

// csumOf returns what the guest says about the checksum of a packet.
func (w *worker) csumOf(q *Queue, p *txPacket) offload.Csum {
	if q.virt == nil {
		return offload.Csum{Partial: p.flags&netif.TxCsumBlank != 0}
	}
	var v tap.VnetHdr
	v.Decode(w.txMem.mem[int(p.at)-q.virt.hdrLen:])
	if v.Flags&tap.VnetNeedsCsum == 0 {
		return offload.Csum{}
	}
	return offload.Csum{Partial: true, Start: max(v.CsumStart, 1), Offset: v.CsumOffset}
}

// mergedPieces is the maximum of the pieces of a merged packet. w.uring.iov has room for
// those of all packets of a vif's batch, whose slots are fewer, and vtxWrite sees to it that
// it has room for this many.
const mergedPieces = vtxMostPieces

// piecesOf returns the maximum of the pieces of a packet, its vnet header included.
func (w *worker) piecesOf(q *Queue, p *txPacket) int {
	switch {
	case uint32(p.linear) == p.total:
		return 1
	case q.virt != nil:
		return len(w.virt.tx.Readable(int(p.first))) + 1
	}
	return int(p.n) + 1
}

// writeMerged writes packet i of a batch together with those that were merged with it. It
// lists them in w.uring.iov from first on, and returns the number of pieces.
func (w *worker) writeMerged(q *Queue, b *txBatch, i, first int) (n int) {
	p := &b.pkts[i]
	w.tally[TxMerged]++
	w.tally[TxCoalesced] += uint32(p.more) + 1
	front, skip := tap.VnetHdrLen, -int(p.headers) // of the others, without the headers
	more := int(p.more)
	for k := 0; ; k++ {
		switch {
		case uint32(p.linear) == p.total:
			w.uring.iov.Set(first+n, w.txMem.addr(int(p.at)-front), uint32(int(p.linear)+front))
			n++
		case q.virt != nil:
			n += w.vtxPieces(q, p, w.virt.tx.Readable(int(p.first)), first+n, front)
		default:
			n += w.pieces(b, p, first+n, front)
		}
		if k == more {
			break
		}
		p, front = &b.pkts[p.next], skip
	}
	w.out.writev(i, first, n)
	w.out.joined += more
	return n
}

// doneMerged is done for packet i of the batch and those that were merged with it.
func (o *tapWriter) doneMerged(b *txBatch, i int, e unix.Errno) {
	p := &b.pkts[i]
	if e == unix.EINVAL && p.more != 0 {
		o.refused(p)
	}
	o.done(p, e)
	for range p.more {
		next := &b.pkts[p.next]
		o.done(next, e)
		p = next
	}
}

// refused stops the merging of datagrams if the TAP does not take them, although the kernel
// should. The others are lost once.
func (o *tapWriter) refused(p *txPacket) {
	if _, gso := tap.VnetKind(o.w.txMem.mem[p.at-tap.VnetHdrLen:]); gso == tap.VnetGSOUDP {
		o.q.coalescer.what = CoalesceTCP
	}
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// A guest without segmentation offload sends the data of a connection in many packets of
// the size of its MTU. Each of them costs the host a pass through its stack. So packets of
// one flow that follow each other in a batch are merged to one GSO packet for the TAP, as
// Linux's GRO does with what a device receives; [offload.Merger] has the rules. The host
// segments it again if its way goes on to an interface that takes no GSO packets.
//
// Only neighbours are merged, and nothing waits for a later batch. So all packets of the
// vif stay in order, and none is delayed.
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
	what Coalesce
	gate [1 << gateBits]gate
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

// coalesce merges packets of a batch whose data is in the tx arena, in one piece each, and
// returns the number of packets that are left to be written. The first packet of several
// has the number of those that follow in txPacket.more and its vnet header in front of it;
// the others have the drop reason coalesced.
func (w *worker) coalesce(q *Queue, b *txBatch) (writes int) {
	n := b.nPkts
	if q.coalescer.what == CoalesceOff || q.vnetLen == 0 || n < 2 {
		return n
	}
	writes = n
	pkts := b.pkts[:n]
	key := w.flowKey(q, &pkts[0])
	for i := 0; i+1 < n; {
		first := i
		was := key
		i++
		if key = w.flowKey(q, &pkts[i]); key != was || key == 0 || pkts[i].total > pkts[first].total {
			continue
		}
		g := &q.coalescer.gate[key*0x9e3779b97f4a7c15>>(64-gateBits)]
		if !g.open() {
			continue
		}
		more := w.mergeFrom(q, pkts[first:])
		if more == 0 {
			g.missed()
			continue
		}
		*g = 0
		writes -= more
		if i = first + more + 1; i < n {
			key = w.flowKey(q, &pkts[i])
		}
	}
	return writes
}

// flowKey returns a number that packets of one flow have in common and packets of other
// flows hardly ever, without a look at anything else of the headers. It is 0 if the packet
// cannot be merged in any case.
func (w *worker) flowKey(q *Queue, p *txPacket) uint64 {
	if p.drop != notDropped || p.gso.Type != netif.GSONone || uint32(p.linear) != p.total || p.at == inPlace {
		return 0
	}
	f := w.txMem.mem[p.at : p.at+flowBytes] // what is behind a shorter packet is checked later
	if q.virt != nil {
		if flags, gso := tap.VnetKind(w.txMem.mem[int(p.at)-q.virt.hdrLen:]); gso != tap.VnetGSONone || flags&tap.VnetNeedsCsum != 0 && q.virt.features&virtCsum == 0 {
			return 0
		}
	}
	switch binary.LittleEndian.Uint16(f[12:]) {
	case etherIPv4:
		return binary.LittleEndian.Uint64(f[30:]) // destination and ports
	case etherIPv6:
		return binary.LittleEndian.Uint64(f[46:]) ^ uint64(binary.LittleEndian.Uint32(f[54:]))<<16
	case etherVLAN, etherProviderVLAN:
		return binary.LittleEndian.Uint64(f[34:]) ^ binary.LittleEndian.Uint64(f[54:])
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

// mergeFrom merges the first of pkts with as many others as possible, and returns their
// number.
func (w *worker) mergeFrom(q *Queue, pkts []txPacket) (more int) {
	m := &w.merger
	p := &pkts[0]
	if !m.Start(w.frame(p), w.csumOf(q, p)) || m.UDP() && q.coalescer.what != CoalesceAll {
		return 0
	}
	for i := 1; i < len(pkts); i++ {
		s := &pkts[i]
		if w.flowKey(q, s) == 0 || !m.Add(w.frame(s), w.csumOf(q, s)) {
			break
		}
		s.drop = coalesced
		more++
	}
	if more == 0 {
		return 0
	}
	hdr := m.Finish()
	hdr.Encode(w.txMem.mem[int(p.at)-tap.VnetHdrLen : p.at])
	p.more, p.headers = uint8(more), uint8(m.Header())
	w.tally[TxMerged]++
	w.tally[TxCoalesced] += uint32(more + 1)
	return more
}

// frame returns a packet that is in the tx arena in one piece.
func (w *worker) frame(p *txPacket) []byte { return w.txMem.mem[p.at : p.at+p.linear] }

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

// writeMerged writes packet i of a batch together with those that were merged with it. It
// lists them in w.uring.iov from first on, and returns the number of pieces.
func (w *worker) writeMerged(b *txBatch, i, first int) (n int) {
	p := &b.pkts[i]
	w.uring.iov.Set(first, w.txMem.addr(int(p.at)-tap.VnetHdrLen), uint32(tap.VnetHdrLen+p.linear))
	skip := int32(p.headers)
	more := b.pkts[i+1 : i+1+int(p.more)]
	for k := range more {
		s := &more[k]
		w.uring.iov.Set(first+1+k, w.txMem.addr(int(s.at+skip)), uint32(s.linear-skip))
	}
	n = len(more) + 1
	w.out.writev(i, first, n)
	w.out.joined += n - 1
	return n
}

// doneMerged is done for packet i of the batch and those that were merged with it.
func (o *tapWriter) doneMerged(b *txBatch, i int, e unix.Errno) {
	pkts := b.pkts[i : i+1+int(b.pkts[i].more)]
	for k := range pkts {
		o.done(&pkts[k], e)
	}
}

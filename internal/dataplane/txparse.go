// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Limits of the slots of one packet, as in xenvif_count_requests. The ABI promises 18.
// A packet with a few more is dropped; one with more than 21 is a breach.
const (
	maxLaterSlots    = netif.MinSlots // data slots after the first
	breachLaterSlots = 20
)

// minLinear is the least size in bytes of the first slot's data: an Ethernet header, as
// in xen-netback.
const minLinear = 14

// Breaches of the tx protocol: after these errors the start of the next packet is not
// known.
var (
	errExtraMissing = errors.New("extra info announced but not published")
	errSlotMissing  = errors.New("packet published in part: more_data set on the last slot")
	errTooManySlots = errors.New("packet without end: more than 21 data slots")
)

// txBatch is the work of one tx pass: a private copy of the guest's slots, the packets
// and the responses. It belongs to a worker, which reuses it for every queue.
type txBatch struct {
	pkts [batchPackets]txPacket
	slot [netif.TxRingSize]txSlot
	segs [netif.TxRingSize]gntdev.Segment
	rsp  [netif.TxRingSize]netif.TxResponse

	txFill
	nSegs int

	credit uint32 // bytes that the rate limit allows
	want   uint32 // size of the packet that has to wait for credit, or 0

	// Packets that the host or the data path will segment.
	segments int   // not counting the first one of each packet
	repeated int64 // bytes of headers in these segments
}

// txFill counts the entries of a batch.
type txFill struct {
	nPkts, nSlots, nRsp int

	bytes uint32 // credit used
}

// reset makes the batch empty.
func (b *txBatch) reset(credit uint32) {
	b.txFill, b.nSegs = txFill{}, 0
	b.credit, b.want = credit, 0
	b.segments, b.repeated = 0, 0
}

// txPacket is a packet that passed the checks. Its data slots are
// txBatch.slot[first : first+n]. A batch of them stays in the cache's first level
// between the passes over it, hence the narrow fields.
type txPacket struct {
	first, n uint16
	rsp0     uint16 // response of data slot 0 in txBatch.rsp
	extras   uint16 // extra slots, which stand between data slots 0 and 1
	total    uint32
	flags    netif.TxFlags
	gso      netif.GSOInfo
	drop     Counter // reason to drop it after all, notDropped, or coalesced
	more     uint8   // number of packets behind it that were merged with it
	next     uint8   // index of the next one of these in txBatch.pkts
	headers  uint8   // bytes of headers of each of these

	// Its place in the tx arena: the first linear bytes are at offset at, the others
	// at the places of its slots. If at is inPlace, linear is 0.
	at, linear int32
}

// plain reports whether the packet has no offload.
func (p *txPacket) plain() bool {
	return p.flags&netif.TxCsumBlank == 0 && p.gso.Type == netif.GSONone
}

// meta returns the offloads that the guest requests for the packet.
func (p *txPacket) meta() offload.TxMeta {
	return offload.TxMeta{
		CsumBlank: p.flags&netif.TxCsumBlank != 0,
		GSOType:   p.gso.Type,
		GSOSize:   p.gso.Size,
	}
}

// slots returns the packet's data slots.
func (b *txBatch) slots(p *txPacket) []txSlot {
	return b.slot[p.first : p.first+p.n]
}

// txSlot is a checked data slot: off+size stays within one page.
type txSlot struct {
	gref   xen.Gref
	off    uint16
	size   uint16
	at     int32 // place of its data in the tx arena, or inPlace
	copied bool  // the batch's grant copy copies it

	// addr is the address of the data of a large packet's slot. It is not a
	// pointer: the batch outlives the mapping of the page.
	addr uintptr
}

// inPlace is the place of data that stays in the guest's page, a static grant. The TAP
// takes it from there.
const inPlace = -1

// response returns the index in txBatch.rsp of the response to data slot k.
func (p *txPacket) response(k int) int {
	if k == 0 {
		return int(p.rsp0)
	}
	return int(p.rsp0+p.extras) + k
}

// parseTx takes packets from the ring into b until the batch is full, the ring is empty,
// or the rate limit has no credit. The batch is full with batchPackets packets or with
// q.mostSegs segments. The slots of these packets are consumed and have their responses
// in b.rsp. An error is a breach; the contents of b stay valid.
func (q *Queue) parseTx(b *txBatch, t *tally) error {
	avail, err := q.tx.Available()
	if err != nil {
		return fmt.Errorf("tx ring: %w", err)
	}
	cons, f := q.tx.ReqCons(), b.txFill
	room := min(batchPackets, q.mostSegs)
	for avail > 0 && f.nPkts < room {
		r := q.tx.Slot(cons)
		if size := r.Size(); r.Flags()&(netif.TxExtraInfo|netif.TxMoreData) == 0 &&
			size >= minLinear && uint32(size) <= b.credit-f.bytes && !crossesPage(r.Offset(), size) {
			// A valid packet in one slot, as most are.
			b.slot[f.nSlots] = txSlot{gref: r.Gref(), off: r.Offset(), size: size}
			p := &b.pkts[f.nPkts]
			*p = txPacket{}
			p.first, p.n, p.rsp0 = uint16(f.nSlots), 1, uint16(f.nRsp)
			p.total, p.flags = uint32(size), r.Flags()
			b.rsp[f.nRsp] = netif.TxResponse{ID: r.ID(), Status: netif.StatusOkay}
			f.nSlots++
			f.nPkts++
			f.nRsp++
			f.bytes += uint32(size)
			cons = cons.Add(1)
			avail--
			continue
		}
		b.txFill = f
		q.tx.Consume(cons.Sub(q.tx.ReqCons()))
		used, err := q.parsePacket(b, t, r, avail)
		if err != nil {
			b.txFill = f // the packet is not consumed
			return fmt.Errorf("tx ring: request %d: %w", uint32(cons), err)
		}
		if used == 0 {
			return nil
		}
		f = b.txFill
		room = min(batchPackets, q.mostSegs-b.segments)
		cons = cons.Add(used)
		avail -= used
	}
	b.txFill = f
	q.tx.Consume(cons.Sub(q.tx.ReqCons()))
	return nil
}

// parsePacket takes the packet at req_cons into b; first is its first slot. It returns
// the number of slots of the packet, or 0 if it must wait for credit. Every further slot
// is read once.
func (q *Queue) parsePacket(b *txBatch, t *tally, first netif.TxSlot, avail uint32) (used uint32, err error) {
	cons := q.tx.ReqCons()
	used = 1

	if uint32(first.Size()) > b.credit-b.bytes {
		b.want = uint32(first.Size())
		return 0, nil
	}

	var extras [netif.ExtraMax]netif.TxSlot // by type; the last one of each type counts
	has := uint32(0)                        // bits by type
	for more := first.Flags()&netif.TxExtraInfo != 0; more; {
		if used >= avail {
			return 0, errExtraMissing
		}
		e := q.tx.Slot(cons.Add(used))
		typ := e.ExtraType()
		if typ == netif.ExtraNone || typ >= netif.ExtraMax {
			return 0, extraTypeError(typ)
		}
		extras[typ] = e
		has |= 1 << typ
		used++
		more = e.ExtraMore()
	}
	nExtras := int(used) - 1

	rsp0 := b.nRsp
	b.respond(first.ID(), netif.StatusOkay)
	for range nExtras {
		b.respond(0, netif.StatusNull)
	}
	b.bytes += uint32(first.Size())

	// A multicast request comes as an extra of a packet whose data is ignored.
	if has&(1<<netif.ExtraMcastAdd) != 0 {
		if q.conn.cfg.Mcast.add(extras[netif.ExtraMcastAdd].Extra().Addr()) {
			t[McastChanges]++
		} else {
			t[DropMcastFull]++
			b.rsp[rsp0].Status = netif.StatusError
		}
		return used, nil
	}
	if has&(1<<netif.ExtraMcastDel) != 0 {
		q.conn.cfg.Mcast.del(extras[netif.ExtraMcastDel].Extra().Addr())
		t[McastChanges]++
		return used, nil
	}
	var gso netif.GSOInfo
	if has&(1<<netif.ExtraGSO) != 0 {
		gso = extras[netif.ExtraGSO].GSO()
	}

	slot0 := b.nSlots
	l := txLater{used: used, rest: uint32(first.Size()), nSlots: slot0 + 1, drop: notDropped}
	if first.Flags()&netif.TxMoreData != 0 {
		if l, err = q.parseLater(b, cons, avail, l); err != nil {
			return 0, err
		}
		used = l.used
	}
	drop := l.drop
	if drop == notDropped {
		drop = checkFirst(first, l.rest, has&(1<<netif.ExtraGSO) != 0, gso)
	}
	if drop != notDropped {
		t[drop]++
		b.failAll(rsp0, nExtras)
		return used, nil
	}

	b.slot[slot0] = txSlot{gref: first.Gref(), off: first.Offset(), size: uint16(l.rest)}
	b.nSlots = l.nSlots
	p := &b.pkts[b.nPkts]
	b.nPkts++
	*p = txPacket{}
	p.first, p.n = uint16(slot0), uint16(l.nSlots-slot0)
	p.rsp0, p.extras = uint16(rsp0), uint16(nExtras)
	p.total, p.flags = uint32(first.Size()), first.Flags()
	if p.gso = gso; gso.Type != netif.GSONone {
		b.segments += segmentsOf(p.total, gso.Size) - 1
	}
	return used, nil
}

// txLater is the state of parsing a packet's later slots: slots used, bytes of the packet
// that belong to the first slot, entries of txBatch.slot, and the reason to drop the
// packet.
type txLater struct {
	used, rest uint32
	nSlots     int
	drop       Counter
}

// parseLater takes the later data slots of the packet at cons into b.
func (q *Queue) parseLater(b *txBatch, cons netif.Index, avail uint32, l txLater) (txLater, error) {
	used, rest, n, rsp := l.used, l.rest, l.nSlots, b.nRsp
	drop := notDropped
	allowed := used + maxLaterSlots
	for {
		if used >= avail {
			return l, errSlotMissing
		}
		if used >= allowed {
			if used >= allowed+breachLaterSlots-maxLaterSlots {
				return l, errTooManySlots
			}
			if drop == notDropped {
				drop = DropTxSlots
			}
		}
		r := q.tx.Slot(cons.Add(used))
		used++
		b.rsp[rsp] = netif.TxResponse{ID: r.ID(), Status: netif.StatusOkay}
		rsp++
		switch size := r.Size(); {
		case drop != notDropped:
		case uint32(size) > rest:
			drop = DropTxSize
		case crossesPage(r.Offset(), size):
			drop = DropTxCross
		default:
			rest -= uint32(size)
			b.slot[n] = txSlot{gref: r.Gref(), off: r.Offset(), size: size}
			n++
		}
		if r.Flags()&netif.TxMoreData == 0 {
			b.nRsp = rsp
			return txLater{used: used, rest: rest, nSlots: n, drop: drop}, nil
		}
	}
}

//go:noinline
func extraTypeError(t netif.ExtraType) error { return fmt.Errorf("extra info of %v", t) }

// checkFirst checks a packet when all its slots have been parsed: size is the number of
// bytes left for the first slot. It returns the reason to drop it, or notDropped.
func checkFirst(first netif.TxSlot, size uint32, hasGSO bool, gso netif.GSOInfo) Counter {
	switch {
	case size < minLinear:
		return DropTxShort
	case uint32(first.Offset())+size > netif.PageSize:
		return DropTxCross
	case !hasGSO:
	case gso.Size == 0 || gso.Type != netif.GSOTCPv4 && gso.Type != netif.GSOTCPv6:
		return DropTxGSO
	case gso.Size < offload.MinGSOSize:
		return DropTxGSOSmall
	case segmentsOf(uint32(first.Size()), gso.Size) > maxSegments:
		return DropTxSegments
	}
	return notDropped
}

// maxSegments bounds the segments of one packet, which the host cuts at once while all
// other work waits. A Linux guest requests fewer: its least MSS of 48 leaves 36 bytes
// with timestamps, which makes 1820 segments of the largest packet. A sender with an
// even smaller MSS sees the packet as lost, and sends less at a time.
const maxSegments = 2048

// segmentsOf returns the most segments that a packet of total bytes can have, with
// gsoSize bytes of payload each. Its headers are not parsed yet; they have at least the
// length of Ethernet, IPv4 and TCP without options.
func segmentsOf(total uint32, gsoSize uint16) int {
	const leastHeaders = 14 + 20 + 20
	payload, size := int(total)-leastHeaders, int(gsoSize)
	return max(1, (payload+size-1)/size)
}

// crossesPage reports whether a slot reaches beyond its page.
func crossesPage(off, size uint16) bool {
	return uint32(off)+uint32(size) > netif.PageSize
}

// respond adds a response.
func (b *txBatch) respond(id uint16, s netif.Status) {
	b.rsp[b.nRsp] = netif.TxResponse{ID: id, Status: s}
	b.nRsp++
}

// failAll answers all data slots of the last packet with an error. Its first response
// is rsp0, behind which are those of its extras.
func (b *txBatch) failAll(rsp0, extras int) {
	b.rsp[rsp0].Status = netif.StatusError
	for i := rsp0 + 1 + extras; i < b.nRsp; i++ {
		b.rsp[i].Status = netif.StatusError
	}
}

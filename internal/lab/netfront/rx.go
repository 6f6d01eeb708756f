// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"encoding/binary"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// maxFrags is the largest number of data slots of a received packet. Linux's netfront
// accepts 18, or 19 if the first one is small.
const maxFrags = netif.MinSlots + 1

// smallFirst is the size in bytes up to which a first slot is small
// (RX_COPY_THRESHOLD of Linux's netfront).
const smallFirst = 256

// frameOverhead is the number of bytes by which a frame without segmentation offload may
// exceed the MTU: Ethernet header and a VLAN tag.
const frameOverhead = ethHeader + 4

// canary fills a page in strict mode before the backend gets it.
var canary = bytes.Repeat([]byte{0x5c}, netif.PageSize)

// rxSide is the rx half of a queue.
type rxSide struct {
	ring   *netif.RxFront
	pages  *gntalloc.Pages
	mem    []byte
	refs   []xen.Gref
	free   []uint16 // pages not posted
	posted [netif.RxRingSize]rxPost
	count  int // of posted pages
	target int // the number to keep posted
	avail  uint32
	pushed netif.Index
	head   [headScratch]byte // the first bytes of a packet whose first slot is short
}

// headScratch is enough for Ethernet, two tags, IPv6 with some extensions and
// TCP.
const headScratch = 256

// rxPost is the request that was posted in a slot.
type rxPost struct {
	id   uint16
	page uint16
}

func (r *rxSide) init() {
	r.mem, r.refs = r.pages.Bytes(), r.pages.Refs()
	r.target = len(r.refs)
	r.free = make([]uint16, 0, len(r.refs))
	for i := len(r.refs) - 1; i >= 0; i-- {
		r.free = append(r.free, uint16(i))
	}
}

func (r *rxSide) page(i uint16) []byte {
	return r.mem[int(i)*netif.PageSize:][:netif.PageSize:netif.PageSize]
}

// frag is a packet's data in one slot.
type frag struct {
	page        uint16
	offset, len uint16
}

// Packet is a received packet. Its bytes are in the queue's pages until it is released.
type Packet struct {
	Meta  Meta
	q     *Queue
	frags [maxFrags]frag
	n     int
	size  int
	start netif.Index
	hdr   headers
}

// Len returns the number of bytes.
func (p *Packet) Len() int { return p.size }

// Frags returns the number of fragments.
func (p *Packet) Frags() int { return p.n }

// Frag returns fragment i of the packet.
func (p *Packet) Frag(i int) []byte {
	f := p.frags[i]
	return p.q.rx.page(f.page)[f.offset:][:f.len:f.len]
}

// AppendTo appends the packet's bytes to b.
func (p *Packet) AppendTo(b []byte) []byte {
	for i := range p.n {
		b = append(b, p.Frag(i)...)
	}
	return b
}

// SetRxTarget sets the number of buffers that the queue keeps posted from now on. Posted
// buffers cannot be taken back.
func (q *Queue) SetRxTarget(n int) { q.rx.target = min(max(n, 0), len(q.rx.refs)) }

// Post fills the rx ring with buffers, to be published by Flush.
func (q *Queue) Post() {
	r := &q.rx
	for r.count < r.target && len(r.free) > 0 && r.ring.Free() > 0 {
		p := pop(&r.free)
		if q.rules.strict {
			copy(r.page(p), canary)
		}
		q.post(netif.RxRequest{ID: uint16(r.ring.ReqProd()%netif.RxRingSize) ^ q.rules.salt, Gref: r.refs[p]}, p)
		r.count++
	}
}

func (q *Queue) post(req netif.RxRequest, page uint16) {
	q.rx.posted[q.rx.ring.ReqProd()%netif.RxRingSize] = rxPost{id: req.ID, page: page}
	q.rx.ring.Put(req)
	q.stats.RxPosted++
}

// take returns the page that was posted in slot i, and counts it as no longer posted.
func (q *Queue) take(i netif.Index) uint16 {
	q.rx.count--
	return q.rx.posted[i%netif.RxRingSize].page
}

// recycle makes a page ready to be posted again.
func (q *Queue) recycle(p uint16) { q.rx.free = append(q.rx.free, p) }

// Release gives the packet's pages back to the queue.
func (q *Queue) Release(p *Packet) {
	for i := range p.n {
		q.recycle(p.frags[i].page)
	}
	p.n, p.size = 0, 0
}

// Recv takes the next packet out of the rx ring, if there is one, and checks it. It
// counts failed packets and skips them. The caller owns the packet until Release, and may
// use p again after that.
func (q *Queue) Recv(p *Packet) (bool, error) {
	for {
		if q.dead != nil {
			return false, q.dead
		}
		r := &q.rx
		if r.avail == 0 {
			n, err := r.ring.Responses()
			if err != nil {
				q.violate(RuleIndex, "rx", r.ring.RspCons(), "%v: %+v", err, r.ring.State())
				return false, q.dead
			}
			if n == 0 {
				return false, nil
			}
			r.avail = n
		}
		if q.assemble(p) {
			return true, nil
		}
	}
}

// slot takes the next slot of a packet. If the snapshot of rsp_prod ends within a packet,
// the backend published only a part of it.
func (q *Queue) slot() (s netif.RxSlot, i netif.Index, ok bool) {
	r := &q.rx
	i = r.ring.RspCons()
	if r.avail == 0 {
		return s, i, false
	}
	s = r.ring.Slot(i)
	r.ring.Take(1)
	r.avail--
	q.stats.RxSlots++
	return s, i, true
}

// assemble takes the slots of one packet. It reports false if they form no valid packet.
func (q *Queue) assemble(p *Packet) bool {
	*p = Packet{q: q, start: q.rx.ring.RspCons()}
	bad, failed := false, false
	dataSlots := 0
	for more := true; more; {
		s, i, ok := q.slot()
		if !ok {
			q.violate(RulePartial, "rx", i, "the packet that begins in slot %d goes on beyond rsp_prod", p.start)
			bad = true
			break
		}
		rsp := s.Response()
		post := q.rx.posted[i%netif.RxRingSize]
		page := q.take(i)
		more = rsp.Flags&netif.RxMoreData != 0
		first := dataSlots == 0
		dataSlots++

		if rsp.ID != post.id {
			q.violate(RuleRxID, "rx", i, "id %d, but %d was posted there", rsp.ID, post.id)
			bad = true
		}
		q.checkFlags(rsp.Flags, first, i)
		kept := false
		switch {
		case rsp.Status < 0:
			failed = true
		case rsp.Status == 0:
			q.violate(RuleRxStatus, "rx", i, "status 0")
			bad = true
		case int(rsp.Offset)+int(rsp.Status) > netif.PageSize:
			q.violate(RuleRxBounds, "rx", i, "offset %d, size %d", rsp.Offset, rsp.Status)
			bad = true
		default:
			q.checkCanary(page, rsp.Offset, uint16(rsp.Status), i)
			if kept = p.n < maxFrags; kept {
				p.frags[p.n] = frag{page: page, offset: rsp.Offset, len: uint16(rsp.Status)}
				p.n++
				p.size += int(rsp.Status)
			}
		}
		if !kept {
			q.recycle(page)
		}
		if first {
			p.Meta.CsumBlank = rsp.Flags&netif.RxCsumBlank != 0
			p.Meta.DataValidated = rsp.Flags&netif.RxDataValidated != 0
			if rsp.Flags&netif.RxExtraInfo != 0 && !q.takeExtras(p) {
				bad = true
				break
			}
		}
	}
	if q.tooMany(p, dataSlots) {
		bad = true
	}
	if failed {
		q.stats.RxErrors++
	}
	if bad || failed {
		q.Release(p)
		return false
	}
	q.checkPacket(p)
	q.count(p)
	return true
}

// takeExtras takes the extra slots behind a packet's first slot.
func (q *Queue) takeExtras(p *Packet) bool {
	var last netif.ExtraType
	for {
		s, i, ok := q.slot()
		if !ok {
			q.violate(RulePartial, "rx", i, "the extras of the packet in slot %d go on beyond rsp_prod", p.start)
			return false
		}
		page := q.take(i)
		q.checkCanary(page, 0, 0, i) // the backend must not write the buffer of an extra
		q.recycle(page)
		e := s.Extra()
		switch {
		case e.Flags&^netif.ExtraMore != 0:
			q.violate(RuleExtra, "rx", i, "flags %#x", uint8(e.Flags))
		case e.Type <= last:
			q.violate(RuleExtra, "rx", i, "%v behind %v", e.Type, last)
		}
		last = e.Type
		switch e.Type {
		case netif.ExtraGSO:
			g := e.GSO()
			p.Meta.GSOSize, p.Meta.GSOType = g.Size, g.Type
			q.checkGSO(g, e, i)
		case netif.ExtraHash:
			p.Meta.Hash, p.Meta.Hashed = e.Hash(), true
			q.checkHash(p.Meta.Hash, i)
		case netif.ExtraXDP:
			p.Meta.Headroom = e.Headroom()
			if q.headroom == (headroom{}) || p.Meta.Headroom == 0 || [4]byte(e.Body[2:]) != [4]byte{} {
				q.violate(RuleExtra, "rx", i, "%v: % x", e.Type, e.Body)
			}
		default:
			q.violate(RuleExtra, "rx", i, "%v", e.Type)
		}
		if !e.More() {
			return true
		}
	}
}

func (q *Queue) count(p *Packet) {
	s := &q.stats
	s.RxPackets++
	s.RxBytes += uint64(p.size)
	if p.n > 1 {
		s.RxMulti++
	}
	if p.Meta.GSOType != netif.GSONone {
		s.RxGSO++
	}
	if p.Meta.Hashed {
		s.RxHash++
	}
	if p.Meta.Headroom != 0 {
		s.RxXDP++
	}
	switch {
	case p.Meta.CsumBlank:
		s.RxCsumBlank++
	case p.Meta.DataValidated:
		s.RxValidated++
	}
}

// headOf returns the packet's first bytes in one piece.
func (q *Queue) headOf(p *Packet) []byte {
	first := p.Frag(0)
	if p.n == 1 || len(first) >= headScratch {
		return first
	}
	b := q.rx.head[:0]
	for i := 0; i < p.n && len(b) < headScratch; i++ {
		f := p.Frag(i)
		b = append(b, f[:min(len(f), headScratch-len(b))]...)
	}
	return b
}

// sumFrom adds the packet's bytes from at on.
func (p *Packet) sumFrom(at int) uint64 {
	var s uint64
	odd := false
	for i := range p.n {
		b := p.Frag(i)
		if at >= len(b) {
			at -= len(b)
			continue
		}
		b, at = b[at:], 0
		part := fold(sum(b))
		if odd {
			part = part<<8 | part>>8 // the words of this piece begin at an odd byte
		}
		s += uint64(part)
		odd = odd != (len(b)%2 == 1)
	}
	return s
}

// checksum returns the value in the transport checksum field at byte at.
func checksum(head []byte, at int) uint16 { return binary.BigEndian.Uint16(head[at:]) }

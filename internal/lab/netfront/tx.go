// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// maxSlots is the largest number of slots of a packet that we send: the data slots that
// every backend must accept, and two extras.
const maxSlots = netif.MinSlots + 2

// Meta holds a packet's attributes beside its bytes.
type Meta struct {
	CsumBlank     bool // the transport checksum holds only the pseudo header's sum
	DataValidated bool // the checksum is known to be good, or will be made so
	GSOSize       uint16
	GSOType       netif.GSOType // netif.GSONone: not to be segmented
	Hash          netif.HashInfo
	Hashed        bool   // Hash is valid
	Headroom      uint16 // bytes before the data, of a received packet
}

// txSide is the tx half of a queue. A data slot always has a page, and its
// number, salted, is the slot's id.
type txSide struct {
	ring   *netif.TxFront
	pages  *gntalloc.Pages
	mem    []byte
	refs   []xen.Gref
	free   []uint16 // pages not in use, a stack
	slots  []txSlot // by page
	pushed netif.Index
	nulls  int // NULL responses still due for the packet answered last

	shadow [netif.TxRingSize]netif.TxRequest // the request that we put in each slot

	raw    []rawTx // requests of Raw that await their response
	rawRsp []netif.TxResponse
}

// txSlot is a request that awaits its response.
type txSlot struct {
	pending bool
	mcast   bool
	extras  uint8       // extra slots behind this one
	at      netif.Index // its index in the ring
}

func (t *txSide) init() {
	t.mem, t.refs = t.pages.Bytes(), t.pages.Refs()
	t.slots = make([]txSlot, len(t.refs))
	t.free = make([]uint16, 0, len(t.refs))
	for i := len(t.refs) - 1; i >= 0; i-- {
		t.free = append(t.free, uint16(i))
	}
}

func (t *txSide) page(i uint16) []byte {
	return t.mem[int(i)*netif.PageSize:][:netif.PageSize:netif.PageSize]
}

// outstanding returns the number of slots published and not answered.
func (t *txSide) outstanding() uint32 { return t.pushed.Sub(t.ring.RspCons()) }

// room reports whether a packet of data data slots and extras extra slots fits.
func (t *txSide) room(data, extras int) bool {
	return len(t.free) >= data && int(t.ring.Free()) >= data+extras
}

// top returns the page that is the k-th to be taken.
func (t *txSide) top(k int) uint16 { return t.free[len(t.free)-1-k] }

// Send puts a packet in the tx ring, in full pages. It is published by Flush.
func (q *Queue) Send(frame []byte, m Meta) error {
	if q.dead != nil {
		return q.dead
	}
	n, err := q.roomFor(len(frame), m)
	if err != nil {
		return err
	}
	for i, rest := 0, frame; i < n; i++ {
		c := copy(q.tx.page(q.tx.top(i)), rest)
		rest = rest[c:]
	}
	q.sendPages(len(frame), m)
	return nil
}

// roomFor returns the number of pages for a packet of size bytes, if there is room for
// it.
func (q *Queue) roomFor(size int, m Meta) (pages int, err error) {
	n := (size + netif.PageSize - 1) / netif.PageSize
	if size <= 0 || n > netif.MinSlots || size > netif.MaxTxSize {
		return 0, fmt.Errorf("netfront: a packet has 1 to %d bytes, not %d", netif.MaxTxSize, size)
	}
	if !q.tx.room(n, m.extras()) {
		q.stats.TxFull++
		return 0, ErrFull
	}
	return n, nil
}

// extras returns the number of extra slots that a packet with this meta has.
func (m Meta) extras() int {
	n := 0
	if m.GSOType != netif.GSONone {
		n++
	}
	if m.Hashed {
		n++
	}
	return n
}

// flags returns the flags of the first slot.
func (m Meta) flags() (f netif.TxFlags) {
	if m.CsumBlank {
		f |= netif.TxCsumBlank
	}
	if m.DataValidated {
		f |= netif.TxDataValidated
	}
	return f
}

// sendPages puts a packet of size bytes in the ring. Its bytes are in the top pages of
// the free list. There must be room.
func (q *Queue) sendPages(size int, m Meta) {
	n := max((size+netif.PageSize-1)/netif.PageSize, 1)
	for i, rest := 0, size; i < n; i++ {
		q.putData(i, n, size, 0, min(rest, netif.PageSize), m)
		rest -= netif.PageSize
	}
}

// putData puts data slot i of n. The first one has the size of the whole packet and is
// followed by the extras.
func (q *Queue) putData(i, n, size, offset, length int, m Meta) {
	t := &q.tx
	p := pop(&t.free)
	req := netif.TxRequest{Gref: t.refs[p], Offset: uint16(offset), ID: p ^ q.rules.salt, Size: uint16(length)}
	if i < n-1 {
		req.Flags = netif.TxMoreData
	}
	t.slots[p] = txSlot{pending: true, at: t.ring.ReqProd()}
	if i > 0 {
		q.putReq(req)
		return
	}
	x := m.extras()
	req.Size = uint16(size)
	req.Flags |= m.flags()
	if x > 0 {
		req.Flags |= netif.TxExtraInfo
	}
	t.slots[p].extras = uint8(x)
	q.putReq(req)
	if m.GSOType != netif.GSONone {
		x--
		q.putExtra(netif.NewGSO(netif.GSOInfo{Size: m.GSOSize, Type: m.GSOType}), x > 0)
		q.stats.TxGSO++
	}
	if m.Hashed {
		q.putExtra(netif.NewHash(m.Hash), false)
	}
	if m.CsumBlank {
		q.stats.TxCsumBlank++
	}
	q.stats.TxPackets++
	q.stats.TxBytes += uint64(size)
}

func (q *Queue) putReq(req netif.TxRequest) {
	q.tx.shadow[q.tx.ring.ReqProd()%netif.TxRingSize] = req
	q.tx.ring.Put(req)
	q.stats.TxSlots++
}

func (q *Queue) putExtra(e netif.ExtraInfo, more bool) {
	if more {
		e.Flags |= netif.ExtraMore
	}
	i := q.tx.ring.ReqProd()
	q.tx.ring.PutExtra(e)
	q.tx.shadow[i%netif.TxRingSize] = q.tx.ring.Request(i)
	q.stats.TxSlots++
}

// SendMcast asks the backend to add an address to its multicast list or to remove it.
// Stats.McastOkay or McastError counts the answer.
func (q *Queue) SendMcast(add bool, addr [6]byte) error {
	if q.dead != nil {
		return q.dead
	}
	if !q.tx.room(1, 1) {
		q.stats.TxFull++
		return ErrFull
	}
	// The request itself has no data; a backend reads only the extra.
	t := &q.tx
	p := pop(&t.free)
	t.slots[p] = txSlot{pending: true, mcast: true, extras: 1, at: t.ring.ReqProd()}
	q.putReq(netif.TxRequest{ID: p ^ q.rules.salt, Flags: netif.TxExtraInfo})
	q.putExtra(netif.NewMcast(add, addr), false)
	return nil
}

// Reap takes the available tx responses, checks them and frees their pages. It returns
// their number.
func (q *Queue) Reap() (int, error) {
	if q.dead != nil {
		return 0, q.dead
	}
	t := &q.tx
	n, err := t.ring.Responses()
	if err != nil {
		q.violate(RuleIndex, "tx", t.ring.RspCons(), "%v: %+v", err, t.ring.State())
		return 0, q.dead
	}
	for range n {
		q.reapOne(t.ring.RspCons())
		t.ring.Take(1)
		if q.dead != nil {
			return 0, q.dead
		}
	}
	q.stats.TxResponses += uint64(n)
	return int(n), nil
}

// reapOne takes the response in slot i.
func (q *Queue) reapOne(i netif.Index) {
	t := &q.tx
	r := t.ring.Response(i)
	if q.rules.strict {
		q.checkTail(i)
	}
	if t.nulls > 0 {
		t.nulls--
		if r.Status == netif.StatusNull {
			return
		}
		q.violate(RuleTxNull, "tx", i, "%v for an extra", r.Status)
		t.nulls = 0
	}
	if r.Status == netif.StatusNull {
		q.violate(RuleTxNull, "tx", i, "NULL, but no extra awaits it")
		return
	}
	switch r.Status {
	case netif.StatusOkay, netif.StatusError, netif.StatusDropped:
	default:
		q.violate(RuleTxStatus, "tx", i, "%v", r.Status)
	}
	if len(t.raw) > 0 && q.reapRaw(r) {
		return
	}
	p := r.ID ^ q.rules.salt
	if int(p) >= len(t.slots) || !t.slots[p].pending {
		q.violate(RuleTxID, "tx", i, "id %d, status %v", r.ID, r.Status)
		return
	}
	s := &t.slots[p]
	if q.rules.inUse != nil && !s.mcast {
		used, err := q.rules.inUse(t.refs[p])
		if used && err == nil {
			q.violate(RuleGrantInUse, "tx", i, "id %d, gref %d", r.ID, t.refs[p])
			return
		}
	}
	if s.at != i {
		q.stats.TxReordered++
	}
	switch {
	case s.mcast && r.Status == netif.StatusOkay:
		q.stats.McastOkay++
	case s.mcast:
		q.stats.McastError++
	case r.Status == netif.StatusError:
		q.stats.TxErrors++
	case r.Status == netif.StatusDropped:
		q.stats.TxDropped++
	}
	t.nulls = int(s.extras)
	s.pending = false
	t.free = append(t.free, p)
}

// checkTail checks that the backend did not write the bytes of the slot behind the
// response. Such bytes would leak the backend's memory.
func (q *Queue) checkTail(i netif.Index) {
	got, want := q.tx.ring.Request(i), q.tx.shadow[i%netif.TxRingSize]
	if got.Offset != want.Offset || got.Flags != want.Flags || got.ID != want.ID || got.Size != want.Size {
		q.violate(RuleTxTail, "tx", i, "bytes 4 to 11 changed")
	}
}

// rawTx is a request of Raw that awaits its response.
type rawTx struct {
	id     uint16
	extras int
}

// maxRawResponses bounds what Raw.Responses can return at once.
const maxRawResponses = 4096

// reapRaw keeps the response if it answers a request of Raw.
func (q *Queue) reapRaw(r netif.TxResponse) bool {
	t := &q.tx
	k := slices.IndexFunc(t.raw, func(w rawTx) bool { return w.id == r.ID })
	if k < 0 {
		return false
	}
	t.nulls = t.raw[k].extras
	t.raw = slices.Delete(t.raw, k, k+1)
	if len(t.rawRsp) < maxRawResponses {
		t.rawRsp = append(t.rawRsp, r)
	}
	return true
}

// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"errors"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Breaches of the ring protocol by the peer. They cannot be repaired: the indices no
// longer tell which slots belong to which end.
var (
	// ErrOverflow: the frontend's req_prod is more than a ring ahead of the last
	// answer, or lies behind the consumed requests.
	ErrOverflow = errors.New("req_prod is out of bounds")
	// ErrRspOverflow: the same for a backend's rsp_prod.
	ErrRspOverflow = errors.New("rsp_prod is out of bounds")
)

// backRing is the backend's end of a ring. Requests are consumed and answered in
// ring order, and no response is written before commit, so until then every
// unanswered request still stands in its slot, for a successor to find.
type backRing struct {
	page    page
	size    uint32
	reqCons Index // next request to take
	rspProd Index // next slot to answer; equals rsp_prod in the page
}

// attach continues a ring at the rsp_prod of its last backend: every request from
// there on is still to be served (ring.h, BACK_RING_ATTACH). On a new ring rsp_prod
// is 0.
func (r *backRing) attach(b []byte, size uint32) error {
	p, err := newPage(b)
	if err != nil {
		return err
	}
	rsp := Index(p.load(wRspProd))
	if Index(p.load(wReqProd)).Sub(rsp) > size {
		return ErrOverflow
	}
	*r = backRing{page: p, size: size, reqCons: rsp, rspProd: rsp}
	return nil
}

// Available returns the number of requests published and not yet consumed, 0 to the
// size of the ring. It reads req_prod once.
func (r *backRing) Available() (uint32, error) {
	out := Index(r.page.load(wReqProd)).Sub(r.rspProd)
	taken := r.reqCons.Sub(r.rspProd)
	if out > r.size || out < taken {
		return 0, ErrOverflow
	}
	return out - taken, nil
}

// ReqCons returns the index of the next request to consume.
func (r *backRing) ReqCons() Index { return r.reqCons }

// RspProd returns the index of the next slot to answer.
func (r *backRing) RspProd() Index { return r.rspProd }

// Consume takes n requests. The caller has checked that they are available.
func (r *backRing) Consume(n uint32) { r.reqCons = r.reqCons.Add(n) }

// Arm asks for an event at the next request and reports whether one came
// meanwhile. Then the caller continues instead of sleeping (ring.h,
// RING_FINAL_CHECK_FOR_REQUESTS).
func (r *backRing) Arm() (more bool, err error) { return r.ArmFor(1) }

// ArmFor asks for an event once n requests are available, and reports whether
// they are already.
func (r *backRing) ArmFor(n uint32) (more bool, err error) {
	r.page.publish(wReqEvent, uint32(r.reqCons.Add(n)))
	a, err := r.Available()
	return a >= n, err
}

// commit publishes n responses that put has written and reports whether the
// frontend wants an event for them.
func (r *backRing) commit(n uint32) (notify bool) {
	old := r.rspProd
	r.rspProd = old.Add(n)
	r.page.publish(wRspProd, uint32(r.rspProd))
	return crossed(Index(r.page.load(wRspEvent)), old, r.rspProd)
}

// RingState holds a ring's indices as both ends left them, for display. ReqCons is
// the private index of the end that was asked: a backend's req_cons, a frontend's
// rsp_cons.
type RingState struct {
	ReqProd, ReqEvent, ReqCons, RspProd, RspEvent Index
}

// State reads the indices. Only the goroutine that owns the ring may call it.
func (r *backRing) State() RingState {
	return RingState{
		ReqProd:  Index(r.page.load(wReqProd)),
		ReqEvent: Index(r.page.load(wReqEvent)),
		ReqCons:  r.reqCons,
		RspProd:  r.rspProd,
		RspEvent: Index(r.page.load(wRspEvent)),
	}
}

// TxBack is the backend's end of a tx ring.
type TxBack struct{ backRing }

// AttachTx takes over the tx ring in page. It fails if the indices in the page
// are out of bounds.
func AttachTx(page []byte) (*TxBack, error) {
	r := new(TxBack)
	if err := r.attach(page, TxRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

const txWords = 3

// Addr returns the address of the ring's page. It is a number, for hints to the processor's
// caches, and does not keep the page mapped.
func (r *TxBack) Addr() uintptr { return r.page.addr() }

// NextAddr returns the address of the next request, as a number like Addr.
func (r *TxBack) NextAddr() uintptr {
	return r.page.addr() + 4*uintptr(wRing+uint32(r.reqCons%TxRingSize)*txWords)
}

// Request copies the request at i out of the page.
func (r *TxBack) Request(i Index) TxRequest { return r.page.txRequest(i) }

func (p page) txRequest(i Index) TxRequest {
	w := wRing + uint32(i%TxRingSize)*txWords
	a, b, c := p.load(w), p.load(w+1), p.load(w+2)
	return TxRequest{
		Gref:   xen.Gref(a),
		Offset: lo16(b),
		Flags:  TxFlags(hi16(b)),
		ID:     lo16(c),
		Size:   hi16(c),
	}
}

// TxSlot is a request as it is in its slot. Loops over many requests use it instead of
// [TxRequest], because the compiler keeps it in registers.
type TxSlot struct{ a, b, c uint32 }

// Slot copies the request at i out of the page.
func (r *TxBack) Slot(i Index) TxSlot {
	s := r.page.txSlot(i)
	return TxSlot{load(&s[0]), load(&s[1]), load(&s[2])}
}

// Gref returns the field of [TxRequest], as do the methods that follow.
func (s TxSlot) Gref() xen.Gref { return xen.Gref(s.a) }
func (s TxSlot) Offset() uint16 { return lo16(s.b) }
func (s TxSlot) Flags() TxFlags { return TxFlags(hi16(s.b)) }
func (s TxSlot) ID() uint16     { return lo16(s.c) }
func (s TxSlot) Size() uint16   { return hi16(s.c) }

// Extra returns the slot as that of an extra. A data path can read single fields of
// it.
func (s TxSlot) Extra() ExtraInfo     { return extraFrom(s.a, s.b) }
func (s TxSlot) ExtraType() ExtraType { return ExtraType(s.a) }
func (s TxSlot) ExtraMore() bool      { return ExtraFlags(s.a>>8)&ExtraMore != 0 }
func (s TxSlot) GSO() GSOInfo {
	return GSOInfo{Size: hi16(s.a), Type: GSOType(s.b), Features: hi16(s.b)}
}

// Extra copies the extra at i out of the page.
func (r *TxBack) Extra(i Index) ExtraInfo {
	w := wRing + uint32(i%TxRingSize)*txWords
	return extraFrom(r.page.load(w), r.page.load(w+1))
}

// Commit writes responses into the oldest unanswered slots, in order, publishes
// them with one store and reports whether the frontend wants an event. There
// must not be more of them than requests consumed.
func (r *TxBack) Commit(rsp []TxResponse) (notify bool) {
	if len(rsp) == 0 {
		return false
	}
	for n, s := range rsp {
		r.page.txSlot(r.rspProd.Add(uint32(n)))[0] = join16(s.ID, uint16(s.Status))
	}
	return r.commit(uint32(len(rsp)))
}

// RxBack is the backend's end of an rx ring.
type RxBack struct{ backRing }

// AttachRx takes over the rx ring in page. It fails if the indices in the page
// are out of bounds.
func AttachRx(page []byte) (*RxBack, error) {
	r := new(RxBack)
	if err := r.attach(page, RxRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

const rxWords = 2

// Request copies the request at i out of the page.
func (r *RxBack) Request(i Index) RxRequest {
	s := r.page.rxSlot(i)
	a, b := load(&s[0]), load(&s[1])
	return RxRequest{ID: lo16(a), Gref: xen.Gref(b)}
}

// RxSlot is a slot that the backend writes to an rx ring: a response, or an extra
// made by [RxExtra].
type RxSlot [rxWords]uint32

// Slot encodes a response.
func (s RxResponse) Slot() RxSlot {
	return RxSlot{join16(s.ID, s.Offset), join16(uint16(s.Flags), uint16(s.Status))}
}

// Slot encodes an extra.
func (e ExtraInfo) Slot() RxSlot {
	a, b := extraTo(e)
	return RxSlot{a, b}
}

// Commit writes slots into the oldest unanswered slots, in order, publishes them
// with one store and reports whether the frontend wants an event. The slots must
// end with the end of a packet: a frontend drops a packet of which it sees only a part.
// There must not be more of them than requests consumed.
func (r *RxBack) Commit(slots []RxSlot) (notify bool) {
	if len(slots) == 0 {
		return false
	}
	for n := range slots {
		*r.page.rxSlot(r.rspProd.Add(uint32(n))) = slots[n]
	}
	return r.commit(uint32(len(slots)))
}

// CtrlBack is the backend's end of a control ring.
type CtrlBack struct{ backRing }

// AttachCtrl takes over the control ring in page. It fails if the indices in the
// page are out of bounds.
func AttachCtrl(page []byte) (*CtrlBack, error) {
	r := new(CtrlBack)
	if err := r.attach(page, CtrlRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

const ctrlWords = 4

// Request copies the request at i out of the page.
func (r *CtrlBack) Request(i Index) CtrlRequest {
	w := wRing + uint32(i%CtrlRingSize)*ctrlWords
	a := r.page.load(w)
	return CtrlRequest{
		ID:   lo16(a),
		Type: CtrlType(hi16(a)),
		Data: [3]uint32{r.page.load(w + 1), r.page.load(w + 2), r.page.load(w + 3)},
	}
}

// Commit writes responses into the oldest unanswered slots, in order, publishes
// them with one store and reports whether the frontend wants an event. The
// slot's last word, which no response uses, is cleared.
func (r *CtrlBack) Commit(rsp []CtrlResponse) (notify bool) {
	if len(rsp) == 0 {
		return false
	}
	for n, s := range rsp {
		w := wRing + uint32(r.rspProd.Add(uint32(n))%CtrlRingSize)*ctrlWords
		r.page.put(w, join16(s.ID, uint16(s.Type)))
		r.page.put(w+1, uint32(s.Status))
		r.page.put(w+2, s.Data)
		r.page.put(w+3, 0)
	}
	return r.commit(uint32(len(rsp)))
}

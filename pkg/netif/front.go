// SPDX-License-Identifier: Apache-2.0

package netif

// frontRing is the frontend's end of a ring.
type frontRing struct {
	page    page
	size    uint32
	reqProd Index // next slot to fill; published by push
	pushed  Index // req_prod in the page
	rspCons Index // next response to take
}

// init makes a new ring in the page (ring.h, SHARED_RING_INIT and
// FRONT_RING_INIT). Only a frontend ever does.
func (r *frontRing) init(b []byte, size uint32) error {
	p, err := newPage(b)
	if err != nil {
		return err
	}
	for i := range uint32(pageWords) {
		p.put(i, 0)
	}
	p.put(wReqEvent, 1)
	p.publish(wRspEvent, 1)
	*r = frontRing{page: p, size: size}
	return nil
}

// Free returns the number of slots that can still be filled.
func (r *frontRing) Free() uint32 { return r.size - r.reqProd.Sub(r.rspCons) }

// ReqProd returns the index of the next slot to fill.
func (r *frontRing) ReqProd() Index { return r.reqProd }

// RspCons returns the index of the next response to take.
func (r *frontRing) RspCons() Index { return r.rspCons }

// Push publishes the filled slots and reports whether the backend wants an
// event.
func (r *frontRing) Push() (notify bool) {
	old := r.pushed
	if old == r.reqProd {
		return false
	}
	r.pushed = r.reqProd
	r.page.publish(wReqProd, uint32(r.reqProd))
	return crossed(Index(r.page.load(wReqEvent)), old, r.reqProd)
}

// Responses returns the number of responses published and not yet taken.
func (r *frontRing) Responses() (uint32, error) {
	n := Index(r.page.load(wRspProd)).Sub(r.rspCons)
	if n > r.pushed.Sub(r.rspCons) {
		return 0, ErrRspOverflow
	}
	return n, nil
}

// Take consumes n responses and frees their slots.
func (r *frontRing) Take(n uint32) { r.rspCons = r.rspCons.Add(n) }

// Arm asks for an event at the next response and reports whether one came in
// the meantime (ring.h, RING_FINAL_CHECK_FOR_RESPONSES).
func (r *frontRing) Arm() (more bool, err error) {
	r.page.publish(wRspEvent, uint32(r.rspCons.Add(1)))
	n, err := r.Responses()
	return n > 0, err
}

// ArmFor asks for an event once n responses are available, and reports whether they
// are available already.
func (r *frontRing) ArmFor(n uint32) (more bool, err error) {
	r.page.publish(wRspEvent, uint32(r.rspCons.Add(n)))
	a, err := r.Responses()
	return a >= n, err
}

// SetReqProd writes req_prod without checks, for tests that play a frontend which
// breaks the protocol. The frontend goes on from there, so it cannot be done from
// outside of this package.
func (r *frontRing) SetReqProd(i Index) {
	r.reqProd, r.pushed = i, i
	r.page.publish(wReqProd, uint32(i))
}

// State reads the indices.
func (r *frontRing) State() RingState {
	return RingState{
		ReqProd:  Index(r.page.load(wReqProd)),
		ReqEvent: Index(r.page.load(wReqEvent)),
		ReqCons:  r.rspCons,
		RspProd:  Index(r.page.load(wRspProd)),
		RspEvent: Index(r.page.load(wRspEvent)),
	}
}

// TxFront is the frontend's end of a tx ring.
type TxFront struct{ frontRing }

// InitTx makes a tx ring in page.
func InitTx(page []byte) (*TxFront, error) {
	r := new(TxFront)
	if err := r.init(page, TxRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

// Put fills the next slot with a request. The caller has checked that one is free.
func (r *TxFront) Put(q TxRequest) {
	w := wRing + uint32(r.reqProd%TxRingSize)*txWords
	r.page.put(w, uint32(q.Gref))
	r.page.put(w+1, join16(q.Offset, uint16(q.Flags)))
	r.page.put(w+2, join16(q.ID, q.Size))
	r.reqProd++
}

// PutExtra fills the next slot with an extra.
func (r *TxFront) PutExtra(e ExtraInfo) {
	w := wRing + uint32(r.reqProd%TxRingSize)*txWords
	a, b := extraTo(e)
	r.page.put(w, a)
	r.page.put(w+1, b)
	r.page.put(w+2, 0)
	r.reqProd++
}

// Request copies the slot at i out of the page as a request. Of a request that was
// answered, 8 of the 12 bytes are left: a tx response covers 4.
func (r *TxFront) Request(i Index) TxRequest { return r.page.txRequest(i) }

// Response copies the response at i out of the page.
func (r *TxFront) Response(i Index) TxResponse {
	a := r.page.load(wRing + uint32(i%TxRingSize)*txWords)
	return TxResponse{ID: lo16(a), Status: Status(hi16(a))}
}

// RxFront is the frontend's end of an rx ring.
type RxFront struct{ frontRing }

// InitRx makes an rx ring in page.
func InitRx(page []byte) (*RxFront, error) {
	r := new(RxFront)
	if err := r.init(page, RxRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

// Put fills the next slot with a request. The caller has checked that one is free.
func (r *RxFront) Put(q RxRequest) {
	w := wRing + uint32(r.reqProd%RxRingSize)*rxWords
	r.page.put(w, join16(q.ID, 0))
	r.page.put(w+1, uint32(q.Gref))
	r.reqProd++
}

// Slot copies the slot at i out of the page, to be read as a response or as an
// extra.
func (r *RxFront) Slot(i Index) RxSlot {
	w := wRing + uint32(i%RxRingSize)*rxWords
	return RxSlot{r.page.load(w), r.page.load(w + 1)}
}

// Response reads the slot as a response.
func (s RxSlot) Response() RxResponse {
	return RxResponse{
		ID:     lo16(s[0]),
		Offset: hi16(s[0]),
		Flags:  RxFlags(lo16(s[1])),
		Status: Status(hi16(s[1])),
	}
}

// Extra reads the slot as an extra.
func (s RxSlot) Extra() ExtraInfo { return extraFrom(s[0], s[1]) }

// CtrlFront is the frontend's end of a control ring.
type CtrlFront struct{ frontRing }

// InitCtrl makes a control ring in page.
func InitCtrl(page []byte) (*CtrlFront, error) {
	r := new(CtrlFront)
	if err := r.init(page, CtrlRingSize); err != nil {
		return nil, err
	}
	return r, nil
}

// Put fills the next slot with a request. The caller has checked that one is free.
func (r *CtrlFront) Put(q CtrlRequest) {
	w := wRing + uint32(r.reqProd%CtrlRingSize)*ctrlWords
	r.page.put(w, join16(q.ID, uint16(q.Type)))
	for i, d := range q.Data {
		r.page.put(w+1+uint32(i), d)
	}
	r.reqProd++
}

// Response copies the response at i out of the page.
func (r *CtrlFront) Response(i Index) CtrlResponse {
	w := wRing + uint32(i%CtrlRingSize)*ctrlWords
	a := r.page.load(w)
	return CtrlResponse{
		ID:     lo16(a),
		Type:   CtrlType(hi16(a)),
		Status: CtrlStatus(r.page.load(w + 1)),
		Data:   r.page.load(w + 2),
	}
}

// SPDX-License-Identifier: Apache-2.0

package blkif

import "errors"

// ErrRspOverrun is the error of a ring whose rsp_prod is out of bounds.
var ErrRspOverrun = errors.New("rsp_prod is out of bounds")

// Front is the frontend's end of a ring. One goroutine owns it.
type Front struct {
	ring    ring
	reqProd Index // next slot to fill; published by Push
	pushed  Index // req_prod in the ring
	rspCons Index // next response to take
}

// InitFront makes a new ring in mem, 1 to 16 pages (ring.h, SHARED_RING_INIT and
// FRONT_RING_INIT).
func InitFront(mem []byte, p Protocol) (*Front, error) {
	r, err := newRing(mem, p)
	if err != nil {
		return nil, err
	}
	clear(r.w)
	r.w[wReqEvent] = 1
	r.publish(wRspEvent, 1)
	return &Front{ring: r}, nil
}

// Size returns the number of slots.
func (f *Front) Size() uint32 { return f.ring.mask + 1 }

// Protocol returns the layout of the slots.
func (f *Front) Protocol() Protocol { return f.ring.proto }

// Free returns the number of slots that can still be filled.
func (f *Front) Free() uint32 { return f.Size() - f.reqProd.Sub(f.rspCons) }

// ReqProd returns the index of the next slot to fill.
func (f *Front) ReqProd() Index { return f.reqProd }

// RspCons returns the index of the next response to take.
func (f *Front) RspCons() Index { return f.rspCons }

// Put fills the next slot with a request. The caller has checked that one is free.
func (f *Front) Put(q *Request) {
	var s Slot
	q.Encode(f.ring.proto, &s)
	f.PutSlot(&s)
}

// PutSlot fills the next slot with these bytes.
func (f *Front) PutSlot(s *Slot) {
	f.ring.put(f.reqProd, s)
	f.reqProd++
}

// Push publishes the filled slots and reports whether the backend wants an event.
func (f *Front) Push() (notify bool) {
	old := f.pushed
	if old == f.reqProd {
		return false
	}
	f.pushed = f.reqProd
	f.ring.publish(wReqProd, uint32(f.reqProd))
	return crossed(Index(f.ring.load(wReqEvent)), old, f.reqProd)
}

// Responses returns the number of responses published and not yet taken.
func (f *Front) Responses() (uint32, error) {
	n := Index(f.ring.load(wRspProd)).Sub(f.rspCons)
	if n > f.pushed.Sub(f.rspCons) {
		return 0, ErrRspOverrun
	}
	return n, nil
}

// Response copies the response at i out of the ring. The backend can write the ring at any
// time: each word is read once.
func (f *Front) Response(i Index) Response {
	w := wRing + (uint32(i)&f.ring.mask)*f.ring.slot
	lo, hi, a := f.ring.load(w), f.ring.load(w+1), f.ring.load(w+2)
	return Response{
		ID:     uint64(lo) | uint64(hi)<<32,
		Op:     Op(a),
		Status: Status(a >> 16),
	}
}

// Copy copies the slot at i out of the ring: a request, or a response and what it has left of
// a request.
func (f *Front) Copy(i Index, s *Slot) { f.ring.copy(i, s) }

// Take consumes n responses and frees their slots.
func (f *Front) Take(n uint32) { f.rspCons = f.rspCons.Add(n) }

// Arm asks for an event at the next response and reports whether one came in the meantime
// (ring.h, RING_FINAL_CHECK_FOR_RESPONSES).
func (f *Front) Arm() (more bool, err error) { return f.ArmFor(1) }

// ArmFor asks for an event once n responses are available, and reports whether they are
// available already.
func (f *Front) ArmFor(n uint32) (more bool, err error) {
	f.ring.publish(wRspEvent, uint32(f.rspCons.Add(n)))
	a, err := f.Responses()
	return a >= n, err
}

// SetReqProd writes req_prod without checks, for tests that play a frontend which breaks
// the protocol. The frontend goes on from there.
func (f *Front) SetReqProd(i Index) {
	f.reqProd, f.pushed = i, i
	f.ring.publish(wReqProd, uint32(i))
}

// State reads the indices.
func (f *Front) State() RingState { return f.ring.state(f.rspCons) }

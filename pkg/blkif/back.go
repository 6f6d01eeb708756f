// SPDX-License-Identifier: Apache-2.0

package blkif

// Back is the backend's end of a ring. One goroutine owns it. No method but the
// constructors allocates.
//
// Requests are consumed in ring order and answered in any order. Between req_cons and
// rsp_prod there are as many requests in flight as their distance.
type Back struct {
	ring    ring
	reqCons Index // next request to take
	rspProd Index // next slot to answer; equals rsp_prod in the ring
	broken  bool
}

// AttachBack takes over the ring in mem, 1 to 16 pages, at the rsp_prod of its last
// backend (ring.h, BACK_RING_ATTACH): all requests from there on are still in the ring.
// On a new ring rsp_prod is 0. If the ring was served before, [Back.Resume] must follow.
// It returns ErrOverrun if the indices in the ring are out of bounds.
func AttachBack(mem []byte, p Protocol) (*Back, error) {
	r, err := newRing(mem, p)
	if err != nil {
		return nil, err
	}
	b := &Back{ring: r}
	b.rspProd = Index(r.load(wRspProd))
	b.reqCons = b.rspProd
	if _, err := b.Available(); err != nil {
		return nil, err
	}
	return b, nil
}

// Resume goes on where another backend stopped: at its req_cons. Requests before it are
// that backend's: those without a response are known from copies, since responses may
// have overwritten their slots. It returns ErrOverrun if reqCons is not between rsp_prod and
// req_prod of the ring.
func (b *Back) Resume(reqCons Index) error {
	b.broken = b.broken || reqCons.Sub(b.rspProd) > b.Size()
	b.reqCons = reqCons
	_, err := b.Available()
	return err
}

// Size returns the number of slots.
func (b *Back) Size() uint32 { return b.ring.mask + 1 }

// Protocol returns the layout of the slots.
func (b *Back) Protocol() Protocol { return b.ring.proto }

// Available returns the number of requests published and not yet consumed, 0 to the
// size of the ring. It reads req_prod once. After ErrOverrun the ring is never served
// again: every later call returns it too.
func (b *Back) Available() (uint32, error) {
	out := Index(b.ring.load(wReqProd)).Sub(b.rspProd)
	taken := b.reqCons.Sub(b.rspProd)
	if b.broken || out > b.Size() || out < taken {
		b.broken = true
		return 0, ErrOverrun
	}
	return out - taken, nil
}

// ReqCons returns the index of the next request to consume.
func (b *Back) ReqCons() Index { return b.reqCons }

// RspProd returns the index of the next slot to answer.
func (b *Back) RspProd() Index { return b.rspProd }

// InFlight returns the number of requests consumed and not yet answered.
func (b *Back) InFlight() uint32 { return b.reqCons.Sub(b.rspProd) }

// Copy copies the slot at i out of the ring and reads each of its words once.
func (b *Back) Copy(i Index, s *Slot) { b.ring.copy(i, s) }

// Consume takes n requests. The caller has checked that they are available, and has copied
// them.
func (b *Back) Consume(n uint32) { b.reqCons = b.reqCons.Add(n) }

// Commit writes responses to the next slots, every byte of each, publishes them with one
// store and reports whether the frontend wants an event. There must not be more of them
// than requests in flight.
func (b *Back) Commit(rsp []Response) (notify bool) {
	if len(rsp) == 0 {
		return false
	}
	n := b.ring.proto.rspWords()
	for i := range rsp {
		b.ring.putResponse(b.rspProd.Add(uint32(i)), n, &rsp[i])
	}
	old := b.rspProd
	b.rspProd = old.Add(uint32(len(rsp)))
	b.ring.publish(wRspProd, uint32(b.rspProd))
	return crossed(Index(b.ring.load(wRspEvent)), old, b.rspProd)
}

// putResponse stores a response of n words. Bytes without a field are 0.
func (r *ring) putResponse(i Index, n uint32, s *Response) {
	w := r.at(i)[:n]
	w[0] = uint32(s.ID)
	w[1] = uint32(s.ID >> 32)
	w[2] = uint32(s.Op) | uint32(uint16(s.Status))<<16
	if n > rspWords32 {
		w[3] = 0
	}
}

// Arm asks for an event at the next request and reports whether one came meanwhile. Then
// the caller continues instead of sleeping (ring.h, RING_FINAL_CHECK_FOR_REQUESTS).
func (b *Back) Arm() (more bool, err error) { return b.ArmFor(1) }

// ArmFor asks for an event once n requests are available, and reports whether they are
// already.
func (b *Back) ArmFor(n uint32) (more bool, err error) {
	b.ring.publish(wReqEvent, uint32(b.reqCons.Add(n)))
	a, err := b.Available()
	return a >= n, err
}

// RingState holds a ring's indices as both ends left them, for display. Cons is the private
// index of the end that was asked: a backend's req_cons, a frontend's rsp_cons.
type RingState struct {
	ReqProd, ReqEvent, RspProd, RspEvent, Cons Index
}

// State reads the indices. Only the goroutine that owns the ring may call it.
func (b *Back) State() RingState { return b.ring.state(b.reqCons) }

func (r *ring) state(cons Index) RingState {
	return RingState{
		ReqProd:  Index(r.load(wReqProd)),
		ReqEvent: Index(r.load(wReqEvent)),
		RspProd:  Index(r.load(wRspProd)),
		RspEvent: Index(r.load(wRspEvent)),
		Cons:     cons,
	}
}

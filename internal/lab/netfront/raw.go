// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"errors"
	"sync"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Raw is a queue's rings without any check: how a test plays a guest that is
// broken or hostile. It may be mixed with ordinary traffic; what is put raw does
// not count as the backend's breach when it fails.
type Raw struct{ q *Queue }

// Raw gives unchecked access to the queue.
func (q *Queue) Raw() Raw { return Raw{q} }

// PutTx puts any request in the tx ring. Its response is kept for TxResponses,
// unless its id is that of a packet under way.
func (r Raw) PutTx(req netif.TxRequest) error {
	if r.q.tx.ring.Free() == 0 {
		return ErrFull
	}
	r.q.tx.raw = append(r.q.tx.raw, rawTx{id: req.ID})
	r.q.putReq(req)
	return nil
}

// PutExtra puts any extra behind the request put last.
func (r Raw) PutExtra(e netif.ExtraInfo) error {
	if r.q.tx.ring.Free() == 0 {
		return ErrFull
	}
	if n := len(r.q.tx.raw); n > 0 {
		r.q.tx.raw[n-1].extras++
	}
	r.q.putExtra(e, e.More())
	return nil
}

// PutRx posts any buffer. Its response is kept for RxResponses.
func (r Raw) PutRx(req netif.RxRequest) error {
	if r.q.rx.ring.Free() == 0 {
		return ErrFull
	}
	r.q.post(req, -1)
	return nil
}

// Push publishes both rings and notifies nobody.
func (r Raw) Push() {
	r.q.pushTx()
	r.q.pushRx()
}

// Kick sends an event on each of the queue's channels, whether the backend wants
// one or not.
func (r Raw) Kick() error {
	err := r.q.events.Notify(r.q.txPort)
	if r.q.rxPort != r.q.txPort {
		err = errors.Join(err, r.q.events.Notify(r.q.rxPort))
	}
	return err
}

// SetTxReqProd writes the tx ring's req_prod. The queue's tx ring is of no use
// for anything else after that.
func (r Raw) SetTxReqProd(i netif.Index) {
	r.q.tx.unruly = true
	r.q.tx.ring.SetReqProd(i)
}

// SetRxReqProd does the same to the rx ring.
func (r Raw) SetRxReqProd(i netif.Index) {
	r.q.rx.unruly = true
	r.q.rx.ring.SetReqProd(i)
}

// TxReqProd is the index of the next tx slot.
func (r Raw) TxReqProd() netif.Index { return r.q.tx.ring.ReqProd() }

// RxReqProd is the index of the next rx slot.
func (r Raw) RxReqProd() netif.Index { return r.q.rx.ring.ReqProd() }

// TxPage takes a page out of the pool, readable for the backend, and never puts
// it back.
func (r Raw) TxPage() (mem []byte, ref netif.Gref, err error) {
	t := &r.q.tx
	if len(t.free) == 0 {
		return nil, 0, ErrFull
	}
	p := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	return t.page(p), t.refs[p], nil
}

// RxPage takes a page out of the pool, writable for the backend, and never puts
// it back.
func (r Raw) RxPage() (mem []byte, ref netif.Gref, err error) {
	x := &r.q.rx
	if len(x.free) == 0 {
		return nil, 0, ErrFull
	}
	p := x.free[len(x.free)-1]
	x.free = x.free[:len(x.free)-1]
	return x.page(p), x.refs[p], nil
}

// TxResponses returns the responses to raw requests that Reap has seen since the
// last call.
func (r Raw) TxResponses() []netif.TxResponse {
	rsp := r.q.tx.rawRsp
	r.q.tx.rawRsp = nil
	return rsp
}

// RxResponses returns the responses to raw buffers that Recv has seen since the
// last call.
func (r Raw) RxResponses() []netif.RxResponse {
	rsp := r.q.rx.rawRsp
	r.q.rx.rawRsp = nil
	return rsp
}

// FlipTx writes the requests to tx slot i in turn, as fast as it can and from a
// goroutine of its own, until stop is called. The queue must outlive it.
func (r Raw) FlipTx(i netif.Index, reqs ...netif.TxRequest) (stop func()) {
	r.q.tx.flipped = true
	ring := r.q.tx.ring
	return flip(len(reqs), func(k int) { ring.Poke(i, reqs[k]) })
}

// FlipRx does the same to an rx slot.
func (r Raw) FlipRx(i netif.Index, reqs ...netif.RxRequest) (stop func()) {
	ring := r.q.rx.ring
	return flip(len(reqs), func(k int) { ring.Poke(i, reqs[k]) })
}

func flip(n int, poke func(int)) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := 0; ; k = (k + 1) % n {
			select {
			case <-quit:
				return
			default:
				poke(k)
			}
		}
	})
	var once sync.Once
	return func() {
		once.Do(func() { close(quit) })
		wg.Wait()
	}
}

// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"errors"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Raw puts requests into a queue's tx ring without any check, for tests that play a broken
// or hostile guest. It may be mixed with ordinary traffic. An error response to a raw
// request does not count as a violation.
type Raw struct{ q *Queue }

// Raw returns unchecked access to the queue.
func (q *Queue) Raw() Raw { return Raw{q} }

// PutTx puts any request into the tx ring. Its response is kept for TxResponses,
// unless a packet under way has the same id.
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

// Kick sends an event on each of the queue's channels, even if the backend did not ask
// for one.
func (r Raw) Kick() error {
	err := r.q.events.Notify(r.q.txPort)
	if r.q.rxPort != r.q.txPort {
		err = errors.Join(err, r.q.events.Notify(r.q.rxPort))
	}
	return err
}

// TxPage takes a page out of the pool, readable for the backend, and never puts
// it back.
func (r Raw) TxPage() (mem []byte, ref xen.Gref, err error) {
	t := &r.q.tx
	if len(t.free) == 0 {
		return nil, 0, ErrFull
	}
	p := pop(&t.free)
	return t.page(p), t.refs[p], nil
}

// RxPage takes a page out of the pool, writable for the backend, and never puts
// it back.
func (r Raw) RxPage() (mem []byte, ref xen.Gref, err error) {
	x := &r.q.rx
	if len(x.free) == 0 {
		return nil, 0, ErrFull
	}
	p := pop(&x.free)
	return x.page(p), x.refs[p], nil
}

// TxResponses returns the responses to raw requests that Reap has seen since the
// last call.
func (r Raw) TxResponses() []netif.TxResponse {
	rsp := r.q.tx.rawRsp
	r.q.tx.rawRsp = nil
	return rsp
}

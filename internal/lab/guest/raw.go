// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
)

// bogusGref is a grant reference beyond any grant table.
const bogusGref netif.Gref = 0xfffffff0

// raw does things to the rings of a queue, in one go between two passes of its
// pump.
func (v *vif) raw(a RawArgs) (RawResult, error) {
	p, err := v.pump(a.Queue)
	if err != nil {
		return RawResult{}, err
	}
	var r RawResult
	var failed error
	err = p.Do(func(q *netfront.Queue) {
		e := rawEnv{vif: v, q: q, raw: q.Raw()}
		for i, op := range a.Ops {
			if err := e.do(op); err != nil {
				failed = fmt.Errorf("op %d, %s: %w", i, op.Op, err)
				break
			}
		}
		r = RawResult{
			Tx:     q.Raw().TxResponses(),
			Rx:     q.Raw().RxResponses(),
			Grefs:  e.grefs,
			TxRing: q.TxState(),
			RxRing: q.RxState(),
		}
	})
	if err != nil {
		return r, err
	}
	return r, failed
}

// rawEnv is what the ops of one command share.
type rawEnv struct {
	vif   *vif
	q     *netfront.Queue
	raw   netfront.Raw
	freed netif.Gref
	last  netif.Gref
	grefs []netif.Gref
}

func (e *rawEnv) do(op RawOp) error {
	switch op.Op {
	case "tx":
		ref, err := e.ref(op)
		if err != nil {
			return err
		}
		return e.raw.PutTx(netif.TxRequest{Gref: ref, Offset: op.Offset, Flags: op.Flags, ID: op.RingID, Size: op.Size})
	case "extra":
		return e.raw.PutExtra(op.Extra)
	case "rx":
		ref, err := e.ref(op)
		if err != nil {
			return err
		}
		return e.raw.PutRx(netif.RxRequest{ID: op.RingID, Gref: ref})
	case "push":
		e.raw.Push()
	case "flush":
		return e.q.Flush()
	case "kick":
		return e.raw.Kick()
	case "tx-prod":
		e.raw.SetTxReqProd(e.raw.TxReqProd() + netif.Index(op.Value))
	case "rx-prod":
		e.raw.SetRxReqProd(e.raw.RxReqProd() + netif.Index(op.Value))
	case "silent":
		e.q.SetSilent(op.Value != 0)
	case "rx-target":
		e.q.SetRxTarget(int(op.Value))
	case "pieces":
		return e.q.SendPieces(op.Page, op.Meta, op.Pieces)
	case "flip":
		if len(op.Reqs) == 0 {
			return fmt.Errorf("nothing to change between")
		}
		e.vif.flips = append(e.vif.flips, e.raw.FlipTx(e.raw.TxReqProd()-1, op.Reqs...))
	case "still":
		e.vif.still()
	default:
		return fmt.Errorf("no such operation")
	}
	return nil
}

// ref finds the grant reference that an op names.
func (e *rawEnv) ref(op RawOp) (ref netif.Gref, err error) {
	var mem []byte
	switch op.Ref {
	case "":
		return 0, nil
	case "page":
		mem, ref, err = e.raw.TxPage()
	case "rx":
		mem, ref, err = e.raw.RxPage()
	case "last":
		ref = e.last
	case "freed":
		ref, err = e.freedRef()
	case "bogus":
		ref = bogusGref
	default:
		var n uint64
		n, err = strconv.ParseUint(op.Ref, 10, 32)
		ref = netif.Gref(n)
	}
	if err != nil {
		return 0, err
	}
	copy(mem, op.Page)
	e.last = ref
	e.grefs = append(e.grefs, ref)
	return ref, nil
}

// freedRef is a grant reference that is no more. It is made only when it is asked
// for: it is good for a moment then, and a request of an earlier command may have
// the same.
func (e *rawEnv) freedRef() (netif.Gref, error) {
	if e.freed != 0 {
		return e.freed, nil
	}
	var err error
	e.freed, err = e.vif.dev.FreedGref()
	return e.freed, err
}

// control sends a message over the control ring.
func (v *vif) control(ctx context.Context, c *netfront.Control, a ControlArgs) (r ControlResult, err error) {
	data := make([]uint32, 3)
	copy(data, a.Data)
	var page []byte
	if a.Page != nil {
		if len(a.Page) > netif.PageSize || a.PageAt < 0 || a.PageAt >= len(data) {
			return r, fmt.Errorf("a page holds %d octets, and one of the 3 data its reference", netif.PageSize)
		}
		g, gerr := v.dev.Grant(1, !a.ReadOnly)
		if gerr != nil {
			return r, gerr
		}
		defer func() { err = errors.Join(err, g.Free()) }()
		page = g.Bytes()
		copy(page, a.Page)
		data[a.PageAt] = g.Refs()[0]
	}
	switch a.Type {
	case netif.CtrlSetHashFlags, netif.CtrlSetHashKey, netif.CtrlSetHashMappingSize, netif.CtrlSetHashMapping, netif.CtrlSetHashAlgorithm:
		if err := v.expectHash(nil); err != nil {
			return r, err
		}
	case netif.CtrlAddGrefMapping:
		for _, p := range v.pumps {
			if err := p.Do((*netfront.Queue).AllowMapped); err != nil {
				return r, err
			}
		}
	}
	rsp, err := c.Call(ctx, a.Type, data...)
	r.Status, r.Data = rsp.Status, rsp.Data
	if page != nil {
		r.Page = bytes.Clone(page[:len(a.Page)])
	}
	return r, err
}

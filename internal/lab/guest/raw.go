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
	"github.com/netbackd/netbackd/pkg/xen"
)

// bogusGref is a grant reference beyond any grant table.
const bogusGref xen.Gref = 0xfffffff0

// raw carries out the ops of a command between two passes of the queue's pump.
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

// rawEnv holds the state that the ops of one command share.
type rawEnv struct {
	vif   *vif
	q     *netfront.Queue
	raw   netfront.Raw
	grefs []xen.Gref
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
	case "flush":
		return e.q.Flush()
	case "rx-target":
		e.q.SetRxTarget(int(op.Value))
	default:
		return fmt.Errorf("no such operation")
	}
	return nil
}

// ref returns the grant reference that an op names.
func (e *rawEnv) ref(op RawOp) (ref xen.Gref, err error) {
	var mem []byte
	switch op.Ref {
	case "":
		return 0, nil
	case "page":
		mem, ref, err = e.raw.TxPage()
	case "rx":
		mem, ref, err = e.raw.RxPage()
	case "bogus":
		ref = bogusGref
	default:
		var n uint64
		n, err = strconv.ParseUint(op.Ref, 10, 32)
		ref = xen.Gref(n)
	}
	if err != nil {
		return 0, err
	}
	copy(mem, op.Page)
	e.grefs = append(e.grefs, ref)
	return ref, nil
}

// control sends a message over the control ring.
func (v *vif) control(ctx context.Context, c *netfront.Control, a ControlArgs) (r ControlResult, err error) {
	data := make([]uint32, 3)
	copy(data, a.Data)
	var page []byte
	if a.Page != nil {
		if len(a.Page) > netif.PageSize || a.PageAt < 0 || a.PageAt >= len(data) {
			return r, fmt.Errorf("a page holds %d bytes, and one of the 3 data its reference", netif.PageSize)
		}
		g, gerr := v.dev.Grant(1, !a.ReadOnly)
		if gerr != nil {
			return r, gerr
		}
		defer func() { err = errors.Join(err, g.Free()) }()
		page = g.Bytes()
		copy(page, a.Page)
		data[a.PageAt] = uint32(g.Refs()[0])
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

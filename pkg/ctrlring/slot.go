// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// SlotBack is the backend's end of a slot ring.
type SlotBack struct {
	ring   *netif.CtrlBack
	stage  stage
	req    netif.CtrlRequest
	rsp    netif.CtrlResponse
	notify bool // an event is owed, even if rsp_event does not ask for one
	err    error
}

// stage is the progress of the one message.
type stage uint8

const (
	idle     stage = iota
	open           // given out, not answered
	answered       // answered, not flushed
)

// attachSlot begins at rsp_prod: messages that a predecessor took and did not answer
// are still there.
func attachSlot(mem []byte) (*SlotBack, error) {
	ring, err := netif.AttachCtrl(mem)
	if err != nil {
		return nil, &Error{Protocol: Slot, Err: err}
	}
	return &SlotBack{ring: ring}, nil
}

func restoreSlot(mem []byte, s State) (*SlotBack, error) {
	b, err := attachSlot(mem)
	if err != nil {
		return nil, err
	}
	b.notify = true
	if len(s.reply) == 0 || netif.Index(s.index) != b.ring.RspProd() {
		return b, nil // answered, or never carried out
	}
	if len(s.reply) != slotReply {
		return nil, &Error{Protocol: Slot, Err: ErrState}
	}
	if n, err := b.ring.Available(); err != nil || n == 0 {
		return b, nil // the frontend took it back; there is nothing to answer
	}
	b.ring.Consume(1)
	b.ring.Commit([]netif.CtrlResponse{{
		ID:     binary.LittleEndian.Uint16(s.reply[0:]),
		Type:   netif.CtrlType(binary.LittleEndian.Uint16(s.reply[2:])),
		Status: netif.CtrlStatus(binary.LittleEndian.Uint32(s.reply[4:])),
		Data:   binary.LittleEndian.Uint32(s.reply[8:]),
	}})
	return b, nil
}

// Protocol returns Slot.
func (b *SlotBack) Protocol() Protocol { return Slot }

// Next implements [Back].
func (b *SlotBack) Next() (Request, bool, error) {
	if b.err != nil || b.stage != idle {
		return Request{}, false, b.err
	}
	n, err := b.ring.Available()
	if err == nil && n == 0 {
		var more bool
		if more, err = b.ring.Arm(); err == nil && !more {
			return Request{}, false, nil
		}
	}
	if err != nil {
		b.err = &Error{Protocol: Slot, Err: err}
		return Request{}, false, b.err
	}
	b.req = b.ring.Request(b.ring.ReqCons())
	b.ring.Consume(1)
	b.stage = open
	return Request{Protocol: Slot, Type: b.req.Type, Data: b.req.Data}, true, nil
}

// Reply implements [Back]. The response has the id and the type of the request.
func (b *SlotBack) Reply(r Response) {
	if b.stage != open {
		return
	}
	b.stage = answered
	b.rsp = netif.CtrlResponse{ID: b.req.ID, Type: b.req.Type, Status: r.Status}
	if r.Status == netif.CtrlSuccess {
		b.rsp.Data = r.Data
	}
}

// Unflushed implements [Back].
func (b *SlotBack) Unflushed() (State, bool) {
	if b.err != nil || b.stage != answered {
		return State{}, false
	}
	return b.State(), true
}

// Flush implements [Back].
func (b *SlotBack) Flush() (notify bool, err error) {
	if b.err != nil {
		return false, b.err
	}
	if b.stage == answered {
		b.stage = idle
		notify = b.ring.Commit([]netif.CtrlResponse{b.rsp})
	}
	notify = notify || b.notify
	b.notify = false
	return notify, nil
}

// State implements [Back].
func (b *SlotBack) State() State {
	s := State{Protocol: Slot, recorded: true, index: uint32(b.ring.RspProd())}
	if b.stage == answered {
		r := make([]byte, 0, slotReply)
		r = binary.LittleEndian.AppendUint16(r, b.rsp.ID)
		r = binary.LittleEndian.AppendUint16(r, uint16(b.rsp.Type))
		r = binary.LittleEndian.AppendUint32(r, uint32(b.rsp.Status))
		s.reply = binary.LittleEndian.AppendUint32(r, b.rsp.Data)
	}
	return s
}

// SlotFront is the frontend's end of a slot ring. It keeps one message on the
// ring at a time, as Windows does.
type SlotFront struct {
	ring *netif.CtrlFront
	req  netif.CtrlRequest // ID 0: none without response
	rsp  Response
	have bool
	id   uint16
}

func initSlot(mem []byte) (*SlotFront, error) {
	ring, err := netif.InitCtrl(mem)
	if err != nil {
		return nil, err
	}
	return &SlotFront{ring: ring}, nil
}

// Protocol returns Slot.
func (f *SlotFront) Protocol() Protocol { return Slot }

// Ring returns the ring itself, for a test that breaks the protocol.
func (f *SlotFront) Ring() *netif.CtrlFront { return f.ring }

// Send implements [Front]. Only Type and Data go on the ring.
func (f *SlotFront) Send(r Request) error {
	if f.req.ID != 0 || f.ring.Free() == 0 {
		return errBusy
	}
	f.id = max(f.id+1, 1) // Windows never uses 0, which means no message there
	f.req = netif.CtrlRequest{ID: f.id, Type: r.Type, Data: r.Data}
	f.have = false
	f.ring.Put(f.req)
	return nil
}

// Turn implements [Front].
func (f *SlotFront) Turn() (notify bool, err error) {
	notify = f.ring.Push()
	if f.req.ID == 0 {
		return notify, nil
	}
	more, err := f.ring.Arm()
	if err != nil {
		return notify, &Error{Protocol: Slot, Err: err}
	}
	if !more {
		return notify, nil
	}
	r := f.ring.Response(f.ring.RspCons())
	f.ring.Take(1)
	if r.ID != f.req.ID || r.Type != f.req.Type {
		return notify, &Error{Protocol: Slot, Err: fmt.Errorf("%w: %v %d to %v %d", ErrResponse, r.Type, r.ID, f.req.Type, f.req.ID)}
	}
	f.req = netif.CtrlRequest{}
	f.rsp, f.have = Response{Status: r.Status, Data: r.Data}, true
	return notify, nil
}

// Response implements [Front].
func (f *SlotFront) Response() (Response, bool) {
	have := f.have
	f.have = false
	return f.rsp, have
}

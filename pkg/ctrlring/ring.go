// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Protocol is the protocol of a control ring's page.
type Protocol uint8

// Protocols.
const (
	Slot   Protocol = 1 // the ring of slots that Xen merged
	Stream Protocol = 2 // the byte streams that were proposed before
)

func (p Protocol) String() string {
	switch p {
	case Slot:
		return "slot"
	case Stream:
		return "stream"
	}
	return fmt.Sprintf("unknown(%d)", uint8(p))
}

// Faults of a control ring, besides [netif.ErrOverflow] and [netif.ErrRspOverflow].
var (
	ErrReqCons  = errors.New("req_cons is out of bounds")
	ErrRspCons  = errors.New("rsp_cons is out of bounds")
	ErrProtocol = errors.New("page is neither a new slot ring nor a byte-stream ring")
	ErrState    = errors.New("recorded state is not valid")
	ErrResponse = errors.New("response does not answer the request")
)

// Error is the error of a control ring whose other end has broken the protocol. Such a
// ring always returns the Error again, and its page is not written any more. The rest
// of the vif is not affected.
type Error struct {
	Protocol Protocol // 0: not known
	Err      error
}

func (e *Error) Error() string {
	if e.Protocol == 0 {
		return "ctrlring: " + e.Err.Error()
	}
	return "ctrlring: " + e.Protocol.String() + " ring: " + e.Err.Error()
}

// Unwrap returns the fault.
func (e *Error) Unwrap() error { return e.Err }

// Back is the backend's end of a control ring. It belongs to one goroutine and
// never blocks.
//
// The frontend sees nothing of what Next has taken and Reply has answered before
// Flush. A backend whose successor is to continue the ring records the result of
// Unflushed before it calls Flush.
type Back interface {
	// Next takes the next message. It reports false if there is none; then the
	// frontend will send an event with the next one. It also reports false until
	// the last message has been answered by Reply and published by Flush, and
	// until the frontend has made room for the whole response. The error is an
	// [Error].
	Next() (Request, bool, error)

	// Reply answers the message that Next returned. It does nothing if there is
	// none.
	Reply(Response)

	// Unflushed returns the state that a successor must know before Flush is
	// called. It reports false if Flush would publish nothing.
	Unflushed() (State, bool)

	// Flush publishes the taken and answered messages, and reports whether the
	// frontend must be sent an event. Call it after Reply, and before waiting for
	// an event.
	Flush() (notify bool, err error)

	// State returns what a successor must know now.
	State() State

	// Protocol returns the protocol of the ring.
	Protocol() Protocol
}

// Front is the frontend's end of a control ring. It belongs to one goroutine and
// never blocks.
type Front interface {
	// Send begins to send a message. It fails if the protocol has no such message,
	// or if the last one has no response yet.
	Send(Request) error

	// Turn sends and receives as much as it can, and reports whether the backend must
	// be sent an event. Call it after Send and after each event, until there is a
	// Response.
	Turn() (notify bool, err error)

	// Response takes the response. It returns false if there is none yet.
	Response() (Response, bool)

	Protocol() Protocol
}

var (
	_ Back  = (*SlotBack)(nil)
	_ Back  = (*StreamBack)(nil)
	_ Front = (*SlotFront)(nil)
	_ Front = (*StreamFront)(nil)
)

// Sniff returns the protocol of the page of a frontend that has just connected. In a
// slot ring both event indices are 1 at first. A byte-stream ring has req_prod in
// their place, which is 0 or at least a header, and rsp_prod, which is 0 because it
// belongs to the backend. Sniff cannot tell the protocol of a ring that was used: after
// a restart it must be known from elsewhere.
//
// The error is [ErrProtocol], in an [Error], if the page is neither.
func Sniff(mem []byte) (Protocol, error) {
	p, err := newPage(mem)
	if err != nil {
		return 0, err
	}
	const reqEvent, rspEvent = 1, 3
	second, fourth := p.load(reqEvent), p.load(rspEvent)
	switch {
	case second == 1 && fourth == 1:
		return Slot, nil
	case fourth == 0:
		return Stream, nil
	}
	return 0, &Error{Err: ErrProtocol}
}

// Attach returns the backend's end of a ring whose frontend has just connected.
func Attach(mem []byte, p Protocol) (Back, error) {
	switch p {
	case Slot:
		return attachSlot(mem)
	case Stream:
		return attachStream(mem)
	}
	return nil, &Error{Protocol: p, Err: ErrProtocol}
}

// Restore returns the backend's end of a ring that a predecessor served up to its
// last recorded State. The first Flush requests an event, since the predecessor may
// have been killed before it sent one.
//
// If the record is lost, pass a State that has only the Protocol set. Then the ring
// continues at the indices in the page, which is right if no message was under way.
func Restore(mem []byte, s State) (Back, error) {
	switch s.Protocol {
	case Slot:
		return restoreSlot(mem, s)
	case Stream:
		return restoreStream(mem, s)
	}
	return nil, &Error{Protocol: s.Protocol, Err: ErrState}
}

// Init makes a new ring in a frontend's page.
func Init(mem []byte, p Protocol) (Front, error) {
	switch p {
	case Slot:
		return initSlot(mem)
	case Stream:
		return initStream(mem)
	}
	return nil, &Error{Protocol: p, Err: ErrProtocol}
}

var errBusy = errors.New("ctrlring: the message before has no response yet")

var errPage = errors.New("ctrlring: a ring needs one whole page, aligned to 4 bytes")

const _ = uint(netif.PageSize - streamSize) // it fits

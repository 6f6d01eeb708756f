// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Protocol is what a control ring's page is laid out for.
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

// ParseProtocol is the inverse of String, for xenstore keys.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range []Protocol{Slot, Stream} {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("ctrlring: protocol %q: write %v or %v", s, Slot, Stream)
}

// What can be wrong with a control ring, besides [netif.ErrOverflow] and
// [netif.ErrRspOverflow].
var (
	ErrReqCons  = errors.New("req_cons is out of bounds")
	ErrRspCons  = errors.New("rsp_cons is out of bounds")
	ErrProtocol = errors.New("page is neither a new slot ring nor a byte-stream ring")
	ErrState    = errors.New("recorded state makes no sense")
	ErrResponse = errors.New("response does not answer the request")
)

// Error says that a control ring is of no use: the other end broke its protocol.
// It is for good; a ring that has failed with an Error fails with it always, and
// its page is not written any more. Everything else of the vif works on.
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

// Unwrap is what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// Back is the backend's end of a control ring. It belongs to one goroutine and
// never blocks.
type Back interface {
	// Next takes the next message. It reports false if there is none, in which
	// case an event will tell of one, and as long as the last is without Reply,
	// its response without Flush, or the frontend without room for it. The error
	// is an [Error].
	Next() (Request, bool, error)

	// Reply answers the message that Next gave. Without one it does nothing, so
	// an answer may come too late.
	Reply(Response)

	// Flush makes the frontend see what was taken and answered, and reports
	// whether it is to be sent an event. It is called after Reply, and before
	// the caller waits for an event. If there is something to make seen, save is
	// first given what a successor must know; if save fails nothing happens.
	// save may be nil.
	Flush(save func(State) error) (notify bool, err error)

	// State is what a successor must know, as of now.
	State() State

	Protocol() Protocol
}

// Front is the frontend's end of a control ring. It belongs to one goroutine and
// never blocks.
type Front interface {
	// Send begins to send a message. It fails if the protocol cannot express it,
	// or if one is still without response.
	Send(Request) error

	// Turn moves what can be moved, and reports whether the backend is to be
	// sent an event. It is called after Send and after each event, until there
	// is a Response.
	Turn() (notify bool, err error)

	// Response takes the response, once there is one.
	Response() (Response, bool)

	Protocol() Protocol
}

var (
	_ Back  = (*SlotBack)(nil)
	_ Back  = (*StreamBack)(nil)
	_ Front = (*SlotFront)(nil)
	_ Front = (*StreamFront)(nil)
)

// Sniff finds out which protocol the page of a frontend that just connected is
// laid out for. A slot ring begins with both event indices at 1, where a
// byte-stream ring has req_prod, which is 0 or at least a header, and rsp_prod,
// which is 0 since that is the backend's. A ring that has been in use tells
// nothing: after a restart the protocol must be known from elsewhere.
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

// Attach takes the backend's end of a ring whose frontend just connected. The
// width is that of a byte-stream ring.
func Attach(mem []byte, p Protocol, w Width) (Back, error) {
	switch p {
	case Slot:
		return attachSlot(mem)
	case Stream:
		return attachStream(mem, w)
	}
	return nil, &Error{Protocol: p, Err: ErrProtocol}
}

// Restore takes the backend's end of a ring that a predecessor served, where its
// last State says it was. The first Flush tells to send an event, since the
// predecessor may not have got to it.
//
// A State that nobody recorded but has the right Protocol, and Width, stands for
// a lost one. Then the ring goes on at the indices in the page, which is right if
// no message was under way.
func Restore(mem []byte, s State) (Back, error) {
	switch s.Protocol {
	case Slot:
		return restoreSlot(mem, s)
	case Stream:
		return restoreStream(mem, s)
	}
	return nil, &Error{Protocol: s.Protocol, Err: ErrState}
}

// Init makes a new ring in a frontend's page. The width is that of a byte-stream
// ring.
func Init(mem []byte, p Protocol, w Width) (Front, error) {
	switch p {
	case Slot:
		return initSlot(mem)
	case Stream:
		return initStream(mem, w)
	}
	return nil, &Error{Protocol: p, Err: ErrProtocol}
}

var errBusy = errors.New("ctrlring: the message before has no response yet")

var errPage = errors.New("ctrlring: a ring needs one whole page, aligned to 4 octets")

const _ = uint(netif.PageSize - streamSize) // it fits

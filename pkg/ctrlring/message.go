// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Request is a message of a frontend, in private memory. It has the form of the slot
// ring's messages for both rings. Its numbers are not checked: the function that
// carries it out does that.
type Request struct {
	Type netif.CtrlType
	Data [3]uint32

	// Protocol is that of the ring. A slot ring names key, table and lists by
	// gref in Data. A byte-stream ring has the key in Key, and in Queues the
	// whole table; it has no lists.
	Protocol Protocol
	Key      []byte
	Queues   []uint32

	// Refused is the answer to a message whose form is wrong; otherwise it is
	// CtrlSuccess.
	Refused netif.CtrlStatus
}

func (r Request) String() string {
	s := fmt.Sprintf("%v %v", r.Type, r.Data)
	switch {
	case r.Refused != netif.CtrlSuccess:
		return fmt.Sprintf("%v (%v)", r.Type, r.Refused)
	case r.Key != nil:
		s = fmt.Sprintf("%v of %d bytes", r.Type, len(r.Key))
	case r.Queues != nil:
		s = fmt.Sprintf("%v of %d entries", r.Type, len(r.Queues))
	}
	return s
}

// Response is the answer to a Request.
type Response struct {
	Status netif.CtrlStatus
	Data   uint32 // sent only with CtrlSuccess

	// Err is the reason of the status, or nil. It is for logs; the frontend never
	// sees it.
	Err error
}

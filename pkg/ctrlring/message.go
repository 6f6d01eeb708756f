// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Request is a message of a frontend, in private memory. Whatever ring it came
// from, it is in terms of the slot ring's messages; what its numbers mean is for
// whoever carries it out to check.
type Request struct {
	Type netif.CtrlType
	Data [3]uint32

	// Protocol is that of the ring. A slot ring names key, table and lists by
	// gref in Data. A byte-stream ring has the key in Key, and in Queues the
	// whole table; it has no lists.
	Protocol Protocol
	Key      []byte
	Queues   []uint32

	// Refused is the answer to a message that was found wrong when it was taken
	// off the ring; otherwise it is CtrlSuccess.
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

	// Err says why the status is what it is, if that is known. It is for
	// people; the frontend never sees it.
	Err error
}

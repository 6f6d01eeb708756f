// SPDX-License-Identifier: Apache-2.0

package ctrlring_test

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
)

// hashing is as much of a HashHandler as the example needs.
type hashing struct {
	ctrlring.HashHandler
	types uint32
}

func (h *hashing) SetHashFlags(types uint32) netif.CtrlStatus {
	if types > 15 {
		return netif.CtrlInvalidParameter
	}
	h.types = types
	return netif.CtrlSuccess
}

// A frontend sets hash types over a slot ring. The page would be granted by one
// and mapped by the other, and each would be woken by an event.
func Example() {
	page := make([]byte, netif.PageSize)
	front, err := ctrlring.Init(page, ctrlring.Slot)
	if err != nil {
		fmt.Println(err)
		return
	}

	protocol, err := ctrlring.Sniff(page)
	fmt.Println(protocol, err)
	back, err := ctrlring.Attach(page, protocol)
	if err != nil {
		fmt.Println(err)
		return
	}
	var hash hashing
	calls := ctrlring.Calls{Domid: 5, Hash: &hash}
	// A backend that outlives a restart records what back.Unflushed returns before
	// it calls Flush.
	serve := func() error {
		for {
			r, ok, err := back.Next()
			if err != nil {
				return err
			}
			if ok {
				fmt.Println("backend:", r)
				back.Reply(calls.Do(r))
			}
			notify, err := back.Flush()
			if err != nil {
				return err
			}
			if notify {
				fmt.Println("event to the frontend")
			}
			if !ok {
				return nil
			}
		}
	}

	for _, types := range []uint32{3, 16} {
		r := ctrlring.Request{Type: netif.CtrlSetHashFlags, Data: [3]uint32{types}}
		if err := front.Send(r); err != nil {
			fmt.Println(err)
			return
		}
		if notify, _ := front.Turn(); notify {
			if err := serve(); err != nil {
				fmt.Println(err)
				return
			}
		}
		_, _ = front.Turn()
		rsp, done := front.Response()
		fmt.Println("frontend:", rsp.Status, done)
	}
	// Output:
	// slot <nil>
	// backend: set-hash-flags [3 0 0]
	// event to the frontend
	// frontend: success true
	// backend: set-hash-flags [16 0 0]
	// event to the frontend
	// frontend: invalid-parameter true
}

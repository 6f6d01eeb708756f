// SPDX-License-Identifier: Apache-2.0

package staticgrant_test

import (
	"context"
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// A frontend adds two grants to a queue and takes one of them back.
func Example() {
	guest, err := xentest.New(5)
	if err != nil {
		fmt.Println(err)
		return
	}
	guest.GrantAt(768, gntdev.ReadWrite)
	guest.GrantAt(769, gntdev.ReadOnly)

	budget := staticgrant.NewBudget(staticgrant.DefaultBudget, nil)
	// guest.Gntdev() stands for a *gntdev.Device.
	source := staticgrant.Source{Mapper: guest.Gntdev(), Domid: 5, Budget: budget}
	var table staticgrant.Table // belongs to the queue's worker

	// ADD_GREF_MAPPING, in the goroutine of the control ring ...
	p, err := source.Prepare(context.Background(), []netif.GrefEntry{
		{Ref: 768}, {Ref: 769, Flags: netif.GrefReadOnly},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// ... in the worker ...
	err = table.Commit(p)
	// ... and in the goroutine of the control ring again.
	if err != nil {
		err = p.Unmap()
	}
	fmt.Println("added:", err == nil)

	// A request, in the worker.
	g := table.Lookup(769)
	fmt.Println("found:", g.Page != nil, "read-only:", g.ReadOnly)
	fmt.Println("found:", table.Lookup(770).Page != nil)

	// DEL_GREF_MAPPING.
	list := []netif.GrefEntry{{Ref: 768}, {Ref: 1}}
	n, _ := table.Detach(list).Unmap()
	for _, e := range list {
		fmt.Println(e.Ref, netif.CtrlStatus(e.Status))
	}
	fmt.Println("unmapped:", n, "mapped:", budget.Used())
	// Output:
	// added: true
	// found: true read-only: true
	// found: false
	// 768 success
	// 1 invalid-parameter
	// unmapped: 1 mapped: 1
}

// SPDX-License-Identifier: Apache-2.0

package staticgrant_test

import (
	"context"
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// memory stands for a *gntdev.Device.
type memory struct{}

func (memory) Map(_ xen.Domid, refs []xen.Gref, _ gntdev.Prot) (*gntdev.Mapping, error) {
	return gntdev.NewMapping(make([]byte, len(refs)*netif.PageSize), func() error { return nil }), nil
}

// A frontend adds two grants to a queue and takes one of them back.
func Example() {
	guest := staticgrant.NewBudget(staticgrant.DefaultBudget, nil)
	source := staticgrant.Source{Mapper: memory{}, Domid: 5, Budget: guest}
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
	fmt.Println("unmapped:", n, "mapped:", guest.Used())
	// Output:
	// added: true
	// found: true read-only: true
	// found: false
	// 768 success
	// 1 invalid-parameter
	// unmapped: 1 mapped: 1
}

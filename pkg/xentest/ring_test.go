// SPDX-License-Identifier: Apache-2.0

package xentest_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// TestPokeReachesTheSlotAndNoIndex: the backend reads what was written last.
func TestPokeReachesTheSlotAndNoIndex(t *testing.T) {
	g := xentest.Start(t, domid)
	pages := g.GrantRun(8, 2, gntdev.ReadWrite)
	txPage, rxPage := pages[:netif.PageSize], pages[netif.PageSize:]
	front, err := netif.InitTx(txPage)
	must(t, err)
	back, err := netif.AttachTx(txPage)
	must(t, err)
	front.Put(netif.TxRequest{ID: 1})
	front.Push()
	for _, i := range []netif.Index{0, 1, netif.TxRingSize - 1, math.MaxUint32} {
		want := netif.TxRequest{Gref: 1 << 20, Offset: 2, Flags: 3, ID: 4, Size: 5}
		xentest.PokeTx(txPage, i, want)
		if diff := cmp.Diff(want, back.Request(i)); diff != "" {
			t.Errorf("tx slot %d (-want +got):\n%s", i, diff)
		}
	}
	if n, err := back.Available(); n != 1 || err != nil {
		t.Errorf("tx available = %d, %v, want 1", n, err)
	}

	rxFront, err := netif.InitRx(rxPage)
	must(t, err)
	rxBack, err := netif.AttachRx(rxPage)
	must(t, err)
	rxFront.Put(netif.RxRequest{ID: 1})
	rxFront.Push()
	for _, i := range []netif.Index{0, 1, netif.RxRingSize - 1, math.MaxUint32} {
		want := netif.RxRequest{ID: 7, Gref: 9}
		xentest.PokeRx(rxPage, i, want)
		if diff := cmp.Diff(want, rxBack.Request(i)); diff != "" {
			t.Errorf("rx slot %d (-want +got):\n%s", i, diff)
		}
	}
	if n, err := rxBack.Available(); n != 1 || err != nil {
		t.Errorf("rx available = %d, %v, want 1", n, err)
	}
}

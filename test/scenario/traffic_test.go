// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/dataplane"
)

func TestTCPBothWays(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	g.pings(10)
	g.tcpToHost(32 << 20)
	g.tcpToGuest(g.ip, 32<<20)
	g.innocent()
	if n := g.counter(dataplane.TxGSO); n == 0 {
		t.Error("no packet from the guest carried a GSO extra")
	}
	if n := g.counter(dataplane.RxGSO); n == 0 {
		t.Error("no packet to the guest carried a GSO extra")
	}
}

func TestBystanderSeesNothingOfAnotherGuestsTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	w.undisturbed(func() { g.tcpToHost(8 << 20) })
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"

	"github.com/netbackd/netbackd/internal/guest"
	"github.com/netbackd/netbackd/internal/traffic"
	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/vif"
)

// A daemon that is killed in the middle of a stream and started again: the guest
// is not told, and the stream arrives whole.
func TestKilledUnderTrafficAndStartedAgain(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	before := g.status()
	type outcome struct {
		r   traffic.TCPResult
		err error
	}
	ended := make(chan outcome, 1)
	const n = 64 << 20
	go func() {
		r, err := g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: n, Seed: 7}})
		ended <- outcome{r, err}
	}()
	for range 3 {
		seen := g.counter(dataplane.TxBytes)
		g.waitCounter(dataplane.TxBytes, seen+1<<20)
		w.Daemon().Kill()
		w.must(w.StartDaemon(w.ctx))
		g.waitStatus("the successor to serve", func(s *vif.Status) bool { return s.State == vif.Connected && len(s.Queues) > 0 })
	}
	o := <-ended
	w.must(o.err)
	w.whole(o.r, n)
	g.innocent()
	if after := g.status(); after.Interface != before.Interface || !after.Carrier {
		t.Errorf("interface %s carrier %t after, %s before", after.Interface, after.Carrier, before.Interface)
	}
}

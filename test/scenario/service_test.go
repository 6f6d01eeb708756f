// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// manager is a service manager of a world's daemon.
type manager struct {
	*lab.Manager
	w *world
}

func (w *world) manager() *manager {
	m, err := w.NewManager()
	w.must(err)
	w.t.Cleanup(func() { _ = m.Close() })
	return &manager{m, w}
}

// start starts a daemon with the kept files.
func (m *manager) start() {
	m.w.t.Helper()
	m.w.must(m.Start(m.w.ctx))
}

// hang makes the manager stop reading, and fills its queue.
func (m *manager) hang() {
	m.Hang()
	c, err := net.DialUnix("unixgram", nil, m.Addr())
	m.w.must(err)
	defer func() { _ = c.Close() }()
	for {
		m.w.must(c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)))
		if _, err := c.Write([]byte("STATUS=hangs")); err != nil {
			return
		}
	}
}

func (m *manager) kept() string {
	return strings.Join(slices.Sorted(slices.Values(m.Kept())), " ")
}

func (m *manager) heard(text string) bool { return slices.Contains(m.Heard(), text) }

// TestServiceRestartedKeepsWhatWaits: under a service manager that keeps the TAP queues,
// the host does not notice a restart or a kill: the carrier stays, and the next daemon
// delivers the packets sent meanwhile.
func TestServiceRestartedKeepsWhatWaits(t *testing.T) {
	const packets = 300 // fewer than a queue holds
	w := newWorld(t)
	m := w.manager()
	g := w.guest(queues(2))
	server, err := g.UDPServe(w.ctx, guest.ServeArgs{Addr: ":5009"})
	w.must(err)
	var kept uint64
	send := func(n int) {
		t.Helper()
		c, err := traffic.DialUDP(w.ctx, g.ip+":5009", "")
		w.must(err)
		_, err = traffic.SendUDP(w.ctx, c, traffic.UDPSend{Count: n, Size: 64, Stream: 7 + kept, NoReport: true})
		w.must(err)
		kept += uint64(n)
	}
	// The first one, without a manager, leaves a TAP that persists.
	w.must(w.Daemon().Stop())
	m.start()
	g.serving()
	w.wait("the manager to keep both queues", func() bool { return m.kept() == fmt.Sprintf("tap-%d.0-0 tap-%d.0-1", g.Domid, g.Domid) })
	g.waitLink()
	w.wait("the watchdog to be fed", func() bool { return m.heard("WATCHDOG=1") })
	if !m.heard("READY=1") || !m.heard("STATUS=1 vif") {
		t.Errorf("the manager heard %q", m.Heard())
	}
	g.pings(3)
	before := w.link(g.Domid, g.Devid).Attrs()
	for round, end := range []func(){
		func() { w.must(w.Daemon().Stop()) },
		func() { w.Daemon().Kill() },
		func() { w.Daemon().Kill() },
	} {
		end()
		if l := w.link(g.Domid, g.Devid); l == nil || l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			t.Errorf("round %d: no carrier while no daemon runs", round)
		}
		send(packets)
		m.start()
		g.serving()
		w.wait(fmt.Sprintf("all packets of round %d", round), func() bool {
			results, err := g.UDPResults(w.ctx, server)
			w.must(err)
			var got uint64
			for _, r := range results {
				got += r.Received
			}
			return got == kept
		})
	}
	if !m.heard("STOPPING=1") || !m.heard("BARRIER=1") {
		t.Errorf("the manager heard %q", m.Heard())
	}
	after := w.link(g.Domid, g.Devid).Attrs()
	if after.Index != before.Index || after.Statistics.TxDropped != before.Statistics.TxDropped {
		t.Errorf("index %d, before %d; %d packets dropped", after.Index, before.Index, after.Statistics.TxDropped-before.Statistics.TxDropped)
	}
	g.innocentAfterKill()
	_, err = w.Detach(w.ctx, g.Domid, g.Devid)
	w.must(err)
	w.vifGone(g.Domid, g.Devid)
	w.wait("the manager to keep nothing", func() bool { return m.kept() == "" })
}

// TestServiceKilledUnderTraffic: streams in both directions survive kills under a service
// manager.
func TestServiceKilledUnderTraffic(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	g := w.guest(queues(4))
	w.must(w.Daemon().Stop())
	m.start()
	g.serving()
	var whole []func()
	var away times
	for range 4 {
		whole = append(whole, g.streaming(8<<20), g.streamed(8<<20)) // those of before may have ended
		g.waitCounter(dataplane.TxBytes, 1<<20)
		g.waitCounter(dataplane.RxBytes, 1<<20)
		w.Daemon().Kill()
		begin := time.Now()
		m.start()
		g.serving()
		away = append(away, time.Since(begin))
	}
	for _, f := range whole {
		f()
	}
	t.Logf("from the kill until served again: %v", away)
	g.innocentAfterKill()
	g.pings(5)
}

// TestServiceOfGuestsThatAreGone: the daemon closes kept queues of vifs that were removed
// while no daemon ran.
func TestServiceOfGuestsThatAreGone(t *testing.T) {
	w := newWorld(t)
	m := w.manager()
	w.must(w.Daemon().Stop())
	m.start()
	g := w.guest()
	w.wait("the manager to keep the queue", func() bool { return m.kept() != "" })
	w.Daemon().Kill()
	w.must(g.Stop())
	w.must(w.Hypervisor().Destroy(g.Domid))
	w.must(w.Store().Remove(w.ctx, w.BackPath(g.Domid, g.Devid)))
	m.start()
	w.wait("the manager to keep nothing", func() bool { return m.kept() == "" })
	w.wait("the interface to go", func() bool { return w.link(g.Domid, g.Devid) == nil })
}

// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/vif"
)

// pressing sends perSecond bytes per second from the guest to the host over this many
// flows, until the returned function is called. It does not wait for their arrival, so the
// path limits the rate of arrival.
func (g *testGuest) pressing(flows int, perSecond float64) (stop func()) {
	const size = 1400
	pps := int(perSecond / size / float64(flows))
	ctx, cancel := context.WithCancel(g.w.ctx)
	var wg sync.WaitGroup
	for range flows {
		wg.Go(func() {
			for ctx.Err() == nil { // an agent cannot be told to stop sending
				_, err := g.UDPSend(g.w.ctx, guest.UDPSendArgs{Addr: hostIP + udpPort, UDPSend: traffic.UDPSend{
					Count: pps / 4, Size: size, Rate: pps, NoReport: true,
				}})
				if err != nil {
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

// speed returns the guest's sending rate over a time, in bytes per second.
func (g *testGuest) speed(over time.Duration) float64 {
	g.w.t.Helper()
	sample := func() (uint64, time.Time) {
		before := time.Now()
		n := g.counter(dataplane.TxBytes)
		return n, before.Add(time.Since(before) / 2)
	}
	n0, t0 := sample()
	<-time.After(over)
	n1, t1 := sample()
	return float64(n1-n0) / t1.Sub(t0).Seconds()
}

// limited checks that the guest sends at its rate limit: never faster, and not slower, as
// far as the machine allows.
func (g *testGuest) limited(bytes, perSecond float64) {
	g.w.t.Helper()
	const window = 1200 * time.Millisecond
	burst := max(bytes, 131072)
	most := perSecond + burst/window.Seconds()
	// The burst at the beginning does not belong to the rate.
	g.waitCounter(dataplane.TxBytes, g.counter(dataplane.TxBytes)+uint64(2*burst))
	var got []float64
	for range 10 {
		is := g.speed(window)
		got = append(got, math.Round(is))
		if is > 1.01*most {
			break
		}
		if math.Abs(is/perSecond-1) <= 0.05 {
			return
		}
	}
	g.w.t.Errorf("the guest sends %.0f bytes per second, want %.0f", got, perSecond)
}

func rate(value string) option { return vifKeys(func(c *lab.VifConfig) { c.Rate = value }) }

// setRate writes the vif's rate, as a toolstack may at any time, and waits until the
// daemon shows it.
func (g *testGuest) setRate(value, shown string) {
	g.w.t.Helper()
	g.w.must(g.w.Store().Write(g.w.ctx, g.w.BackPath(g.Domid, g.Devid)+"/rate", value))
	g.waitStatus("rate "+shown, func(s *vif.Status) bool { return s.Rate == shown })
}

func TestRateIsTheVifsHoweverManyQueuesItHas(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{1, 4} {
		g := w.guest(queues(n), rate("300000,50000"))
		stop := g.pressing(4*n, 9e6)
		g.limited(300000, 6e6)
		s := g.status()
		busy := 0
		for _, q := range s.Queues {
			if q.Counters[dataplane.TxBytes.String()] > 1e6 {
				busy++
			}
		}
		if busy < min(n, 3) {
			t.Errorf("of %d queues %d have sent much", n, busy)
		}
		if s.Counters[dataplane.RateWaits.String()] == 0 {
			t.Error("the guest never had to wait")
		}
		stop()
		g.innocent()
	}
}

func TestRateChangesUnderTraffic(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	stop := g.pressing(2, 9e6)
	g.setRate("300000,50000", "300000 B/50ms")
	g.limited(300000, 6e6)
	g.setRate("100000,50000", "100000 B/50ms")
	g.limited(100000, 2e6)

	// An invalid rate changes nothing, and is logged.
	lines := g.lines("key", "rate", "ERROR")
	w.must(w.Store().Write(w.ctx, w.BackPath(g.Domid, g.Devid)+"/rate", "fast"))
	w.wait("the error node", func() bool { return strings.Contains(g.errorNode(), `"rate"`) })
	g.limited(100000, 2e6)
	if n := g.lines("rate", "fast", "ERROR") - lines; n != 1 {
		t.Errorf("the log has %d lines about it, want 1", n)
	}

	// libxl writes 2^32-1 for no limit.
	for _, none := range []string{"", "0,50000", "4294967295,50000"} {
		g.setRate(none, "unlimited")
		if got := g.speed(300 * time.Millisecond); got < 2*2e6 {
			t.Errorf("rate %q: the guest sends %.0f bytes per second", none, got)
		}
		g.setRate("100000,50000", "100000 B/50ms")
	}
	w.must(w.Store().Remove(w.ctx, w.BackPath(g.Domid, g.Devid)+"/rate"))
	g.waitStatus("no rate", func(s *vif.Status) bool { return s.Rate == "unlimited" })
	stop()
	if r := g.tcpToHost(32 << 20); r.Rate() < 2*8*2e6 {
		t.Errorf("without the key the guest sends %.1f times the last rate", r.Rate()/(8*2e6))
	}
	g.innocent()
}

func TestRateOfOneVifIsNoOthers(t *testing.T) {
	w := newWorld(t)
	slow, quick := w.guest(rate("50000,50000"), queues(2)), w.guest(queues(2))
	stop := slow.pressing(4, 2e6)
	slow.limited(50000, 1e6)
	// Far more than the limit: twice the limit would show another vif's limit.
	const limit = 1e6 * 8
	if r := quick.tcpToHost(32 << 20); r.Rate() < 2*limit {
		t.Errorf("the other guest sends %.1f times what the slow one may", r.Rate()/limit)
	}
	slow.limited(50000, 1e6)
	stop()
	// The limit does not apply to packets that the slow guest receives.
	if r := slow.tcpToGuest(slow.ip, 8<<20); r.Rate() < 2*limit {
		t.Errorf("the slow guest receives %.1f times what it may send", r.Rate()/limit)
	}
	slow.innocent()
	quick.innocent()
}

// TestRateFarBelowOnePacketPerInterval: a large packet passes even if it takes seconds at a
// very low rate.
func TestRateFarBelowOnePacketPerInterval(t *testing.T) {
	w := newWorld(t)
	g := w.guest(rate("1000,50000"))
	start := time.Now()
	g.pings(10) // 980 bytes
	g.tcpToHost(150 << 10)
	// The bucket holds 128 KiB at the beginning; the rest comes at 20 kB/s.
	if d := time.Since(start); d < time.Second || d > 30*time.Second {
		t.Errorf("150 KiB took %v", d)
	}
	g.innocent()
}

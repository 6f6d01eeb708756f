// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// guest is a network namespace with a TAP and its pumps.
type guest struct {
	ns    *netns.NS
	tap   *tap.Device
	pairs []*backend
	pumps []*Pump
}

// newGuest makes a namespace with a TAP eth0 and a pump for each of its queues.
func newGuest(t *testing.T, n, queues int, vnet bool, cfg Config, offers Offers) *guest {
	t.Helper()
	g := &guest{}
	var err error
	if g.ns, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.ns.Close() })
	d := Device{offers: offers}
	if err := g.ns.Do(func() error {
		c := tap.Config{Name: "eth0", Queues: queues, VnetHdr: vnet}
		if vnet {
			c.Offload = d.TapOffload()
		}
		if g.tap, err = tap.Create(c); err != nil {
			return err
		}
		return errors.Join(
			netns.Sysctl("net/ipv6/conf/eth0/accept_dad", "0"),
			setGSOMax("eth0"),
			netns.AddAddr("eth0", fmt.Sprintf("192.0.2.%d/24", n)),
			netns.AddAddr("eth0", fmt.Sprintf("2001:db8::%d/64", n)),
			netns.Up("lo"), netns.Up("eth0"))
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.tap.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range queues {
		q, b := newPair(t, cfg, i%2 == 1)
		q.rules.offers = offers
		q.Post()
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		p, err := NewPump(q, g.tap.Queue(i), vnet)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Errorf("pump %d of guest %d: %v", i, n, err)
			}
		})
		g.pairs, g.pumps = append(g.pairs, b), append(g.pumps, p)
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return g
}

// setGSOMax keeps the host's segments within what netif can carry.
func setGSOMax(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetGSOMaxSize(l, netif.MaxTxSize-ethHeader)
}

// cable forwards packets between the queues of two guests, until the test ends.
func cable(t *testing.T, a, b *guest) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range a.pairs {
		wake := make(chan struct{}, 1)
		event := func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
		x, y := a.pairs[i], b.pairs[i]
		for _, e := range []*backend{x, y} {
			e.m.onEvent(e.q.txPort, event)
			e.m.onEvent(e.q.rxPort, event)
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				xy, err := forward(x, y)
				yx, err2 := forward(y, x)
				if err != nil || err2 != nil {
					t.Error(err, err2)
					return
				}
				if xy || yx {
					continue
				}
				more := false
				for _, e := range []*backend{x, y} {
					m, _ := e.tx.Arm()
					more = more || m
				}
				if !more {
					select {
					case <-wake:
					case <-ctx.Done():
					}
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// forward moves packets from one backend to another, as a minimal backend does. It drops
// a packet without room.
func forward(from, to *backend) (bool, error) {
	n, err := from.tx.Available()
	if err != nil || n == 0 {
		return false, err
	}
	seen := from.takeTx()
	for rest := seen; len(rest) > 0; {
		k := packetSlots(rest)
		frame := from.frames(rest[:k])[0]
		first := rest[0].Req
		var flags netif.RxFlags
		if first.Flags&netif.TxCsumBlank != 0 {
			flags |= netif.RxCsumBlank
		}
		if first.Flags&netif.TxDataValidated != 0 {
			flags |= netif.RxDataValidated
		}
		var extras []netif.ExtraInfo
		for _, s := range rest[:k] {
			if s.Is {
				s.Extra.Flags = 0
				extras = append(extras, s.Extra)
			}
		}
		rest = rest[k:]
		room, err := to.rx.Available()
		if err != nil {
			return false, err
		}
		if int(room) < (len(frame)+netif.PageSize-1)/netif.PageSize+len(extras) {
			continue
		}
		to.commitRx(to.putRx(frame, flags, extras...))
	}
	from.answerTx(seen, netif.StatusOkay)
	return true, nil
}

// packetSlots returns the number of slots of the packet that comes first.
func packetSlots(seen []txSeen) int {
	k := 1
	for k < len(seen) && seen[k].Is {
		k++
	}
	for more := seen[0].Req.Flags&netif.TxMoreData != 0; more; k++ {
		more = seen[k].Req.Flags&netif.TxMoreData != 0
	}
	return k
}

// stats adds the counters of a guest's queues and fails for every violation.
func (g *guest) stats(t *testing.T) (s Stats) {
	t.Helper()
	for _, p := range g.pumps {
		if err := p.Do(func(q *Queue) {
			s.Add(q.Stats())
			noViolations(t, q)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

var allOffers = Offers{RxCopy: true, SG: true, GSOTCPv4: true, GSOTCPv6: true, IPv6CsumOffload: true, MaxQueues: 8}

// TestPumpCarriesTCP connects two kernels' TCP stacks by two frontends and a
// backend that only copies.
func TestPumpCarriesTCP(t *testing.T) {
	netns.NeedTUN(t)
	none := Config{Features: Features{RxCopy: true, RxNotify: true, SG: true, NoCsumOffload: true}, Strict: true}
	all := Config{Features: AllFeatures(), Strict: true}
	for _, c := range []struct {
		name   string
		vnet   bool
		queues int
		cfg    Config
		offers Offers
		gso    bool
	}{
		{"offloads", true, 1, all, allOffers, true},
		{"offloads on two queues", true, 2, all, allOffers, true},
		{"plain TAP", false, 1, none, allOffers, false},
		{"a backend that can do nothing", true, 1, none, Offers{RxCopy: true, NoCsumOffload: true, MaxQueues: 1}, false},
		{"a backend without IPv6 checksums", true, 1,
			Config{Features: Features{RxCopy: true, RxNotify: true, SG: true, GSOTCPv4: true}, Strict: true},
			Offers{RxCopy: true, SG: true, GSOTCPv4: true, MaxQueues: 1}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newGuest(t, 1, c.queues, c.vnet, c.cfg, c.offers)
			b := newGuest(t, 2, c.queues, c.vnet, c.cfg, c.offers)
			cable(t, a, b)
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			for _, v := range []struct{ listen, dial, ping string }{
				{":0", "192.0.2.2", "192.0.2.2"},
				{"[::]:0", "2001:db8::2", "2001:db8::2"},
			} {
				var s *traffic.TCPServer
				if err := b.ns.Do(func() (err error) { s, err = traffic.ListenTCP(v.listen); return err }); err != nil {
					t.Fatal(err)
				}
				serving, stop := context.WithCancel(ctx)
				served := make(chan error, 1)
				go func() { served <- s.Serve(serving) }()
				to := netip.AddrPortFrom(netip.MustParseAddr(v.dial), netip.MustParseAddrPort(s.Addr().String()).Port())
				err := a.ns.Do(func() error {
					p, err := traffic.DialPing(netip.MustParseAddr(v.ping))
					if err != nil {
						return err
					}
					defer p.Close()
					r, err := p.Ping(ctx, traffic.PingOptions{Count: 5})
					if err != nil || r.Received < 4 {
						return fmt.Errorf("ping: %+v, %w", r, err)
					}
					conn, err := traffic.DialTCP(ctx, to.String())
					if err != nil {
						return err
					}
					tr, err := traffic.SendTCP(ctx, conn, traffic.TCPSend{Bytes: 8 << 20, Seed: 3})
					t.Logf("%s: %.2f Gbit/s", v.dial, tr.Rate()/1e9)
					return err
				})
				stop()
				if err := errors.Join(err, <-served); err != nil {
					t.Errorf("%s: %v", v.dial, err)
				}
			}
			sa, sb := a.stats(t), b.stats(t)
			if got := sa.TxGSO > 0 && sb.RxGSO > 0; got != c.gso {
				t.Errorf("%d segmented packets sent, %d received, want some: %v", sa.TxGSO, sb.RxGSO, c.gso)
			}
			if sa.TapDrops+sb.TapDrops+sa.TapErrors+sb.TapErrors > 0 {
				t.Errorf("packets were lost at a TAP: %+v, %+v", sa, sb)
			}
			// The window of a stream is larger than the ring, so both sides must
			// have moved several packets per event.
			if perEvent := float64(sa.TxPackets) / float64(max(sa.Notifies, 1)); perEvent < 1 {
				t.Errorf("%.1f packets an event", perEvent)
			}
		})
	}
}

// startPump runs a pump between q and a new TAP until stop is called or the test ends.
func startPump(t *testing.T, q *Queue, ifname string) (p *Pump, stop func()) {
	t.Helper()
	dev, err := tap.Create(tap.Config{Name: ifname, VnetHdr: true})
	if err != nil {
		t.Fatal(err)
	}
	if p, err = NewPump(q, dev.Queue(0), true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, dev.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return p, stop
}

// TestPumpDo runs jobs while packets flow and refuses them after the end.
func TestPumpDo(t *testing.T) {
	netns.NeedTUN(t)
	q, _ := newPair(t, Config{Features: AllFeatures()}, false)
	p, stop := startPump(t, q, "pd0")
	var wg sync.WaitGroup
	count := 0 // by the pump's goroutine alone
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := p.Do(func(*Queue) { count++ }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	if count != 400 {
		t.Errorf("%d jobs ran, want 400", count)
	}
	if err := p.Do(func(*Queue) {}); !errors.Is(err, ErrStopped) {
		t.Errorf("after the end: %v, want %v", err, ErrStopped)
	}
}

// TestPumpSurvivesABrokenBackend: after a fatal violation the pump still runs the functions
// of Do, and does not spin.
func TestPumpSurvivesABrokenBackend(t *testing.T) {
	netns.NeedTUN(t)
	q, b := newPair(t, Config{Features: AllFeatures()}, false)
	p, _ := startPump(t, q, "pd1")
	if err := p.Do(func(q *Queue) {
		// A response without a request.
		b.m.Page(q.rings.Refs()[0])[8] = 9
	}); err != nil {
		t.Fatal(err)
	}
	b.m.notify(q.txPort)
	var broken error
	for range 1000 {
		if err := p.Do(func(q *Queue) { broken = q.Err() }); err != nil {
			t.Fatal(err)
		}
		if broken != nil {
			break
		}
	}
	var v *Violation
	if !errors.As(broken, &v) || v.Rule != RuleIndex {
		t.Errorf("the queue's error is %v", broken)
	}
}

// TestFinishCsum completes checksums of frames of any length, in pages and in fragments,
// and compares them with packettest's.
func TestFinishCsum(t *testing.T) {
	q, b := newPair(t, Config{Features: AllFeatures()}, false)
	p := &Pump{q: q}
	for _, n := range []int{0, 1, 2, 999, 4041, 4042, 4043, 4096, 8192, 20000, 60001} {
		for _, v6 := range []bool{false, true} {
			partial := partialFrame(n, v6)
			f := packettest.Frame{TCP: &packettest.TCP{Flags: packettest.ACK}, Payload: packettest.Pattern(n)}
			if v6 {
				f.IPv6 = &packettest.IPv6{}
			} else {
				f.IPv4 = &packettest.IPv4{}
			}
			want := f.Bytes()
			h := findHeaders(partial)

			// The layout of a frame from the TAP.
			for i, rest := 0, partial; len(rest) > 0; i++ {
				rest = rest[copy(q.tx.page(q.tx.top(i)), rest):]
			}
			if !p.finishCsum(len(partial), h.l4, 16) {
				t.Fatalf("%d bytes: not finished", n)
			}
			if got := gather(q, len(partial)); !bytes.Equal(got, want) {
				t.Errorf("%d bytes, v6 %v: in pages %#04x, want %#04x", n, v6, checksum(got, h.l4+16), checksum(want, h.l4+16))
			}

			// The layout of a packet from the ring.
			q.Post()
			if err := q.Flush(); err != nil {
				t.Fatal(err)
			}
			b.commitRx(b.putRx(partial, blankFlags, gso4(1000)))
			var k Packet
			if ok, err := q.Recv(&k); !ok || err != nil {
				t.Fatal(ok, err)
			}
			k.finishCsum(h.l4 + 16)
			if got := k.AppendTo(nil); !bytes.Equal(got, want) {
				t.Errorf("%d bytes, v6 %v: in fragments %#04x, want %#04x", n, v6, checksum(got, h.l4+16), checksum(want, h.l4+16))
			}
			q.Release(&k)
		}
	}
}

// gather copies the frame in the top pages.
func gather(q *Queue, size int) (b []byte) {
	for i := 0; len(b) < size; i++ {
		b = append(b, q.tx.page(q.tx.top(i))[:min(size-len(b), netif.PageSize)]...)
	}
	return b
}

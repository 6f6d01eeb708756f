// SPDX-License-Identifier: Apache-2.0

package numbered

import (
	"context"
	"errors"
	"time"

	"github.com/netbackd/netbackd/internal/lab/ledger"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
)

// burst is the number of packets that a queue sends of one flow before the next one.
const burst = 24

// nap is the time for which a queue that may not send sleeps, unless a packet comes.
const nap = time.Millisecond

// guestQueue is the guest's end of a queue.
type guestQueue struct {
	t       *Traffic
	q       *netfront.Queue
	sources []*ledger.Source
	pending []byte // a packet that found no room, of sources[at]
	at      int    // the flow whose turn it is
	buf     []byte
	packets []ledger.Packet
}

// RunQueue moves the packets of a queue until ctx ends, or until the back end breaks a rule
// after which the queue cannot be used.
func (t *Traffic) RunQueue(ctx context.Context, q *netfront.Queue) error {
	g := &guestQueue{t: t, q: q, buf: make([]byte, 0, ledger.MaxFrame)}
	for k := range kinds {
		g.sources = append(g.sources, t.source(q.Index()*kinds+k, false))
	}
	for ctx.Err() == nil {
		if err := g.pass(); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, nap)
		err := q.Wait(wait)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// pass takes what has come and sends what has room.
func (g *guestQueue) pass() error {
	if _, err := g.q.Reap(); err != nil {
		return err
	}
	var p netfront.Packet
	for {
		ok, err := g.q.Recv(&p)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		g.receive(&p)
		g.q.Release(&p)
	}
	g.q.Post()
	if !g.t.pause.Load() {
		for range kinds {
			if err := g.send(); err != nil {
				return err
			}
		}
	}
	return g.q.Flush()
}

// receive enters a packet into the books.
func (g *guestQueue) receive(p *netfront.Packet) {
	t := g.t
	g.buf = p.AppendTo(g.buf[:0])
	var err error
	g.packets, err = ledger.Read(g.packets[:0], g.buf, p.Meta.CsumBlank)
	if errors.Is(err, ledger.ErrForeign) {
		t.stray.Add(1)
		return
	}
	if err != nil {
		t.faults.Add("vif %d, queue %d, to the guest: %v", t.opts.Vif, g.q.Index(), err)
		return
	}
	for _, a := range g.packets {
		if !t.mine(a.Flow, true) {
			t.faults.Add("vif %d, queue %d, to the guest: packet %d of %+v", t.opts.Vif, g.q.Index(), a.Seq, a.Flow)
			continue
		}
		if err := t.arrived(a); err != nil {
			t.faults.Add("vif %d, flow %d, to the guest: %v", t.opts.Vif, a.Flow.Number, err)
		}
	}
}

// send sends some packets of the flow whose turn it is.
func (g *guestQueue) send() error {
	s := g.sources[g.at]
	f := &g.t.toHost[s.Flow.Number]
	for range burst {
		if g.pending == nil {
			if s.Sent()-f.high.Load() >= toHostWindow {
				break
			}
			g.pending = s.Next()
		}
		m := netfront.Meta{CsumBlank: s.Partial, DataValidated: s.Partial}
		if size := s.GSOSize(g.pending); size > 0 {
			m.GSOType, m.GSOSize = netif.GSOTCPv4, size
		}
		err := g.q.Send(g.pending, m)
		if errors.Is(err, netfront.ErrFull) {
			return nil // the same flow goes on
		}
		if err != nil {
			return err
		}
		g.pending = nil
		f.sent.Store(s.Sent())
	}
	g.at = (g.at + 1) % kinds
	return nil
}

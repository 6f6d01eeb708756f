// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/netbackd/netbackd/pkg/netif"
)

// packetSize is the length of the packets that guests send, in bytes: the shortest that
// Ethernet has.
const packetSize = 60

// testEtherType is the EtherType of these packets: one for local experiments.
const testEtherType = 0x88b5

// lookEvery separates two looks of Served at a ring.
const lookEvery = time.Millisecond

// Send lets each guest send a packet on each of its queues. The daemon need not run.
func (c *Crowd) Send(guests []*Guest) {
	for _, g := range guests {
		for i := range g.Queues {
			g.send(&g.Queues[i])
		}
	}
}

// send puts a packet into the tx ring and sends an event. Without a backend the event is lost,
// which the next backend must not mind.
func (g *Guest) send(q *Queue) {
	data := q.Rings.Bytes()[2*netif.PageSize:]
	clear(data[:packetSize])
	copy(data, "\xff\xff\xff\xff\xff\xff\x02")
	binary.BigEndian.PutUint16(data[12:], testEtherType)
	q.Tx.Put(netif.TxRequest{Gref: q.Rings.Refs()[2], Size: packetSize})
	if q.Tx.Push() {
		_ = g.events.Notify(q.Port)
	}
}

// Served waits until the packets of Send are answered with OKAY, all of them.
func (c *Crowd) Served(ctx context.Context, guests []*Guest) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for _, g := range guests {
		for i := range g.Queues {
			if err := served(ctx, look.C, &g.Queues[i]); err != nil {
				return fmt.Errorf("%s: queue %d: %w", g.VifName(), i, err)
			}
		}
	}
	return nil
}

// served waits until a queue has no packet that is not answered.
func served(ctx context.Context, look <-chan time.Time, q *Queue) error {
	for q.Tx.ReqProd() != q.Tx.RspCons() {
		n, err := q.Tx.Responses()
		if err != nil {
			return err
		}
		for range n {
			if got := q.Tx.Response(q.Tx.RspCons()); got.Status != netif.StatusOkay {
				return fmt.Errorf("a packet is answered with %v", got.Status)
			}
			q.Tx.Take(1)
		}
		if n > 0 {
			continue
		}
		select {
		case <-look:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

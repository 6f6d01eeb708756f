// SPDX-License-Identifier: Apache-2.0

package killed

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// The network of the guest with streams.
const (
	bridge   = "xenbr0"
	hostIP   = "10.98.0.1"
	guestIP  = "10.98.0.10"
	tcpPort  = ":5001"
	ofStream = 1 << 20 // bytes
)

// streams starts a guest with a network stack of its own, and TCP streams both ways. The returned
// function ends them; each must have arrived whole.
func (b *bed) streams() (stop func() int) {
	b.t.Helper()
	b.must(b.Bridge(bridge, hostIP+"/24"))
	server, err := traffic.ListenTCP(tcpPort)
	b.must(err)
	ctx, cancel := context.WithCancel(b.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx) })
	g, err := b.StartGuest(b.ctx, lab.GuestConfig{
		Name: "streams",
		Vif:  lab.VifConfig{MAC: "00:16:3e:00:00:01", Bridge: bridge},
		Front: guest.VifConfig{
			Addrs: []string{guestIP + "/24"},
			Front: netfront.Config{Queues: 4, SplitEvents: true, Strict: true, Features: netfront.AllFeatures()},
		},
	})
	b.must(err)
	b.wait("the carrier", func() bool { return running(g.VifName()) && running(bridge) })
	_, err = g.TCPServe(b.ctx, guest.ServeArgs{Addr: tcpPort})
	b.must(err)
	enough := make(chan struct{})
	n := 0
	var mu sync.Mutex // guards n
	var senders sync.WaitGroup
	for _, send := range []func() (traffic.TCPResult, error){
		func() (traffic.TCPResult, error) {
			return g.TCPSend(b.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: ofStream, Seed: 7}})
		},
		func() (traffic.TCPResult, error) {
			c, err := traffic.DialTCP(b.ctx, guestIP+tcpPort)
			if err != nil {
				return traffic.TCPResult{}, err
			}
			return traffic.SendTCP(b.ctx, c, traffic.TCPSend{Bytes: ofStream, Seed: 9})
		},
	} {
		senders.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				r, err := send()
				if err == nil && (r.Bytes != ofStream || r.Wrong != 0) {
					err = errors.New("it is not whole")
				}
				if err != nil {
					b.faults.Add("a TCP stream: %+v: %v", r, err)
					return
				}
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	return func() int {
		close(enough)
		senders.Wait()
		cancel()
		wg.Wait()
		s, err := g.Stats(b.ctx, "")
		b.must(err)
		for r, n := range s.Broken {
			if fmt.Sprint(r) != netfront.RuleOutsideWrite.String() {
				b.faults.Add("the guest with streams: %d times %v", n, r)
			}
		}
		return n
	}
}

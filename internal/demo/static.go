// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/netbackd/netbackd/internal/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/vif"
)

// price is what a step cost the host for the packets of the first guest.
type price struct {
	packets, ops, rx []uint64 // by queue, counted since the guest started
}

// priced takes a step and keeps what it cost.
func (s *show) priced(ctx context.Context, step func() error) error {
	before, err := s.price(ctx)
	if err != nil {
		return err
	}
	if err := step(); err != nil {
		return err
	}
	after, err := s.price(ctx)
	if err != nil {
		return err
	}
	for i := range after.packets {
		after.packets[i] -= before.packets[i]
		after.ops[i] -= before.ops[i]
		after.rx[i] -= before.rx[i]
	}
	s.prices = append(s.prices, after)
	return nil
}

func (s *show) price(ctx context.Context) (p price, err error) {
	st, err := s.lab.Vif(ctx, s.guests[0].VifName())
	if err != nil {
		return p, err
	}
	for i := range st.Queues {
		n := st.Queues[i].Counters
		p.packets = append(p.packets, n["tx_packets"]+n["rx_packets"])
		p.ops = append(p.ops, n["grant_ops"])
		p.rx = append(p.rx, n["rx_packets"])
	}
	return p, nil
}

// opsPerPacket is the price in grant operations.
func (p price) opsPerPacket() string {
	var ops, packets uint64
	for i := range p.ops {
		ops += p.ops[i]
		packets += p.packets[i]
	}
	return per(ops, packets)
}

// controlRing has the first guest say which queue each flow is for, and keep its
// buffers mapped, and does again what it did before.
func (s *show) controlRing(ctx context.Context) error {
	web := s.guests[0]
	s.say("\nNow web uses its control ring:\n")
	err := s.step("hashing", func() (string, error) {
		table := make([]uint32, 128)
		for i := range table {
			table[i] = uint32(i % s.Queues)
		}
		if err := web.SetHash(ctx, "", netfront.Hash{Types: 15, Key: demoKey(), Mapping: table}); err != nil {
			return "", err
		}
		c, err := s.control(ctx)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s of %s, a table of %d entries, queues chosen by %s", c.Algorithm, strings.Join(c.Types, " "), len(c.Mapping), c.Steering), nil
	})
	if err != nil {
		return err
	}
	err = s.step("static grants", func() (string, error) {
		n := 0
		for q := range s.Queues {
			k, err := web.StaticGrants(ctx, "", q)
			if err != nil {
				return "", err
			}
			n += k
		}
		return fmt.Sprintf("%d buffers of %d queues stay mapped", n, s.Queues), nil
	})
	if err != nil {
		return err
	}
	copied := s.prices
	s.prices = nil
	for i, step := range []struct {
		what string
		f    func(what string) error
	}{
		{"TCP web -> host", func(what string) error { return s.tcp(ctx, what, web, hostAddr) }},
		{"TCP host -> web", func(what string) error { return s.hostTCP(ctx, what, s.addrs[0]) }},
		{fmt.Sprintf("UDP %d B web -> host", udpSize), func(what string) error { return s.udp(ctx, what, web, hostAddr) }},
	} {
		if err := s.priced(ctx, func() error { return step.f(step.what) }); err != nil {
			return err
		}
		s.say("  %-28s %s grant operations per packet, copied it was %s", "", s.prices[i].opsPerPacket(), copied[i].opsPerPacket())
		if step.what == "TCP host -> web" {
			s.say("  %-28s packets to web by queue: %v", "", s.prices[i].rx)
		}
	}
	return nil
}

func (s *show) control(ctx context.Context) (*vif.ControlStatus, error) {
	st, err := s.lab.Vif(ctx, s.guests[0].VifName())
	if err != nil {
		return nil, err
	}
	if st.Control == nil {
		return nil, fmt.Errorf("%s has no control ring", st.Name)
	}
	return st.Control, nil
}

// demoKey is a key of as many octets as there can be.
func demoKey() []byte {
	key := make([]byte, 40)
	for i := range key {
		key[i] = byte(37*i + netif.HashAlgorithmToeplitz)
	}
	return key
}

// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

const (
	flows     = 512
	flowsFrom = 20000 // the first one's port
	flowsTo   = 5003  // no listener, so each flow is one packet to the guest
	tableSize = 128   // entries
	hashTypes = 1 | 2 // IPv4, and with TCP
	_         = uint(toeplitz.MaxMapping - tableSize)
)

// steering has the first guest choose a queue for each flow, twice, and counts the
// packets by the queue on which they arrive.
func (s *show) steering(ctx context.Context) error {
	// Unequal shares, so that the table's effect shows.
	share := [...]int{0, 1, 1, 2, 2, 2, 3, 3}
	all := make([]uint32, tableSize)
	for i := range all {
		all[i] = uint32(share[i%len(share)] % s.Queues)
	}
	if err := s.step("hashing", func() (string, error) {
		if err := s.setTable(ctx, all); err != nil {
			return "", err
		}
		c, err := s.control(ctx)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s of %s, a table of %d entries, queues chosen by %s", c.Algorithm, strings.Join(c.Types, " "), len(c.Mapping), c.Steering), nil
	}); err != nil {
		return err
	}
	if err := s.spread(ctx, fmt.Sprintf("%d TCP flows host -> web", flows), all); err != nil {
		return err
	}
	if s.Queues == 1 {
		return nil
	}
	// A guest that lets processors sleep does this.
	half := slices.Clone(all)
	for i := range half {
		half[i] = uint32(s.Queues/2 + i%(s.Queues-s.Queues/2))
	}
	if err := s.setTable(ctx, half); err != nil {
		return err
	}
	if err := s.spread(ctx, "web changes its table", half); err != nil {
		return err
	}
	return s.setTable(ctx, all)
}

func (s *show) setTable(ctx context.Context, table []uint32) error {
	return s.guests[0].SetHash(ctx, "", netfront.Hash{Types: hashTypes, Key: demoKey(), Mapping: table})
}

// spread tries to open a connection for each flow, which the guest refuses, and compares
// the queues on which the guest got them with its table.
func (s *show) spread(ctx context.Context, what string, table []uint32) error {
	return s.step(what, func() (string, error) {
		before, err := s.hashed(ctx)
		if err != nil {
			return "", err
		}
		want, err := s.send(ctx, table)
		if err != nil {
			return "", err
		}
		got, err := s.hashed(ctx)
		if err != nil {
			return "", err
		}
		for i := range got {
			got[i] -= before[i]
		}
		verdict := "each where the table says"
		if !slices.Equal(got, want) {
			verdict = fmt.Sprintf("but the table says %v", want)
			s.lose("%s: by queue %v, want %v", what, got, want)
		}
		return fmt.Sprintf("by queue: %s, %s", strings.Trim(fmt.Sprint(got), "[]"), verdict), nil
	})
}

// send sends the first packet of each flow, and counts the packets by the queue that the
// table selects.
func (s *show) send(ctx context.Context, table []uint32) ([]uint64, error) {
	hasher, err := toeplitz.New(demoKey())
	if err != nil {
		return nil, err
	}
	mapping := toeplitz.NewMapping(s.Queues)
	if err := errors.Join(mapping.SetSize(uint32(len(table))), mapping.Set(0, table)); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddr(s.addrs[0])
	if err != nil {
		return nil, err
	}
	from := netip.MustParseAddr(hostAddr)
	want := make([]uint64, s.Queues)
	for i := range flows {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, uint16(flowsFrom+i)))}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, flowsTo).String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("flow %d is not refused: %w", i, err)
		}
		// The hash covers the addresses and the ports.
		in := append(from.AsSlice(), to.AsSlice()...)
		in = append(in, byte((flowsFrom+i)>>8), byte(flowsFrom+i), byte(flowsTo>>8), byte(flowsTo&0xff))
		want[mapping.Queue(hasher.Hash(in))]++
	}
	return want, nil
}

// hashed returns the number of packets with a hash that each queue of the first guest got.
func (s *show) hashed(ctx context.Context) ([]uint64, error) {
	st, err := s.lab.Vif(ctx, s.guests[0].VifName())
	if err != nil {
		return nil, err
	}
	var n []uint64
	for i := range st.Queues {
		n = append(n, st.Queues[i].Counters["rx_hash"])
	}
	return n, nil
}

func (s *show) control(ctx context.Context) (*ctrlserver.Status, error) {
	st, err := s.lab.Vif(ctx, s.guests[0].VifName())
	if err != nil {
		return nil, err
	}
	if st.Control == nil {
		return nil, fmt.Errorf("%s has no control ring", st.Name)
	}
	return st.Control, nil
}

// demoKey returns a key of the largest size.
func demoKey() []byte {
	key := make([]byte, toeplitz.MaxKey)
	for i := range key {
		key[i] = byte(37*i + netif.HashAlgorithmToeplitz)
	}
	return key
}

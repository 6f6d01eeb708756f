// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/crowd"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/netcontrol"
)

// TestMemoryOfHostileGuests: guests with as many queues as may be, which take no packet,
// while the host sends to all of them, stay under the bounds that the daemon shows.
func TestMemoryOfHostileGuests(t *testing.T) {
	netns.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	guests := 6
	if long() {
		guests = 100
	}
	const queues = 8
	s, err := newVifs(ctx, nil, "--max-queues=8", "--rx-drain=10m")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	v := s.(*vifs)
	memory := func() *netcontrol.Memory {
		t.Helper()
		d, err := v.Control().Daemon(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return d.Memory
	}
	before := memory()
	c := crowd.New(v.Lab)
	defer func() { _ = c.Destroy(context.WithoutCancel(ctx)) }()
	all, err := c.Add(ctx, guests, queues)
	if err == nil {
		err = c.Connect(ctx, all)
	}
	if err != nil {
		t.Fatal(err)
	}
	held, want := 0, guests*queues*1000
	err = until(ctx, "packets wait", func() error {
		for _, g := range all {
			if err := flood(g.VifName(), queues*400); err != nil {
				return err
			}
		}
		// A queue without rx slots takes one packet, and the rest waits in the TAP.
		held = 0
		for _, g := range all {
			st, err := v.Vif(ctx, g.VifName())
			if err != nil {
				return err
			}
			for _, q := range st.Queues {
				held += q.HeldBytes
			}
		}
		if held < want {
			return fmt.Errorf("only %d bytes wait, want at least %d: the test shows nothing", held, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m := memory()
	t.Logf("%d guests: resident %d MiB, before %d, bound %d; %d MiB wait, of the shared part %d", guests,
		m.Resident>>20, before.Resident>>20, m.Max>>20, held>>20, m.WaitUsed>>20)
	if m.Resident > m.Max {
		t.Errorf("resident are %d bytes, more than the %d shown as the bound", m.Resident, m.Max)
	}
	if grew, most := m.Resident-before.Resident, int64(guests)*m.VifMax; grew > most {
		t.Errorf("the guests cost %d bytes, at most %d are shown", grew, most)
	}
	if m.WaitUsed > m.WaitShared {
		t.Errorf("%d bytes of the shared %d are taken", m.WaitUsed, m.WaitShared)
	}
	if err := v.bystander(ctx); err != nil {
		t.Error(err)
	}
}

// flood sends n packets of many flows to an interface.
func flood(name string, n int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6}
	// An Ethernet header, IPv4 and UDP; the checksums are not verified.
	frame := make([]byte, 1514)
	copy(frame, "\x00\x16\x3e\x00\x00\x01\x02\x00\x00\x00\x00\x01\x08\x00\x45\x00\x05\xdc\x00\x00\x00\x00\x40\x11")
	copy(frame[26:], "\x0a\x00\x00\x01\x0a\x00\x00\x02")
	binary.BigEndian.PutUint16(frame[38:], 1480)
	for i := range n {
		binary.BigEndian.PutUint16(frame[34:], uint16(i*7919))
		if err := unix.Sendto(fd, frame, 0, to); err != nil && err != unix.ENOBUFS {
			return err
		}
	}
	return nil
}
